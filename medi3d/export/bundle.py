"""A run as a folder to share: ``model.safetensors``, ``config.yaml``, ``fingerprint.json`` and a card.

No optimiser, case ids or paths.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch

from medi3d.config import dump_task
from medi3d.errors import InputError
from medi3d.models.inits import name_init
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import find_runs


def export_runs(runs: Sequence[Path], output: Path, *, checkpoint: str = "best") -> list[Path]:
    """Export runs, as those of all folds, which ``medi3d predict`` averages.

    Args:
        runs: run folders; a folder of folds stands for the runs in it.
        output: folder to write; it must be new or empty.
        checkpoint: as :func:`export_run` takes it.

    Returns:
        ``output`` for a single run; for several a folder in it each, of the run's name.

    Raises:
        InputError: no run, two runs of one name, or ``output`` is not empty.
        WeightsError: a checkpoint is missing or damaged.
    """
    found = find_runs(runs)
    if len(found) == 1:
        return [export_run(found[0], output, checkpoint=checkpoint)]
    names = [run.resolve().name for run in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: two of the runs have this name; export them one by one")
    _check_empty(output)
    return [export_run(run, output / name, checkpoint=checkpoint) for run, name in zip(found, names, strict=True)]


def export_run(run: Path, output: Path, *, checkpoint: str = "best") -> Path:
    """Write what prediction needs of a run; ``medi3d predict`` and ``--init`` take the result like the run itself.

    Args:
        run: run folder.
        output: folder to write; it must be new or empty.
        checkpoint: ``best`` by the validation score, or the ``last``.

    Returns:
        ``output``.

    Raises:
        InputError: ``run`` holds no run, or ``output`` is not empty.
        WeightsError: the checkpoint is missing or damaged.
    """
    source = RunFolder(run)
    task = source.load_config()
    state = load_checkpoint(source.checkpoint(checkpoint))
    _check_empty(output)
    output.mkdir(parents=True, exist_ok=True)
    target = RunFolder(output)
    target.config_file.write_bytes(source.config_file.read_bytes())
    if source.fingerprint_file.is_file():
        target.fingerprint_file.write_bytes(source.fingerprint_file.read_bytes())
    tensors = {name: tensor.contiguous() for name, tensor in state["model"].items()}
    safetensors.torch.save_file(tensors, target.exported)
    card = {
        "task": task.name,
        "kind": task.kind,
        "outputs": list(task.data.classes) or ["background", *task.data.labels.values()],
        "channels": list(task.data.channels),
        "spacing_mm": dump_task(task)["preprocess"]["spacing_mm"],
        "normalize": list(task.normalizations),
        "backbone": task.model.backbone,
        "init": name_init(task.model.init),
        "steps": state["step"],
        "validation_score": state["score"],
        "versions": json.loads(source.environment_file.read_text(encoding="utf-8"))["versions"],
    }
    (output / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
    return output


def _check_empty(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: not empty; give a new folder")
