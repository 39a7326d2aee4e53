from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medi3d.errors import InputError
from medi3d.evaluate import SEGMENT_METRICS, SEGMENT_SIZES, dice_scores, segment_scores
from medi3d.evaluate.surface import measure_surface_distances

SPACING_MM = (2.5, 1.0, 0.5)
LABELS = {1: "solid", 2: "subsolid"}


def box(*, start: tuple[int, int, int], size: tuple[int, int, int], value: int = 1) -> np.ndarray:
    array = np.zeros((10, 14, 20), np.uint8)
    array[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = value
    return array


def score(prediction: np.ndarray, reference: np.ndarray, *, tolerance_mm: float = 1.0) -> dict[str, dict[str, float]]:
    return segment_scores(prediction, reference, labels=LABELS, spacing_mm=SPACING_MM, tolerance_mm=tolerance_mm)


def test_equal_maps_score_perfectly() -> None:
    array = box(start=(2, 3, 4), size=(4, 5, 6))
    found = score(array, array)["solid"]
    assert list(found) == [*SEGMENT_METRICS, *SEGMENT_SIZES]
    errors = {name for name in SEGMENT_METRICS if name.endswith(("_mm", "_ml", "_percent"))}
    assert {name: found[name] for name in SEGMENT_METRICS} == {n: 0.0 if n in errors else 1.0 for n in SEGMENT_METRICS}


def test_dice_is_twice_the_overlap_over_the_sum() -> None:
    reference = box(start=(2, 3, 4), size=(4, 5, 6))
    prediction = box(start=(3, 4, 4), size=(4, 5, 6))
    assert score(prediction, reference)["solid"]["dice"] == pytest.approx(2 * (3 * 4 * 6) / (2 * 4 * 5 * 6))
    assert dice_scores(prediction, reference, labels=LABELS)["solid"] == score(prediction, reference)["solid"]["dice"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_is_measured_in_millimetres_of_its_axis(axis: int) -> None:
    reference = box(start=(2, 3, 4), size=(4, 6, 9))
    prediction = np.roll(reference, 2, axis=axis)
    distances = measure_surface_distances(prediction, reference, SPACING_MM)
    assert distances.hausdorff_mm(100) == pytest.approx(2 * SPACING_MM[axis])


def test_area_weights_give_the_share_of_the_faces_within_tolerance() -> None:
    # A slab one voxel thick at the far end of D against one shifted by two slices: both large faces are 5 mm off, the
    # share of the surface within 1 mm is that of no element; within 5 mm it is all of them.
    reference = box(start=(2, 2, 2), size=(2, 9, 14))
    prediction = np.roll(reference, 4, axis=0)
    assert score(prediction, reference, tolerance_mm=4.9)["solid"]["surface_dice"] == 0.0
    assert score(prediction, reference, tolerance_mm=10.0)["solid"]["surface_dice"] == 1.0


def test_the_area_of_a_box_is_that_of_its_faces_up_to_the_bevelled_edges() -> None:
    size = (6, 10, 16)
    mask = box(start=(2, 2, 2), size=size)
    distances = measure_surface_distances(mask, mask, SPACING_MM)
    d, h, w = (n * mm for n, mm in zip(size, SPACING_MM, strict=True))
    assert distances.prediction_areas.sum() == pytest.approx(2 * (d * h + d * w + h * w), rel=0.12)
    assert distances.prediction_areas.sum() < 2 * (d * h + d * w + h * w)


def test_a_mask_at_the_edge_of_the_volume_has_a_closed_surface() -> None:
    middle = box(start=(3, 3, 3), size=(4, 5, 6))
    corner = box(start=(0, 0, 0), size=(4, 5, 6))
    areas = [measure_surface_distances(mask, mask, SPACING_MM).prediction_areas.sum() for mask in (middle, corner)]
    assert areas[0] == pytest.approx(areas[1])


def test_hausdorff_is_the_larger_of_the_two_directions() -> None:
    reference = box(start=(2, 3, 2), size=(4, 5, 6))
    prediction = reference.copy()
    prediction[2:6, 3:8, 14:18] = 1  # a second component that the reference lacks
    forth = measure_surface_distances(prediction, reference, SPACING_MM).hausdorff_mm()
    back = measure_surface_distances(reference, prediction, SPACING_MM).hausdorff_mm()
    assert forth == back > 4.0


def test_a_label_in_neither_map_is_undefined_and_in_one_map_the_worst() -> None:
    reference = box(start=(2, 3, 4), size=(4, 5, 6))
    empty = np.zeros_like(reference)
    nothing = score(empty, empty)["solid"]
    assert all(math.isnan(nothing[metric]) for metric in SEGMENT_METRICS)
    assert all(nothing[size] == 0 for size in SEGMENT_SIZES)
    diagonal = math.hypot(10 * 2.5, 14 * 1.0, 20 * 0.5)
    missed, invented = score(empty, reference)["solid"], score(reference, empty)["solid"]
    for found in (missed, invented):
        assert found["hd95_mm"] == found["assd_mm"] == pytest.approx(diagonal)
        assert all(found[n] == 0 for n in ("dice", "iou", "surface_dice", "lesion_f1", "panoptic_quality"))
    volume_ml = 4 * 5 * 6 * math.prod(SPACING_MM) / 1000
    assert missed["volume_error_ml"] == -missed["absolute_volume_error_ml"] == pytest.approx(-volume_ml)
    assert invented["volume_error_ml"] == invented["absolute_volume_error_ml"] == pytest.approx(volume_ml)
    assert missed["volume_error_percent"] == -100
    assert missed["recall"] == missed["lesion_recall"] == invented["precision"] == invented["lesion_precision"] == 0
    undefined = [(missed, "precision"), (missed, "lesion_precision"), (invented, "recall")]
    undefined += [
        (invented, "lesion_recall"),
        (invented, "volume_error_percent"),
        (score(empty, reference)["subsolid"], "dice"),
    ]
    assert all(math.isnan(found[metric]) for found, metric in undefined)


def test_labels_are_scored_apart() -> None:
    reference = box(start=(1, 1, 1), size=(3, 4, 5)) + box(start=(5, 7, 9), size=(3, 4, 5), value=2)
    prediction = np.where(reference == 2, 1, reference).astype(np.uint8)
    scores = score(prediction, reference)
    assert scores["solid"]["dice"] == pytest.approx(2 / 3)
    assert scores["subsolid"]["dice"] == 0.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), axes=st.permutations([0, 1, 2]))
