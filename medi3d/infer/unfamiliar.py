"""What sets a case apart from those that a network was trained on; said beside its prediction, which is made anyway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medi3d.config import TaskConfig
from medi3d.preprocess.quality.fingerprint import measure_case
from medi3d.types import Array, FloatTriple, IntTriple
from medi3d.volume import Grid, Volume

_SPACING_FACTOR = 1.5
"""How far beyond the training cases' range a spacing may lie."""
_INTENSITY_SLACK = 0.5
"""How far beyond their range an intensity may lie, as a share of the distance from 5th to 95th percentile."""
_COMPARED = (5.0, 50.0, 95.0)
_BY_ITSELF = ("mr", "percentile")
"""Normalisations that make an image's scale its own affair."""


def describe_unfamiliar(volume: Volume, task: TaskConfig, fingerprint: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Compare a native volume with the statistics of the training cases.

    Args:
        volume: ``(C, D, H, W)``, as read.
        task: the task.
        fingerprint: of the prepared store that the run was trained on, see
            :func:`~medi3d.preprocess.quality.fingerprint.join_fingerprint`; ``None`` where it is not known.

    Returns:
        A sentence for each oddity.
    """
    if fingerprint is None:
        return ()
    return (
        *_compare_spacing(volume.grid, fingerprint),
        *_compare_orientation(volume.grid, fingerprint),
        *_compare_intensities(volume, task, fingerprint),
    )


def describe_shape(
    native: Grid, prepared: IntTriple, task: TaskConfig, fingerprint: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """Tell of a volume of one slice, and of one that fills the network's window less than any training case did.

    Args:
        native: where the voxels lie.
        prepared: shape of the prepared image.
        task: the task; classifiers see a cube of one size and have no windows.
        fingerprint: see :func:`describe_unfamiliar`; how much of a window training filled is not known without it.
    """
    found = []
    if min(native.shape) == 1:
        found.append(
            f"the image is a single slice, {_times(native.shape)} voxels; the network looks for what goes on in the "
            "slices beside it, and finds none"
        )
    if task.kind == "segmentation" and fingerprint is not None:
        found.extend(_compare_shape(prepared, task.patch_size, fingerprint))
    return tuple(found)


def _compare_shape(prepared: IntTriple, window: IntTriple, fingerprint: Mapping[str, Any]) -> Iterator[str]:
    """Compare axis by axis: what is padded, but no more than in training, is nothing new to the network."""
    known = tuple(int(n) for n in fingerprint["prepared_shape"]["min"])
    if any(here < min(size, least) for here, size, least in zip(prepared, window, known, strict=True)):
        yield (
            f"the prepared image, {_times(prepared)} voxels, is smaller than the network's window, {_times(window)}, "
            f"and than the training cases, {_times((known[0], known[1], known[2]))} or more; it is filled up with zeros"
        )


def _compare_spacing(grid: Grid, fingerprint: Mapping[str, Any]) -> Iterator[str]:
    """Compare the coarsest axis with the training cases' coarsest, and so on, whatever the orientations."""
    known = {key: sorted(fingerprint["native_spacing_mm"][key], reverse=True) for key in ("min", "median", "max")}
    here = sorted(grid.spacing_mm, reverse=True)
    low, high = np.array(known["min"]) / _SPACING_FACTOR, np.array(known["max"]) * _SPACING_FACTOR
    if (here < low).any() or (here > high).any():
        yield (
            f"the voxels are {_times(here)} mm; those of the {fingerprint['cases']} training cases are "
            f"{_times(known['median'])} mm at the median, from {_times(known['min'])} to {_times(known['max'])} mm"
        )


def _compare_orientation(grid: Grid, fingerprint: Mapping[str, Any]) -> Iterator[str]:
    known = fingerprint["native_orientations"]
    if grid.orientation not in known:
        names = ", ".join(sorted(known, key=known.get, reverse=True))
        yield (
            f"the axes run along {grid.orientation}, those of the training cases along {names}; the image is turned by "
            "what its header says, so check that left and right are where they belong"
        )


def _compare_intensities(volume: Volume, task: TaskConfig, fingerprint: Mapping[str, Any]) -> Iterator[str]:
    places = [fingerprint["intensity_percentiles"].index(percentile) for percentile in _COMPARED]
    measured = measure_case(volume, None)["channels"]
    for name, method, channel in zip(task.data.channels, task.normalizations, measured, strict=True):
        known = {key: np.array(values)[places] for key, values in fingerprint["channels"][name]["percentiles"].items()}
        here = np.array(channel["percentiles"])[places]
        slack = _INTENSITY_SLACK * (known["median"][-1] - known["median"][0])
        if (here < known["min"] - slack).any() or (here > known["max"] + slack).any():
            note = "; each image is normalised by itself, so another scale alone does no harm"
            yield (
                f"channel {name}: intensities are {_percentiles(here)} at the 5th, 50th and 95th percentile; those of "
                f"the training cases reach from {_percentiles(known['min'])} to {_percentiles(known['max'])}"
                + (note if method in _BY_ITSELF else "")
            )


def _times(values: list[float] | FloatTriple | IntTriple) -> str:
    return "×".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def _percentiles(values: Array) -> str:
    return "/".join(f"{value:.4g}" for value in values)
