"""How well a label map agrees with a reference: Dice, surface Dice and HD95 of each label.

It works on arrays alone. What is done about empty labels, for all metrics alike:

- in neither map: the score is NaN and is left out of means (there is nothing to agree on, and a score of 1 would make
  a mean depend on how often the structure is absent);
- in one map only: Dice 0, surface Dice 0, and HD95 the diagonal of the volume in millimetres, the largest distance
  that the grid allows (as BraTS does), so that a miss worsens the mean instead of vanishing from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.ndimage import find_objects

from medi3d.errors import InputError
from medi3d.evaluate.surface import measure_surface_distances
from medi3d.types import Array, FloatTriple

SEGMENT_METRICS = ("dice", "surface_dice", "hd95_mm")
"""The metrics of :func:`segment_scores`, in the order in which tables show them."""

_Box = tuple[slice, ...]


def segment_scores(
    prediction: Array,
    reference: Array,
    *,
    labels: Mapping[int, str],
    spacing_mm: FloatTriple,
    tolerance_mm: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Compare two label maps.

    Args:
        prediction: ``(D, H, W)`` integers.
        reference: the truth, same shape.
        labels: label value → name, the foreground values to compare.
        spacing_mm: of ``(D, H, W)``; the axes are taken to be at right angles.
        tolerance_mm: how far apart two surfaces may lie and still agree, for ``surface_dice``.

    Returns:
        Label name → metric (:data:`SEGMENT_METRICS`) → value. Empty labels: see the module's rules.

    Raises:
        InputError: the arrays differ in shape or are not 3-D integers.

    Examples:
        >>> truth = np.zeros((4, 6, 6), np.uint8)
        >>> truth[1:3, 1:3, 1:5] = 1
        >>> guess = np.zeros_like(truth)
        >>> guess[1:3, 1:3, 1:3] = 1
        >>> segment_scores(guess, truth, labels={1: "nodule"}, spacing_mm=(2.0, 1.0, 1.0))["nodule"]["dice"]
        0.6666666666666666
    """
    _check_label_arrays(prediction, reference)
    prediction_boxes, reference_boxes = _label_boxes(prediction), _label_boxes(reference)
    worst_mm = math.hypot(*(n * mm for n, mm in zip(prediction.shape, spacing_mm, strict=True)))
    scores = {}
    for value, name in labels.items():
        boxes = [box for box in (prediction_boxes.get(value), reference_boxes.get(value)) if box is not None]
        if len(boxes) < 2:
            scores[name] = _scores_with_empty(present=bool(boxes), worst_mm=worst_mm)
            continue
        box = _enclosing_box(boxes)
        masks = prediction[box] == value, reference[box] == value
        distances = measure_surface_distances(*masks, spacing_mm)
        values = (_dice(*masks), distances.dice(tolerance_mm), distances.hausdorff_mm())
        scores[name] = dict(zip(SEGMENT_METRICS, values, strict=True))
    return scores


def dice_scores(prediction: Array, reference: Array, *, labels: Mapping[int, str]) -> dict[str, float]:
    """Return the Dice of each label alone: label name → value, by the rules of :func:`segment_scores`.

    Raises:
        InputError: the arrays differ in shape or are not 3-D integers.

    Examples:
        >>> one = np.ones((2, 3, 4), np.uint8)
        >>> dice_scores(one, one, labels={1: "nodule"})
        {'nodule': 1.0}
    """
    _check_label_arrays(prediction, reference)
    return {name: _dice(prediction == value, reference == value) for value, name in labels.items()}


def _check_label_arrays(prediction: Array, reference: Array) -> None:
    for name, array in (("prediction", prediction), ("reference", reference)):
        if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"the {name} must be a (D, H, W) array of integers; got {array.dtype} {array.shape}")
    if prediction.shape != reference.shape:
        raise InputError(f"prediction and reference differ in shape: {prediction.shape} and {reference.shape}")


def _dice(prediction: Array, reference: Array) -> float:
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / total) if total else math.nan


def _scores_with_empty(*, present: bool, worst_mm: float) -> dict[str, float]:
    values = (0.0, 0.0, worst_mm) if present else (math.nan,) * 3
    return dict(zip(SEGMENT_METRICS, values, strict=True))


def _label_boxes(labels: Array) -> dict[int, _Box]:
    """Return the bounding box of each positive label that occurs."""
    return {value: box for value, box in enumerate(find_objects(labels), start=1) if box is not None}


def _enclosing_box(boxes: list[_Box]) -> _Box:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
