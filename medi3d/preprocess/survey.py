"""What must be known of all cases before the first is prepared: their median spacing, and their labels' intensities.

The answers become part of the task's configuration, so that training and prediction use the same ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.io.foreground import is_foreground
from medi3d.io.raw import Header
from medi3d.preprocess.cases.raw_case import RawCase
from medi3d.preprocess.cases.reading import read_image, read_label
from medi3d.preprocess.foreground import find_background, sample_voxels
from medi3d.preprocess.intensity import DatasetIntensities
from medi3d.preprocess.orient import prepared_orientation
from medi3d.preprocess.quality.regions import spacing_along
from medi3d.types import Array, FloatTriple
from medi3d.volume import CANONICAL_ORIENTATION

logger = logging.getLogger(__name__)

VOXELS_A_CASE = 10_000
"""Every case has the same say, however large its labels are; nnU-Net takes as many."""

_PERCENTILES = (0.5, 99.5)
_ROUGH_VOXELS = 2**20


@dataclass(frozen=True)
class CaseSurvey:
    """What one case tells.

    Args:
        header: of its first file.
        intensities: voxels of each channel, ``(C, n)``; ``None`` where they are not asked for.
    """

    header: Header
    intensities: Array | None


MapFunction = Callable[[Callable[[RawCase], CaseSurvey | None], Iterable[RawCase]], Iterable[CaseSurvey | None]]
"""As the built-in ``map``; an executor's ``map`` works on many cases at a time."""


def needs_survey(task: TaskConfig) -> bool:
    """Tell whether the task's configuration leaves something to be measured on the data set."""
    return task.preprocess.spacing_mm == "median" or _needs_intensities(task)


def resolve(task: TaskConfig, cases: Sequence[RawCase], map_function: MapFunction = map) -> TaskConfig:
    """Fill in what the task's configuration leaves to be measured on the data set.

    Args:
        task: the task.
        cases: all cases of the data set; those that cannot be read have no say (preparing them tells why).
        map_function: the built-in ``map``, or that of an executor.

    Returns:
        The task with ``preprocess.spacing_mm`` and ``preprocess.dataset_intensities`` as numbers; the same one where
        nothing is missing.

    Raises:
        InputError: none of the cases can be read.
    """
    if not needs_survey(task):
        return task
    surveys = [found for found in map_function(partial(survey_case, task=task), cases) if found is not None]
    if not surveys:
        raise InputError(
            f"none of the {len(cases)} cases can be read, so their median spacing and intensities cannot be measured; "
            "with a fixed --spacing and another preprocess.normalize, what is wrong with each case is listed"
        )
    preprocess = task.preprocess
    if preprocess.spacing_mm == "median":
        preprocess = replace(preprocess, spacing_mm=median_spacing([survey.header for survey in surveys]))
    if _needs_intensities(task):
        samples = [survey.intensities for survey in surveys if survey.intensities is not None]
        preprocess = replace(preprocess, dataset_intensities=join_foreground(samples))
    return replace(task, preprocess=preprocess)


def survey_case(raw: RawCase, task: TaskConfig) -> CaseSurvey | None:
    """Read of a case what the task needs to know; ``None`` where it cannot be read or holds nothing of use."""
    try:
        header = io.read_header(raw.images[0])
        return CaseSurvey(header, measure_foreground(raw, task) if _needs_intensities(task) else None)
    except (InputError, OSError, MemoryError) as error:
        logger.debug("case %s has no say in the survey: %s", raw.case_id, type(error).__name__)
        return None


def measure_foreground(raw: RawCase, task: TaskConfig) -> Array:
    """Return intensities of up to 10,000 labelled voxels of a case, evenly spread, ``(C, n)`` float32.

    Where the case has no label map, they are voxels of each channel's foreground.

    Raises:
        InputError: the case cannot be read, or its label map holds background only.
    """
    volume = read_image(raw.images, channels=task.in_channels, frame=raw.frame, quantities=task.quantities)
    array, label = volume.array, read_label(raw, volume.grid, task)
    if label is None:
        voxels = [find_background(channel).select(sample_voxels(channel, _ROUGH_VOXELS)) for channel in array]
        size = min(VOXELS_A_CASE, *(channel.size for channel in voxels))
        return np.stack([channel[_spread(channel.size, size)] for channel in voxels]).astype(np.float32)
    return array[(slice(None), *_labelled_voxels(label.array[0], task.data.ignore_label))].astype(np.float32)


def join_foreground(samples: Sequence[Array]) -> tuple[DatasetIntensities, ...]:
    """Join the cases' samples, ``(C, n)`` each.

    Returns:
        Of each channel the 0.5 and 99.5 percentiles, mean and standard deviation (Isensee 2021, nnU-Net's CT scheme).

    Raises:
        InputError: a channel has the same value everywhere.

    Example:
        >>> join_foreground([np.array([[0.0, 1.0]]), np.array([[2.0, 3.0]])])[0][2]
        1.5
    """
    joined: list[DatasetIntensities] = []
    for channel in range(samples[0].shape[0]):
        voxels = np.sort(np.concatenate([sample[channel] for sample in samples]).astype(np.float64))
        low, high = np.percentile(voxels, _PERCENTILES).tolist()
        if low == high:
            raise InputError(
                f"the labelled voxels of channel {channel + 1} all have the value {low:g} over the whole data set, "
                "so preprocess.normalize cannot be 'dataset' for it"
            )
        joined.append((low, high, float(voxels.mean()), float(voxels.std())))
    return tuple(joined)


def median_spacing(headers: Sequence[Header]) -> FloatTriple:
    """Return the median spacing, millimetres, along the axes (D, H, W) of the prepared arrays.

    Series whose slices are thick keep these as D, whatever their plane, if the median then is coarsest along D (see
    :func:`~medi3d.preprocess.orient.prepared_orientation`); else D runs from inferior to superior in every case.
    """
    grids = [header.grid for header in headers]
    d, h, w = _medians([spacing_along(grid, prepared_orientation(grid, None)) for grid in grids])
    return (d, h, w) if d > max(h, w) else _medians([spacing_along(grid, CANONICAL_ORIENTATION) for grid in grids])


def _needs_intensities(task: TaskConfig) -> bool:
    return "dataset" in task.normalizations and not task.preprocess.dataset_intensities


def _medians(spacings: Sequence[FloatTriple]) -> FloatTriple:
    d, h, w = np.round(np.median(spacings, axis=0), 6).tolist()
    return d, h, w


def _spread(count: int, wanted: int) -> Array:
    """Return ``wanted`` indices below ``count``, evenly spread; all where there are no more."""
    return np.linspace(0, count - 1, min(wanted, count)).astype(np.int64)


def _labelled_voxels(label: Array, ignore_label: int | None) -> tuple[Array, Array, Array]:
    """Return the indices (d, h, w) of labelled voxels of ``(D, H, W)``, evenly spread, looking plane by plane."""
    counts = np.array([np.count_nonzero(is_foreground(plane, ignore_label)) for plane in label])
    if not counts.any():
        raise InputError("the label map holds background only")
    ranks = _spread(int(counts.sum()), VOXELS_A_CASE)
    first = np.cumsum(counts) - counts
    plane_of = np.searchsorted(first, ranks, side="right") - 1
    flat = [
        np.flatnonzero(is_foreground(label[d], ignore_label))[ranks[plane_of == d] - first[d]]
        for d in np.flatnonzero(counts)
        if (plane_of == d).any()
    ]
    h, w = np.divmod(np.concatenate(flat), label.shape[2])
    return plane_of, h, w
