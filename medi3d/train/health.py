"""Losses that stop being numbers, runs that diverge, memory that does not suffice: found, and said with the way out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

import torch

from medi3d import planning
from medi3d.config import SHARED_KEYS, TaskConfig
from medi3d.errors import ConfigError, Medi3dError
from medi3d.runs.folder import RunFolder

WINDOW, FIRST = 50, 10
"""Steps over whose losses the running median is taken, and first steps whose median a run begins with."""

NOISE, SHARE, LEAST = 6.0, 0.5, 0.5
"""A run has diverged where its median is above the best by so many standard deviations, such a share of the best, and
so much. Measured on hippocampus: healthy runs of 300 to 400 steps (AdamW, SGD, random weights) stay below 0.3 standard
deviations; SGD at a thousand times its rate rises from 3 to 20. A hundred times is no divergence there: with batch
norms and clipped gradients the loss still falls, slowly, for AdamW and SGD alike."""


class LossHistory:
    """The recent losses of a run, and the best that their running median has been.

    Medians, because single batches may do badly: half of the last steps must have. A standard deviation is estimated by
    1.48 times the median absolute deviation, which outliers leave alone (Rousseeuw and Croux 1993).
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.best = math.inf
        self._deviation = 0.0

    @property
    def median(self) -> float:
        """Median of the last losses."""
        return median(self._recent)

    def diverges(self, value: float) -> bool:
        """Take the loss of a step; return whether the last ones are far above what this run has reached."""
        self._recent.append(value)
        count = len(self._recent)
        if count != FIRST and count < WINDOW:
            return False
        now = self.median
        if now < self.best:
            self.best = now
            self._deviation = 1.48 * median(abs(loss - now) for loss in self._recent)
        return now - self.best > max(NOISE * self._deviation, SHARE * abs(self.best), LEAST)


def check_loss(
    value: float, step: int, case_ids: Sequence[str], folder: RunFolder, history: LossHistory | None = None
) -> None:
    """Check the loss of one step.

    Args:
        value: the loss.
        step: number of the step, from 1.
        case_ids: the cases of its batch.
        folder: of the run, whose last checkpoint is named.
        history: the losses before; without one, only NaN and infinity are looked for.

    Raises:
        Medi3dError: the loss is no number, or has diverged.
    """
    where = f"{folder.path}: step {step}, cases {', '.join(case_ids)}"
    if not math.isfinite(value):
        raise Medi3dError(f"{where}: the loss is {value}; {_way_out(folder)}")
    if history is not None and history.diverges(value):
        raise Medi3dError(
            f"{where}: the loss has diverged: its median over the last {WINDOW} steps is {history.median:.3g}, after "
            f"{history.best:.3g} at best; {_way_out(folder)}"
        )


def _way_out(folder: RunFolder) -> str:
    saved = f"the last good checkpoint is {folder.last}" if folder.last.is_file() else "no checkpoint was written yet"
    return f"look at these cases, and train again with a lower --learning-rate or with --set train.grad_clip=1; {saved}"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory does not suffice, on a GPU or on the host.

    Examples:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "cublas_status_alloc_failed")
"""How torch's allocators, and the libraries under it, say it."""

FLAGS = {
    "train.patch_size": "--patch-size",
    "train.batch_size": "--batch-size",
    "train.accumulate": "--accumulate",
}
"""Dotted key → flag of ``medi3d train``, for keys that a smaller plan changes; others go by ``--set``."""


def explain_out_of_memory(error: BaseException, task: TaskConfig, *, among_others: bool = False) -> Medi3dError:
    """Return an error that names the next smaller plan, as flags to paste; of one task among others, for it alone."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    patch = " × ".join(map(str, task.patch_size))
    try:
        way_out = f"train again with {as_flags(planning.next_smaller(task), task=task.name if among_others else None)}"
    except ConfigError as nothing_smaller:
        way_out = str(nothing_smaller)
    return Medi3dError(f"out of memory with {task.batch_size} patches of {patch} voxels ({reason}); {way_out}")


def as_flags(values: Mapping[str, object], *, task: str | None = None) -> str:
    """Write keys of a configuration as flags of ``medi3d train``, or of ``medi3d pretrain`` for one of its tasks.

    Examples:
        >>> as_flags({"train.patch_size": (32, 48, 40), "train.checkpoint_activations": True})
        '--patch-size 32,48,40 --set train.checkpoint_activations=true'
        >>> as_flags({"train.batch_size": 2}, task="liver")
        '--set liver.train.batch_size=2'
    """
    if task is not None:
        return " ".join(f"--set {_for_task(task, key)}={_as_yaml(value)}" for key, value in values.items())
    return " ".join(
        f"{FLAGS[key]} {_plain(value)}" if key in FLAGS else f"--set {key}={_plain(value)}"
        for key, value in values.items()
    )


def _for_task(task: str, key: str) -> str:
    """Return the key of one task of a pretraining, or that of all where they must share it."""
    return key if key in SHARED_KEYS else f"{task}.{key}"


def _as_yaml(value: object) -> str:
    return f"[{_plain(value)}]" if isinstance(value, tuple | list) else _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
