"""The next smaller plan, for when memory has run out in spite of the plan."""

from __future__ import annotations

import math
from typing import Any

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.planning.rules import RULES
from medi3d.planning.sizes import find_grain, fit_patch
from medi3d.planning.trial import TrialNetwork
from medi3d.types import IntTriple

_SHRINK = 0.75


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
    factor = next((n for n in range(2, task.batch_size + 1) if task.batch_size % n == 0), task.batch_size + 1)
    batch = task.batch_size // factor  # 0 for a single patch
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
    """Return a patch of three quarters of the voxels at most that the network takes; ``None`` where there is none."""
    grain = find_grain(task, trial.slices)
    patch = fit_patch(task.patch_size, grain, _SHRINK * math.prod(task.patch_size))
    # Below its coarsest stride, a network's decoder begins with a single voxel, which its norms cannot learn from.
    coarsest = trial.strides[-1] if trial.strides else (1, 1, 1)
    edges = zip(patch, task.patch_size, coarsest, strict=True)
    fits = all(edge >= min(stride, before) for edge, before, stride in edges)
    return patch if fits and math.prod(patch) < math.prod(task.patch_size) else None
