"""The next smaller plan, for when memory has run out in spite of the plan."""

from __future__ import annotations

import math
from typing import Any

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.planning.rules import RULES
from medi3d.planning.sizes import find_grain
from medi3d.planning.trial import TrialNetwork
from medi3d.types import IntTriple


def next_smaller(task: TaskConfig) -> dict[str, Any]:
    """Return the keys to change for a run that needs less memory and learns as much as it can.

    First the batch shrinks while ``accumulate`` keeps the optimiser's batch; then feature maps are computed twice in
    place of being kept; then patches shrink.

    Args:
        task: whose training ran out of memory, every planned key set.

    Returns:
        Dotted key → value.

    Raises:
        ConfigError: nothing smaller is left.

    Example:
        >>> from medi3d.config import load_task
        >>> next_smaller(load_task("demo", overrides={"train.batch_size": 6, "model.stages": 3}))
        {'train.batch_size': 3, 'train.accumulate': 2}
    """
    config = task.train
    trial = TrialNetwork(task)
    factor = next(n for n in range(2, task.batch_size + 2) if task.batch_size % n == 0 or n > task.batch_size)
    batch = task.batch_size // factor
    if batch >= _smallest_batch(task, trial):
        return {"train.batch_size": batch, "train.accumulate": config.accumulate * factor}
    if not config.checkpoint_activations:
        return {"train.checkpoint_activations": True}
    patch = _smaller_patch(task, trial)
    if patch is not None:
        return {"train.patch_size": patch}
    raise ConfigError(
        f"{task.name}: no smaller plan than batches of {task.batch_size} with patches of "
        f"{' × '.join(map(str, task.patch_size))} voxels; take a smaller model.backbone, fewer model.stages or "
        "model.decoder_channels, or a machine with more memory"
    )


def _smallest_batch(task: TaskConfig, trial: TrialNetwork) -> int:
    """Return the fewest patches that batch norms can learn from: one, unless a map is a single voxel."""
    single = any(all(-(-n // s) == 1 for n, s in zip(task.patch_size, stride, strict=True)) for stride in trial.strides)
    needs_more = task.kind == "classification" or single or task.train.augment.mixup > 0
    return RULES.smallest_batch if needs_more else 1


def _smaller_patch(task: TaskConfig, trial: TrialNetwork) -> IntTriple | None:
    """Return the patch less one grain along the axis that is longest in grains; ``None`` at the smallest."""
    slices = trial.slices
    grain = find_grain(task, slices)
    axes = [0, 1, 2] if slices is None or slices.step is not None else [0]
    coarsest = trial.strides[-1] if trial.strides else (1, 1, 1)
    least = [max(RULES.smallest_edge, RULES.coarsest_voxels[task.kind] * stride) for stride in coarsest]
    shrunk = {axis: (math.ceil(task.patch_size[axis] / grain[axis]) - 1) * grain[axis] for axis in axes}
    usable = [axis for axis in axes if shrunk[axis] >= min(least[axis], task.patch_size[axis])]
    if not usable:
        return None
    longest = max(usable, key=lambda axis: task.patch_size[axis] / grain[axis])
    patch = [shrunk[axis] if axis == longest else edge for axis, edge in enumerate(task.patch_size)]
    return patch[0], patch[1], patch[2]
