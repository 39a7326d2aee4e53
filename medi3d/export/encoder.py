"""An encoder as a folder to share, here or on the Hugging Face hub: its weights, its card, a page for readers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from medi3d.config import TaskConfig, dump_task
from medi3d.errors import ConfigError, InputError
from medi3d.io import atomic
from medi3d.models.build import create_model
from medi3d.models.encoder import Encoder
from medi3d.models.hub import push_folder
from medi3d.models.inits import name_init
from medi3d.models.multitask import merge_encoders
from medi3d.models.shared import CARD_FILE, FORMAT, WEIGHTS_FILE, read_card, write_recipe
from medi3d.models.weights import read_weights_file
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.runs.pretraining import PretrainingFolder

_PACKAGES = ("medi3d", "torch", "timm", "torchvision")
_ORDER = "D inferior to superior, H anterior to posterior, W right to left"


def export_encoder(
    encoder: Encoder,
    output: Path,
    *,
    init: str,
    training_data: Mapping[str, Any] | str = "none: as initialised",
    spacing_mm: Sequence[float] | str = "any",
    normalize: Sequence[str] = (),
    licence: str = "not stated",
    held_out: Mapping[str, Mapping[str, int]] | None = None,
) -> Path:
    """Write an encoder as a folder that `medi3d.create_encoder` takes, and ``--init`` too.

    Args:
        encoder: as `medi3d.create_encoder` made it, trained since or not.
        output: folder to write; it must be new or empty.
        init: what its weights started from.
        training_data: what they were trained on since.
        spacing_mm: (D, H, W) that volumes should have.
        normalize: how each channel's intensities were brought to its ``input_scale``.
        licence: of the weights.
        held_out: task → fold, seed and folds of the cases that it was not trained on, so that a run that starts from it
            can tell whether it has seen the run's held-out cases.

    Returns:
        ``output``.

    Raises:
        ConfigError: the encoder was not created by name, so that nobody could create it once more.
        InputError: ``output`` is not empty.

    Example:
        >>> import tempfile
        >>> from medi3d.models import create_encoder
        >>> folder = Path(tempfile.mkdtemp()) / "shared"
        >>> encoder = create_encoder("tf_efficientnet_lite0", init="random", stages=2)
        >>> _ = export_encoder(encoder, folder, init="random")
        >>> create_encoder(str(folder)).channels
        (16, 24)
    """
    if encoder.recipe is None:
        raise ConfigError("this encoder was made of a network at hand; export one that create_encoder made by name")
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: not empty; give a new folder")
    output.mkdir(parents=True, exist_ok=True)
    tensors = {f"encoder.{name}": tensor.cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    content = safetensors.torch.save(tensors)
    card = {
        "format": FORMAT,
        **write_recipe(encoder.recipe),
        "channels": encoder.channels,
        "strides": encoder.strides,
        "init": init,
        "training_data": training_data,
        "held_out": held_out or {},
        "input": {
            "spacing_mm": spacing_mm,
            "normalize": normalize,
            "axes": _ORDER,
            "scaling": {
                "factor": encoder.scaling.factor.flatten().tolist(),
                "offset": encoder.scaling.offset.flatten().tolist(),
            },
        },
        "licence": licence,
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    atomic.write_bytes(output / WEIGHTS_FILE, content)
    atomic.write_bytes(output / "README.md", _write_page(card).encode())
    atomic.write_bytes(output / CARD_FILE, json.dumps(card, indent=1).encode())
    return output


def export_run_encoder(run: Path, output: Path, *, checkpoint: str = "best", licence: str = "not stated") -> Path:
    """Write the encoder of a run; see `export_encoder`.

    Args:
        run: run folder, an exported run, or the folder of a pretraining, as `export_pretrained` takes it.
        output: folder to write; it must be new or empty.
        checkpoint: ``best`` by the validation score, or the ``last``.
        licence: of the weights.

    Raises:
        ConfigError: its network has no encoder of medi3d's.
        InputError: ``run`` holds no run, or ``output`` is not empty.
        WeightsError: the checkpoint is missing, damaged or of another architecture.
    """
    if PretrainingFolder(run).exists:
        return export_pretrained(run, output, checkpoint=checkpoint, licence=licence)
    source = RunFolder(run)
    task = source.load_config()
    path = source.checkpoint(checkpoint)
    exported = path == source.exported
    state = read_weights_file(path) if exported else load_checkpoint(path)["model"]
    encoder = _create_encoder(
        create_model(replace(task, model=replace(task.model, init="random", weights=None))), task.model.network
    )
    own = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    encoder.load_state_dict(own)
    cases = len(source.load_split().train)
    trained: dict[str, Any] = {"task": task.name, "kind": task.kind, "description": task.description}
    return export_encoder(
        encoder,
        output,
        init=name_init(task.model.init),
        training_data=trained | ({"cases": cases} if cases else {}),
        spacing_mm=dump_task(task)["preprocess"]["spacing_mm"],
        normalize=task.normalizations,
        licence=licence,
        held_out={} if exported else {task.name: _describe_fold(source, task)},
    )


def export_pretrained(
    run: Path, output: Path, *, channels: int | None = None, checkpoint: str = "last", licence: str = "not stated"
) -> Path:
    """Write the encoder that a pretraining has trained; see `export_encoder`.

    Its running statistics are those of all tasks together, weighed as the batches were. The card names every task with
    its cases, voxel size and normalisation.

    Args:
        run: folder of the pretraining.
        output: folder to write; it must be new or empty.
        channels: of its volumes, as one of the tasks has them: each number has a first layer of its own. ``None`` takes
            the number that most tasks have, and the smaller one of equals.
        checkpoint: the ``last``, or ``best`` by the mean validation score.
        licence: of the weights.

    Raises:
        ConfigError: no task has so many channels.
        InputError: ``run`` holds no pretraining, or ``output`` is not empty.
        WeightsError: the checkpoint is missing or damaged.
    """
    folder = PretrainingFolder(run)
    config, splits = folder.load_pretraining(), folder.load_splits()
    tasks = config.tasks
    known = config.order_channels()
    chosen = channels or known[0]
    if chosen not in known:
        raise ConfigError(f"{run}: no task has volumes of {chosen} channels; choose of {sorted(known)}")
    cases = {name: len(split.train) for name, split in splits.items()}
    shares = config.measure_shares(cases)
    state = load_checkpoint(folder.checkpoint(checkpoint))["model"]
    encoder = merge_encoders(tasks, state, [shares[task.name] for task in tasks], channels=chosen)
    first = next(task for task in tasks if task.in_channels == chosen)
    spacings = {task.name: dump_task(task)["preprocess"]["spacing_mm"] for task in tasks}
    same = all(spacing == spacings[first.name] for spacing in spacings.values())
    return export_encoder(
        encoder,
        output,
        init=name_init(first.model.init),
        training_data={
            task.name: f"{task.kind} of {cases[task.name]} cases ({task.description or 'no description'}), "
            f"{_write_spacing(spacings[task.name])}, intensities {' + '.join(task.normalizations)}, "
            f"{shares[task.name] / sum(shares.values()):.0%} of the batches"
            for task in tasks
        },
        spacing_mm=spacings[first.name] if same else "those of its tasks",
        normalize=first.normalizations,
        licence=licence,
        held_out={task.name: _describe_fold(folder.record(task.name), task) for task in tasks},
    )


def _describe_fold(record: RunFolder, task: TaskConfig) -> dict[str, int]:
    return {"fold": record.load_fold(), "seed": task.train.fold_seed, "folds": task.train.folds}


def _write_spacing(spacing_mm: Sequence[float] | str) -> str:
    if isinstance(spacing_mm, str):
        return f"{spacing_mm} spacing"
    return "voxels of " + " × ".join(f"{value:g}" for value in spacing_mm) + " mm"


def _create_encoder(model: nn.Module, network: str) -> Encoder:
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, Encoder):
        raise ConfigError(f"model.network {network} has no encoder to export")
    return encoder


def push_encoder(folder: Path, repository: str, *, private: bool = True) -> str:
    """Put an exported encoder on the Hugging Face hub.

    Args:
        folder: as `export_encoder` wrote it.
        repository: ``user/name``; it is created if need be.
        private: whether a new repository is hidden from others.

    Returns:
        The commit, which ``user/name@COMMIT`` names from then on.

    Raises:
        WeightsError: the folder holds no exported encoder, or the hub refuses.
    """
    read_card(folder)
    return push_folder(folder, repository, private=private)


def _write_page(card: Mapping[str, Any]) -> str:
    """Return the page that the hub shows."""
    architecture, trained = card["architecture"], card["training_data"]
    data = trained if isinstance(trained, str) else ", ".join(f"{key}: {value}" for key, value in trained.items())
    licence = card["licence"]
    return f"""---
library_name: medi3d
license: {licence.lower() if licence != "not stated" else "unknown"}
tags: [medical-imaging, 3d, encoder]
---

# {architecture["name"]} in 3D

An encoder of volumes, for CT and MRI. `medi3d.create_encoder("USER/NAME")` creates it.

- channels in: {len(architecture["input_scale"])} ({", ".join(architecture["input_scale"])})
- maps: channels {list(card["channels"])}, strides {[list(stride) for stride in card["strides"]]}
- started from: {card["init"]}
- trained on: {data}
- voxel size in mm: {card["input"]["spacing_mm"]}; intensities: {", ".join(card["input"]["normalize"]) or "as scaled"}
- axes: {card["input"]["axes"]}
- licence: {licence}
"""
