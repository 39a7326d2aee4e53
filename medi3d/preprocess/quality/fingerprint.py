"""Statistics of a data set's raw cases, in native units: what a plan for the network or a report needs to know.

Each case is measured once, when it is prepared, and the numbers lie in its ``case.json``; the fingerprint joins them.
It holds no identifiers. Percentiles, means and deviations come from up to 2^15 voxels a channel (see
:func:`~medi3d.preprocess.foreground.sample_voxels`), extremes and label volumes from all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from medi3d.config import TaskConfig
from medi3d.io.foreground import count_labels
from medi3d.io.prepared import PreparedCase, Slabs
from medi3d.preprocess.foreground import find_background, sample_voxels
from medi3d.preprocess.quality.regions import measure_labels
from medi3d.types import Array
from medi3d.volume import LabelMap, Volume

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
_MAX_VOXELS = 2**15


def measure_case(volume: Volume, label: LabelMap | None, *, ignore_label: int | None = None) -> dict[str, Any]:
    """Measure a raw case: the intensities of each channel's foreground, and its labels.

    Args:
        volume: native intensities ``(C, D, H, W)`` of the stored type; they may be a memory map.
        label: its label map, if it has one.
        ignore_label: value of voxels that nobody has annotated.

    Returns:
        ``{"channels": [{"percentiles": [...], "mean": …, "std": …, "min": …, "max": …, "background": …, "air": …,
        "overlap": …}], "labels": {value: …}}``; ``overlap`` is the share of the smaller one of this and the first
        channel's foreground that both cover. For ``labels`` see
        :func:`~medi3d.preprocess.quality.regions.measure_labels`. Where the task has an ignore label, ``annotated`` is
        the share of the voxels that bear another one.
    """
    backgrounds = [find_background(channel) for channel in volume.array]
    samples = [sample_voxels(channel, _MAX_VOXELS) for channel in volume.array]
    masks = [background.foreground(voxels) for background, voxels in zip(backgrounds, samples, strict=True)]
    channels = [
        {
            **_measure_voxels(voxels[mask] if mask.any() else voxels),
            "min": float(channel.min()),
            "max": float(channel.max()),
            "background": background.value,
            "air": background.ceiling,
            "overlap": _overlap(masks[0], mask),
        }
        for channel, voxels, mask, background in zip(volume.array, samples, masks, backgrounds, strict=True)
    ]
    if label is None:
        return {"channels": channels, "labels": {}}
    labels = measure_labels(volume, label, backgrounds, ignore_label=ignore_label)
    measured: dict[str, Any] = {"channels": channels, "labels": labels}
    if ignore_label is not None:
        measured["annotated"] = float(np.mean([np.mean(plane != ignore_label) for plane in label.array[0]]))
    return measured


class CountedLabels:
    """Slabs of a prepared label map that pass through and leave the number of voxels of each label behind.

    Args:
        slabs: of the prepared label map ``(1, D, H, W)``, asked for in order and each once.
        statistics: what :func:`measure_case` gave; each of ``labels`` gets ``prepared_voxels``, complete with the last
            slab.
    """

    def __init__(self, slabs: Slabs, statistics: dict[str, Any]) -> None:
        self._slabs, self._labels = slabs, statistics["labels"]
        for values in self._labels.values():
            values["prepared_voxels"] = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(1, D, H, W)``."""
        return self._slabs.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the labels."""
        return self._slabs.dtype

    def slab(self, start: int, stop: int) -> Array:
        """Return the planes ``start`` to ``stop``, counted."""
        slab = self._slabs.slab(start, stop)
        counts = np.sum(count_labels(slab[0]), axis=0).tolist()
        for value, values in self._labels.items():
            values["prepared_voxels"] += counts[int(value)]
        return slab


def join_fingerprint(cases: Sequence[PreparedCase], task: TaskConfig) -> dict[str, Any]:
    """Join the measurements of all cases.

    Returns:
        Numbers of cases and groups; minimum, median and maximum over the cases of native spacing, shape and field of
        view, prepared shape, each channel's percentiles, mean, standard deviation and extremes, and each label's volume
        and mean intensities; class counts.
    """
    targets = Counter(task.data.classes[case.target] for case in cases if case.target is not None)
    grids = [case.record.native for case in cases]
    return {
        "cases": len(cases),
        "groups": len({case.group for case in cases}),
        "native_spacing_mm": _spread([grid.spacing_mm for grid in grids]),
        "native_shape": _spread([grid.shape for grid in grids]),
        "field_of_view_mm": _spread([np.multiply(grid.shape, grid.spacing_mm) for grid in grids]),
        "native_orientations": dict(Counter(grid.orientation for grid in grids)),
        "prepared_shape": _spread([case.shape for case in cases]),
        "intensity_percentiles": list(PERCENTILES),
        "channels": {
            name: {
                key: _spread([case.statistics["channels"][index][key] for case in cases])
                for key in ("percentiles", "mean", "std", "min", "max")
            }
            for index, name in enumerate(task.data.channels)
        },
        "labels": {name: _join_label(cases, str(value)) for value, name in task.data.labels.items()},
        "class_counts": {name: targets[name] for name in task.data.classes},
    }


def _join_label(cases: Sequence[PreparedCase], value: str) -> dict[str, Any]:
    present = [case.statistics["labels"][value] for case in cases if value in case.statistics["labels"]]
    return {"cases": len(present), **{key: _spread([one[key] for one in present]) for key in ("volume_ml", "means")}}


def _measure_voxels(voxels: Array) -> dict[str, Any]:
    numbers = voxels.astype(np.float64)
    return {
        "percentiles": np.percentile(voxels, PERCENTILES).tolist(),
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
    }


def _overlap(first: Array, second: Array) -> float:
    smaller = min(np.count_nonzero(first), np.count_nonzero(second))
    return float(np.count_nonzero(first & second) / smaller) if smaller else 0.0


def _spread(rows: Sequence[Any]) -> dict[str, Any]:
    if not rows:
        return {}
    table = np.asarray(rows, dtype=np.float64)
    return {
        "min": table.min(axis=0).tolist(),
        "median": np.median(table, axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
    }
