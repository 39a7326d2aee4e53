"""How well a label map agrees with a reference: overlap, surfaces, volumes and lesions of each label and region.

A region is a set of labels, as BraTS scores them (whole tumour, tumour core); a label is a region of one.

It works on arrays alone, one label at a time in the box around it, so that memory does not depend on how many there
are. What is done about empty labels (Maier-Hein et al. 2024, Metrics Reloaded, Nature Methods 21: such rules must be
stated) is the same for all metrics:

- in neither map: all are NaN and are left out of means (there is nothing to agree on, and a score of 1 would make a
  mean depend on how often the structure is absent);
- in one map only: a miss or a false alarm worsens the mean instead of vanishing from it. Dice, IoU, surface Dice,
  lesion F1 and panoptic quality are 0, and HD95 and the mean surface distance are the diagonal of the volume in
  millimetres, the largest distance that the grid allows (as BraTS does). Recall is 0 where nothing is predicted and NaN
  where there is nothing to find; precision the reverse. A volume's error relative to nothing is NaN.

Voxels of the reference that nobody has annotated (the ignore label) have no say, whatever is predicted there:

- overlaps, volumes, the sizes of lesions and the rules above count annotated voxels only;
- for surfaces and for what is one lesion, each takes what is predicted, and what is true, at the nearest annotated
  voxel, so that an annotated slice between others is no slab of its own with a top and a bottom; and only the surface
  that touches an annotated voxel counts. Where there is none, the surface metrics are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects

from medi3d.errors import InputError
from medi3d.evaluate.lesions import count_lesions
from medi3d.evaluate.surface import measure_surface_distances
from medi3d.types import Array, FloatTriple

SEGMENT_METRICS = (
    "dice",
    "surface_dice",
    "hd95_mm",
    "assd_mm",
    "iou",
    "precision",
    "recall",
    "volume_error_ml",
    "volume_error_percent",
    "absolute_volume_error_ml",
    "lesion_precision",
    "lesion_recall",
    "lesion_f1",
    "panoptic_quality",
)
"""The metrics of :func:`segment_scores`, in the order in which tables show them. Errors of volume are those of the
prediction: negative where it is too small."""

SEGMENT_SIZES = ("prediction_ml", "reference_ml", "prediction_lesions", "reference_lesions", "matched_lesions")
"""What :func:`segment_scores` returns beside them."""

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
    surface: str = "elements",
    lesion_iou: float = 0.1,
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
        surface: what the surface metrics take for a surface, see :mod:`medi3d.evaluate.surface`.
        lesion_iou: least IoU of a detected lesion, see :mod:`medi3d.evaluate.lesions`.

    Returns:
        Name of a label or region → metric (:data:`SEGMENT_METRICS`) or size (:data:`SEGMENT_SIZES`) → value. Empty
        labels and ignored voxels: see the module's rules.

    Raises:
        InputError: the arrays differ in shape or are not 3-D integers, nothing is annotated, or a region is called like
            another label.
        ConfigError: there is no such surface.

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
    criteria = _Criteria(spacing_mm, prediction.shape, tolerance_mm, surface, lesion_iou)
    scores = {}
    for name, values in segments.items():
        found = [of_label[value] for of_label in boxes for value in values if value in of_label]
        box = _enclosing_box(found)
        here = None if known is None else known[box]
        scores[name] = _score_masks(is_in(prediction[box], values), is_in(reference[box], values), here, criteria)
    return scores


@dataclass(frozen=True)
class _Criteria:
    """How masks are compared: the arguments of :func:`segment_scores`, and the shape of the whole volume."""

    spacing_mm: FloatTriple
    shape: tuple[int, ...]
    tolerance_mm: float
    surface: str
    lesion_iou: float


def _score_masks(prediction: Array, reference: Array, known: Array | None, criteria: _Criteria) -> dict[str, float]:
    """Return the metrics and sizes of two masks in the box around both, which is empty where both are."""
    lesions = count_lesions(prediction, reference, lesion_iou=criteria.lesion_iou, known=known)
    surfaces = _score_surfaces(prediction, reference, known, criteria)
    counted = (prediction, reference) if known is None else (prediction & known, reference & known)
    ours, theirs = (int(np.count_nonzero(mask)) for mask in counted)
    shared = int(np.count_nonzero(counted[0] & counted[1]))
    voxel_ml = math.prod(criteria.spacing_mm) / 1000
    error = float(ours - theirs) if ours or theirs else math.nan
    both = lesions.predicted + lesions.reference
    return {
        "dice": _ratio(2 * shared, ours + theirs),
        **surfaces,
        "iou": _ratio(shared, ours + theirs - shared),
        "precision": _ratio(shared, ours),
        "recall": _ratio(shared, theirs),
        "volume_error_ml": error * voxel_ml,
        "volume_error_percent": _ratio(100 * error, theirs),
        "absolute_volume_error_ml": abs(error) * voxel_ml,
        "lesion_precision": _ratio(lesions.matched, lesions.predicted),
        "lesion_recall": _ratio(lesions.matched, lesions.reference),
        "lesion_f1": _ratio(2 * lesions.matched, both),
        "panoptic_quality": _ratio(2 * lesions.panoptic_iou, both),
        "prediction_ml": ours * voxel_ml,
        "reference_ml": theirs * voxel_ml,
        "prediction_lesions": lesions.predicted,
        "reference_lesions": lesions.reference,
        "matched_lesions": lesions.matched,
    }


def _score_surfaces(prediction: Array, reference: Array, known: Array | None, criteria: _Criteria) -> dict[str, float]:
    present = [bool(mask.any()) for mask in (prediction, reference)]
    if all(present):
        distances = measure_surface_distances(
            prediction, reference, criteria.spacing_mm, known=known, surface=criteria.surface
        )
        values = distances.dice(criteria.tolerance_mm), distances.hausdorff_mm(), distances.mean_mm()
    elif any(present):
        worst_mm = math.hypot(*(n * mm for n, mm in zip(criteria.shape, criteria.spacing_mm, strict=True)))
        values = 0.0, worst_mm, worst_mm
    else:
        values = (math.nan,) * 3
    return dict(zip(("surface_dice", "hd95_mm", "assd_mm"), values, strict=True))


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
    mask: Array = label == values[0]
    for value in values[1:]:
        mask |= label == value
    return mask


def _dice(prediction: Array, reference: Array, known: Array | None) -> float:
    if known is not None:
        prediction, reference = prediction & known, reference & known
    shared, ours, theirs = (int(np.count_nonzero(mask)) for mask in (prediction & reference, prediction, reference))
    return _ratio(2 * shared, ours + theirs)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _label_boxes(labels: Array) -> dict[int, _Box]:
    """Return the bounding box of each positive label that occurs."""
    return {value: box for value, box in enumerate(find_objects(labels), start=1) if box is not None}


def _enclosing_box(boxes: Sequence[_Box]) -> _Box:
    """Return the box around others and a voxel more, as far as the volume reaches; one voxel where there are none."""
    if not boxes:
        return (slice(0, 1),) * 3
    return tuple(
        slice(max(min(s.start for s in axis) - 1, 0), max(s.stop for s in axis) + 1)
        for axis in zip(*boxes, strict=True)
    )
