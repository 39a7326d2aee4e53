"""Prepared stores of made-up cases, with no files in between: what tests and benchmarks of training train on.

Each label is a ball of its own brightness in noise, each class a further ball without a label, so that a network can
learn both. Everything that is random is drawn from the seed and the number of the case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.io.prepared import ArraySlabs, PreparedCase, case_folder, open_for_writing, read_case, write_case
from medi3d.io.record import Record
from medi3d.preprocess.dataset import finish_store, task_values
from medi3d.preprocess.quality.fingerprint import CountedLabels, measure_case
from medi3d.types import Array, FloatTriple, IntTriple, PathLike
from medi3d.volume import LabelMap, Volume

_NOISE = 0.3


def write_prepared_phantom(
    folder: PathLike,
    task: TaskConfig,
    *,
    cases: int = 6,
    shapes: Sequence[IntTriple] = ((20, 28, 24), (26, 22, 30)),
    rare: Mapping[int, float] | None = None,
    annotated: float = 1.0,
    seed: int = 0,
) -> list[PreparedCase]:
    """Write a finished prepared store for a task, as ``medi3d preprocess`` would.

    Channels, labels, classes, ignore label and spacing are the task's. Every case has every label and the classes take
    turns, unless said otherwise.

    Args:
        folder: of the store.
        task: the task.
        cases: how many; ``case_000``, ``case_001``, …
        shapes: ``(D, H, W)`` of the prepared cases, in turn.
        rare: label → share of the cases that have it, at least one of them.
        annotated: share of the planes that are annotated; the others hold the task's ignore label.
        seed: draws everything.

    Returns:
        The cases, in order.

    Raises:
        ConfigError: ``annotated`` is less than 1 and the task has no ignore label.

    Example:
        >>> from medi3d.config import load_task
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [case.shape for case in write_prepared_phantom(folder, load_task("hippocampus"), cases=2)]
        [(20, 28, 24), (26, 22, 30)]
    """
    if annotated < 1 and task.data.ignore_label is None:
        raise ConfigError(f"{task.name}: planes without annotation ({annotated=}) need data.ignore_label")
    store = Path(folder)
    names = [f"case_{number:03d}" for number in range(cases)]
    holders = {
        value: np.random.default_rng([seed, 0, value]).permutation(cases)[: max(round(share * cases), 1)]
        for value, share in (rare or {}).items()
    }
    with open_for_writing(store, task_values(task)):
        for number, name in enumerate(names):
            rng = np.random.default_rng([seed, 1, number])
            labels = [value for value in task.data.labels if value not in holders or number in holders[value]]
            target = number % len(task.data.classes) if task.data.classes else None
            image, label = _draw_case(rng, task, shapes[number % len(shapes)], labels, target)
            _hide_planes(rng, label, annotated, task.data.ignore_label)
            _write(store, name, task, image, label if task.kind == "segmentation" else None, target)
        finish_store(store, names, task)
    return [read_case(case_folder(store, name)) for name in names]


def _draw_case(
    rng: np.random.Generator, task: TaskConfig, shape: IntTriple, labels: Sequence[int], target: int | None
) -> tuple[Array, Array]:
    """Return an image ``(C, D, H, W)`` float32 and a label map ``(1, D, H, W)`` uint8."""
    image = rng.normal(scale=_NOISE, size=(task.in_channels, *shape)).astype(np.float32)
    label = np.zeros((1, *shape), np.uint8)
    channels = np.arange(task.in_channels)
    for value in labels:
        ball = _draw_ball(rng, shape)
        label[0][ball] = value
        # bright and dark take turns, each channel with a contrast of its own
        image[:, ball] += (((-1) ** value) * (1 + value / 2) / (1 + channels))[:, None].astype(np.float32)
    if target is not None:
        image[:, _draw_ball(rng, shape) & (label[0] == 0)] += np.float32(5 * (target - 0.5))
    return image, label


def _draw_ball(rng: np.random.Generator, shape: IntTriple) -> Array:
    """Return a mask ``(D, H, W)``; the radius is 0.15 to 0.25 of the shortest side, at least a voxel."""
    radius = max(min(shape) * rng.uniform(0.15, 0.25), 1.0)
    center = [rng.uniform(min(radius, n / 2 - 0.5), max(n - 1 - radius, n / 2 - 0.5)) for n in shape]
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    squares = [np.square(axis - c) for axis, c in zip(axes, center, strict=True)]
    mask: Array = squares[0] + squares[1] + squares[2] <= radius**2
    return mask


def _hide_planes(rng: np.random.Generator, label: Array, annotated: float, ignore_label: int | None) -> None:
    """Overwrite planes with the ignore label, all but a share of them (at least one)."""
    planes = label.shape[1]
    hidden = rng.permutation(planes)[max(round(annotated * planes), 1) :]
    if len(hidden):
        label[:, hidden] = ignore_label


def _write(store: Path, name: str, task: TaskConfig, image: Array, label: Array | None, target: int | None) -> None:
    spacing = task.preprocess.spacing_mm
    spacing_mm: FloatTriple = (1.0, 1.0, 1.0) if isinstance(spacing, str) else spacing
    # D runs upward, H backward, W to the left (RAS millimetres)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = spacing_mm[0], -spacing_mm[1], -spacing_mm[2], 1.0
    volume = Volume(image, affine)
    label_map = None if label is None else LabelMap(label, affine)
    statistics = measure_case(volume, label_map, ignore_label=task.data.ignore_label)
    record = Record(native=volume.grid, prepared=volume.grid)
    case = PreparedCase(case_folder(store, name), name, name, target, record, name, statistics)
    slabs = None if label is None else CountedLabels(ArraySlabs(label), statistics)
    write_case(case, ArraySlabs(image), slabs, ignore_label=task.data.ignore_label)