def test_scores_are_symmetric_bounded_and_do_not_depend_on_the_order_of_the_axes(seed: int, axes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    first, second = ((rng.random((5, 6, 7)) > 0.7).astype(np.uint8) for _ in range(2))
    one = score(first, second)["solid"]
    swapped = {
        "precision": one["recall"],
        "lesion_precision": one["lesion_recall"],
        "volume_error_ml": -one["volume_error_ml"],
        "prediction_ml": one["reference_ml"],
        "prediction_lesions": one["reference_lesions"],
    }
    back = score(second, first)["solid"]
    assert {name: back[name] for name in swapped} == pytest.approx(swapped)
    same = ("dice", "iou", "surface_dice", "hd95_mm", "assd_mm", "lesion_f1", "panoptic_quality", "matched_lesions")
    assert {name: back[name] for name in same} == pytest.approx({name: one[name] for name in same})
    turned = segment_scores(
        first.transpose(axes),
        second.transpose(axes),
        labels={1: "solid"},
        spacing_mm=tuple(SPACING_MM[axis] for axis in axes),
        tolerance_mm=1.0,
    )["solid"]
    assert turned == pytest.approx(one)
    assert 0 <= one["dice"] <= 1
    assert 0 <= one["surface_dice"] <= 1


def test_wrong_arrays_are_refused() -> None:
    array = box(start=(2, 3, 4), size=(4, 5, 6))
    with pytest.raises(InputError, match=r"differ in shape: \(9, 14, 20\) and \(10, 14, 20\)"):
        score(array[1:], array)
    with pytest.raises(InputError, match=r"the prediction must be a .* array of integers; got float32"):
        score(array.astype(np.float32), array)
