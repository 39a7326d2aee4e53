"""How well a label map agrees with a reference: Dice, surface Dice and HD95 of each label and of each region.

A region is a set of labels, as BraTS scores them (whole tumour, tumour core); a label is a region of one.

It works on arrays alone. What is done about empty labels, for all metrics alike:

- in neither map: the score is NaN and is left out of means (there is nothing to agree on, and a score of 1 would make
  a mean depend on how often the structure is absent);
- in one map only: Dice 0, surface Dice 0, and HD95 the diagonal of the volume in millimetres, the largest distance
  that the grid allows (as BraTS does), so that a miss worsens the mean instead of vanishing from it.

Voxels of the reference that nobody has annotated (the ignore label) have no say, whatever is predicted there:

- overlaps, volumes and the rules above count annotated voxels only;
- for surfaces, each takes what is predicted, and what is true, at the nearest annotated voxel, so that an annotated
  slice between others is no slab of its own with a top and a bottom; and only the surface that touches an annotated
  voxel counts. Where there is none, the surface metrics are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects

from medi3d.errors import InputError
from medi3d.evaluate.surface import measure_surface_distances
from medi3d.types import Array, FloatTriple

SEGMENT_METRICS = ("dice", "surface_dice", "hd95_mm")
"""The metrics of :func:`segment_scores`, in the order in which tables show them."""

Regions = Mapping[str, Sequence[int]]
"""Name → the label values that a region holds."""

_Box = tuple[slice, ...]


def segment_scores(
    prediction: Array,
    reference: Array,
    *,
    labels: Mapping[int, str],
    spacing_mm: FloatTriple,
    tolerance_mm: float = 1.0,
    regions: Regions | None = None,
    ignore_label: int | None = None,
) -> dict[str, dict[str, float]]:
    """Compare two label maps.

    Args:
        prediction: ``(D, H, W)`` integers.
        reference: the truth, same shape.
        labels: label value → name, the foreground values to compare.
        spacing_mm: of ``(D, H, W)``; the axes are taken to be at right angles.
        tolerance_mm: how far apart two surfaces may lie and still agree, for ``surface_dice``.
        regions: unions of labels that are compared as well.
        ignore_label: value of voxels of the reference that nobody has annotated.

    Returns:
        Name of a label or region → metric (:data:`SEGMENT_METRICS`) → value. Empty labels and ignored voxels: see the
        module's rules.

    Raises:
        InputError: the arrays differ in shape or are not 3-D integers, nothing is annotated, or a region is called like
            another label.

    Examples:
        >>> truth = np.zeros((4, 6, 6), np.uint8)
        >>> truth[1:3, 1:3, 1:5] = 1
        >>> guess = np.zeros_like(truth)
        >>> guess[1:3, 1:3, 1:3] = 1
        >>> segment_scores(guess, truth, labels={1: "nodule"}, spacing_mm=(2.0, 1.0, 1.0))["nodule"]["dice"]
        0.6666666666666666
    """
    segments = join_regions(labels, regions)
    known = annotated_voxels(prediction, reference, ignore_label)
    if known is not None:
        nearest = distance_transform_edt(~known, spacing_mm, return_distances=False, return_indices=True)
        prediction, reference = prediction[tuple(nearest)], reference[tuple(nearest)]
    boxes = [_label_boxes(prediction), _label_boxes(reference)]
    worst_mm = math.hypot(*(n * mm for n, mm in zip(prediction.shape, spacing_mm, strict=True)))
    scores = {}
    for name, values in segments.items():
        found = [[of_label[value] for value in values if value in of_label] for of_label in boxes]
        if not all(found):
            scores[name] = _scores_with_empty(present=any(found), worst_mm=worst_mm)
            continue
        box = _enclosing_box([*found[0], *found[1]])
        masks = is_in(prediction[box], values), is_in(reference[box], values)
        here = None if known is None else known[box]
        distances = measure_surface_distances(*masks, spacing_mm, known=here)
        results = (_dice(*masks, here), distances.dice(tolerance_mm), distances.hausdorff_mm())
        scores[name] = dict(zip(SEGMENT_METRICS, results, strict=True))
    return scores


def dice_scores(
    prediction: Array,
    reference: Array,
    *,
    labels: Mapping[int, str],
    regions: Regions | None = None,
    ignore_label: int | None = None,
) -> dict[str, float]:
    """Return the Dice of each label and region alone: name → value, by the rules of :func:`segment_scores`.

    Raises:
        InputError: as :func:`segment_scores`.

    Examples:
        >>> one = np.ones((2, 3, 4), np.uint8)
        >>> dice_scores(one, one, labels={1: "nodule"})
        {'nodule': 1.0}
    """
    known = annotated_voxels(prediction, reference, ignore_label)
    return {
        name: _dice(is_in(prediction, values), is_in(reference, values), known)
        for name, values in join_regions(labels, regions).items()
    }


def join_regions(labels: Mapping[int, str], regions: Regions | None) -> dict[str, tuple[int, ...]]:
    """Return what is scored: name → label values, the labels first.

    Raises:
        InputError: a region bears the name of a label, and is not that label alone.

    Example:
        >>> join_regions({1: "core", 2: "edema"}, {"whole": [1, 2]})
        {'core': (1,), 'edema': (2,), 'whole': (1, 2)}
    """
    segments: dict[str, tuple[int, ...]] = {name: (value,) for value, name in labels.items()}
    for name, values in (regions or {}).items():
        if segments.setdefault(name, tuple(values)) != tuple(values):
            raise InputError(f"region {name!r} is called like a label, but holds {list(values)}; rename one of them")
    return segments


def annotated_voxels(prediction: Array, reference: Array, ignore_label: int | None) -> Array | None:
    """Check two label maps and return where the reference is annotated, ``None`` where it is so throughout.

    Raises:
        InputError: they differ in shape or are not 3-D integers, or nothing is annotated.
    """
    for name, array in (("prediction", prediction), ("reference", reference)):
        if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"the {name} must be a (D, H, W) array of integers; got {array.dtype} {array.shape}")
    if prediction.shape != reference.shape:
        raise InputError(f"prediction and reference differ in shape: {prediction.shape} and {reference.shape}")
    if ignore_label is None:
        return None
    known: Array = reference != ignore_label
    if known.all():
        return None
    if not known.any():
        raise InputError(f"every voxel of the reference holds the ignore label {ignore_label}, so it tells nothing")
    return known


def is_in(label: Array, values: Sequence[int]) -> Array:
    """Tell which voxels of a label map bear one of some labels."""
    mask: Array = np.logical_or.reduce([label == value for value in values])
    return mask


def _dice(prediction: Array, reference: Array, known: Array | None) -> float:
    if known is not None:
        prediction, reference = prediction & known, reference & known
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / total) if total else math.nan


def _scores_with_empty(*, present: bool, worst_mm: float) -> dict[str, float]:
    values = (0.0, 0.0, worst_mm) if present else (math.nan,) * 3
    return dict(zip(SEGMENT_METRICS, values, strict=True))


def _label_boxes(labels: Array) -> dict[int, _Box]:
    """Return the bounding box of each positive label that occurs."""
    return {value: box for value, box in enumerate(find_objects(labels), start=1) if box is not None}


def _enclosing_box(boxes: Sequence[_Box]) -> _Box:
    """Return the box around others and a voxel more, as far as the volume reaches."""
    return tuple(
        slice(max(min(s.start for s in axis) - 1, 0), max(s.stop for s in axis) + 1)
        for axis in zip(*boxes, strict=True)
    )
