"""Statistics of a data set's raw cases, in native units: what a plan for the network or a report needs to know.

Each case is measured once, when it is prepared, and the numbers lie in its ``case.json``; the fingerprint joins them.
It holds no identifiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from medi3d.config import TaskConfig
from medi3d.io.prepared import PreparedCase
from medi3d.preprocess.foreground import find_background
from medi3d.types import Array
from medi3d.volume import LabelMap, Volume

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
_MAX_VOXELS = 1_000_000


def measure_case(volume: Volume, label: LabelMap | None) -> dict[str, Any]:
    """Measure a raw case: intensities of each channel (outside a constant background) and label volumes.

    Args:
        volume: native intensities ``(C, D, H, W)``.
        label: its label map, if it has one.

    Returns:
        ``{"channels": [{"percentiles": [...], "mean": …, "std": …}], "label_volumes_ml": {value: ml}}``.
    """
    channels = [_measure_channel(channel) for channel in volume.array]
    volumes: dict[str, float] = {}
    if label is not None:
        voxel_ml = abs(float(np.linalg.det(label.affine[:3, :3]))) / 1000
        values, counts = np.unique(label.array, return_counts=True)
        volumes = {str(v): float(n) * voxel_ml for v, n in zip(values.tolist(), counts, strict=True) if v}
    return {"channels": channels, "label_volumes_ml": volumes}


def join_fingerprint(cases: Sequence[PreparedCase], task: TaskConfig) -> dict[str, Any]:
    """Join the measurements of all cases.

    Returns:
        Numbers of cases and groups; minimum, median and maximum over the cases of native spacing, native shape,
        prepared shape, each channel's percentiles, mean and standard deviation, and each label's volume; class counts.
    """
    targets = Counter(task.data.classes[case.target] for case in cases if case.target is not None)
    return {
        "cases": len(cases),
        "groups": len({case.group for case in cases}),
        "native_spacing_mm": _spread([case.record.native.spacing_mm for case in cases]),
        "native_shape": _spread([case.record.native.shape for case in cases]),
        "native_orientations": dict(Counter(case.record.native.orientation for case in cases)),
        "prepared_shape": _spread([case.shape for case in cases]),
        "intensity_percentiles": list(PERCENTILES),
        "channels": {
            name: {
                key: _spread([case.statistics["channels"][index][key] for case in cases])
                for key in ("percentiles", "mean", "std")
            }
            for index, name in enumerate(task.data.channels)
        },
        "label_volumes_ml": {
            name: {"cases": len(volumes), **_spread(volumes)}
            for value, name in task.data.labels.items()
            for volumes in [_label_volumes(cases, value)]
        },
        "class_counts": {name: targets[name] for name in task.data.classes},
    }


def _label_volumes(cases: Sequence[PreparedCase], value: int) -> list[float]:
    present = (case.statistics["label_volumes_ml"].get(str(value)) for case in cases)
    return [volume for volume in present if volume is not None]


def _measure_channel(channel: Array) -> dict[str, Any]:
    voxels = find_background(channel).select(channel)
    voxels = voxels if voxels.size else channel.ravel()
    voxels = voxels[:: max(voxels.size // _MAX_VOXELS, 1)].astype(np.float64)
    return {
        "percentiles": np.percentile(voxels, PERCENTILES).tolist(),
        "mean": float(voxels.mean()),
        "std": float(voxels.std()),
    }


def _spread(rows: Sequence[Any]) -> dict[str, Any]:
    if not rows:
        return {}
    table = np.asarray(rows, dtype=np.float64)
    return {
        "min": table.min(axis=0).tolist(),
        "median": np.median(table, axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
    }
