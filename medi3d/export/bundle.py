"""A run as a folder to share: ``model.safetensors``, ``config.yaml``, ``fingerprint.json`` and a card.

No optimiser, case ids or paths.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from medi3d.config import dump_task
from medi3d.errors import InputError
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.folder import RunFolder


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
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: not empty; give a new folder")
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
        "init": task.model.init if "/" not in task.model.init else "checkpoint",
        "steps": state["step"],
        "validation_score": state["score"],
        "versions": json.loads(source.environment_file.read_text(encoding="utf-8"))["versions"],
    }
    (output / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
    return output
