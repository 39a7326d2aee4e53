"""Unions of labels, and voxels that nobody has annotated, in the metrics of a segmentation."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, gaussian_filter

from medi3d import io
from medi3d.errors import InputError
from medi3d.evaluate import (
    ALL_LABELS,
    ALL_REGIONS,
    SEGMENT_METRICS,
    dice_scores,
    evaluate_segmentation,
    segment_scores,
)
from medi3d.evaluate.surface import measure_surface_distances
from medi3d.volume import LabelMap

SPACING_MM = (2.5, 1.0, 0.5)
SHAPE = (12, 18, 26)
LABELS = {1: "necrosis", 2: "edema", 3: "enhancing"}
REGIONS = {"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)}
IGNORED = 200


def tumour(shift: int = 0, axis: int = 2, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Three nested boxes."""
    label = np.zeros(shape, np.uint8)
    label[2:10, 3:15, 4:20] = 2
    label[3:9, 5:13, 7:17] = 3
    label[5:7, 7:11, 9:14] = 1
    return np.roll(label, shift, axis)


def score(prediction: np.ndarray, reference: np.ndarray, **settings: object) -> dict[str, dict[str, float]]:
    return segment_scores(prediction, reference, labels=LABELS, spacing_mm=SPACING_MM, **settings)  # type: ignore[arg-type]


def shown(scores: dict[str, float]) -> tuple[float, ...]:
    return scores["dice"], scores["surface_dice"], scores["hd95_mm"]


# --- regions


def test_a_region_is_scored_like_one_label_in_place_of_its_labels() -> None:
    prediction, reference = tumour(2), tumour()
    scores = score(prediction, reference, regions=REGIONS)
    assert list(scores) == ["necrosis", "edema", "enhancing", "whole", "core"]
    for name, values in REGIONS.items():
        merged = [np.isin(array, values).astype(np.uint8) for array in (prediction, reference)]
        alone = segment_scores(*merged, labels={1: "it"}, spacing_mm=SPACING_MM)["it"]
        assert scores[name] == pytest.approx(alone)
    for name in LABELS.values():
        assert scores[name] == score(prediction, reference)[name]
    assert dice_scores(prediction, reference, labels=LABELS, regions=REGIONS) == {
        name: values["dice"] for name, values in scores.items()
    }


def test_the_dice_of_a_region_by_hand() -> None:
    prediction = np.where(tumour() == 3, 1, tumour()).astype(np.uint8)  # the parts of the core mistaken for each other
    scores = score(prediction, tumour(), regions=REGIONS)
    assert shown(scores["core"]) == (1.0, 1.0, 0.0)
    assert scores["enhancing"]["dice"] == 0.0
    necrosis, core = 2 * 4 * 5, 6 * 8 * 10
    assert scores["necrosis"]["dice"] == pytest.approx(2 * necrosis / (necrosis + core))


def test_a_region_with_one_of_its_labels_in_one_map_only_is_not_empty() -> None:
    only_edema = np.where(tumour() == 2, 2, 0).astype(np.uint8)
    scores = score(only_edema, tumour(), regions=REGIONS)
    assert 0 < scores["whole"]["dice"] < 1
    assert scores["core"]["dice"] == 0.0
    assert math.isnan(score(only_edema, only_edema, regions=REGIONS)["core"]["dice"])


def test_a_region_called_like_another_label_is_refused() -> None:
    with pytest.raises(InputError, match=r"region 'edema' is called like a label, but holds \[1, 3\]; rename one"):
        score(tumour(), tumour(), regions={"edema": [1, 3]})


# --- ignored voxels


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_what_is_predicted_in_ignored_voxels_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = np.where(gaussian_filter(rng.normal(size=SHAPE), 2) > 0.02, IGNORED, tumour()).astype(np.uint8)
    prediction = tumour(1)
    other = np.where(reference == IGNORED, rng.integers(0, 4, SHAPE), prediction).astype(np.uint8)
    found = [score(array, reference, regions=REGIONS, ignore_label=IGNORED) for array in (prediction, other)]
    np.testing.assert_equal(found[0], found[1])


def test_without_ignored_voxels_nothing_changes() -> None:
    assert score(tumour(2), tumour(), ignore_label=IGNORED) == score(tumour(2), tumour())


def test_overlap_counts_annotated_voxels_only() -> None:
    reference = tumour()
    reference[:, :, 12:] = IGNORED
    scores = score(tumour(2), reference, ignore_label=IGNORED, regions=REGIONS)
    known = reference != IGNORED
    truth, guess = (reference > 0) & known, (tumour(2) > 0) & known
    assert scores["whole"]["dice"] == pytest.approx(2 * (truth & guess).sum() / (truth.sum() + guess.sum()))
    assert dice_scores(tumour(2), reference, labels=LABELS, ignore_label=IGNORED)["edema"] == scores["edema"]["dice"]


def test_labels_that_lie_in_ignored_voxels_only_are_in_neither_map() -> None:
    reference = tumour()
    reference[4:8, 6:12, 8:15] = IGNORED  # all of the necrosis
    scores = score(tumour(), reference, ignore_label=IGNORED)
    assert all(math.isnan(scores["necrosis"][metric]) for metric in SEGMENT_METRICS)
    assert scores["edema"]["dice"] == 1.0
    false_alarm = tumour()
    false_alarm[0, 0, 0] = 1
    diagonal = math.hypot(*(n * mm for n, mm in zip(SHAPE, SPACING_MM, strict=True)))
    found = score(false_alarm, reference, ignore_label=IGNORED)["necrosis"]
    assert shown(found) == pytest.approx((0.0, 0.0, diagonal))


@pytest.mark.parametrize(("axis", "shift"), [(1, 3), (2, 5)])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_surfaces_in_single_slices_are_as_far_apart_as_in_all(axis: int, shift: int, every: int) -> None:
    """A shift along a slice is measured in full; annotated slices have no top and bottom that would hide it."""
    reference = np.zeros((31, 24, 40), np.uint8)
    reference[1:30, 5:16, 8:28] = 2
    prediction = np.roll(reference, shift, axis)
    sparse = np.full_like(reference, IGNORED)
    sparse[::every] = reference[::every]
    full = score(prediction, reference)["edema"]
    found = score(prediction, sparse, ignore_label=IGNORED)["edema"]
    assert found["hd95_mm"] == pytest.approx(full["hd95_mm"], rel=0.05)
    assert found["surface_dice"] == pytest.approx(full["surface_dice"], abs=0.06)
    assert found["dice"] == pytest.approx(full["dice"], abs=0.02)
    perfect = score(reference, sparse, ignore_label=IGNORED)["edema"]
    assert shown(perfect) == (1.0, 1.0, 0.0)
    assert perfect["prediction_lesions"] == perfect["matched_lesions"] == 1  # not one in each annotated slice


def test_a_surface_that_runs_through_ignored_voxels_only_is_not_scored() -> None:
    reference = np.zeros((14, 20, 30), np.uint8)
    reference[2:12, 3:17, 4:26] = IGNORED  # a thick band around the core: where the border is, nobody knows
    reference[5:9, 7:13, 10:20] = 2
    prediction = np.zeros_like(reference)
    prediction[4:10, 6:15, 8:22] = 2
    found = score(prediction, reference, ignore_label=IGNORED)["edema"]
    assert found["dice"] == 1.0
    assert math.isnan(found["surface_dice"])
    assert math.isnan(found["hd95_mm"])
    prediction[0, 0, 0] = 2  # a false alarm where the background is annotated
    found = score(prediction, reference, ignore_label=IGNORED)["edema"]
    assert found["surface_dice"] == 0.0
    assert found["hd95_mm"] > 5


def test_only_elements_that_touch_a_known_voxel_count() -> None:
    mask = tumour() > 0
    known = np.zeros_like(mask)
    known[:, :9] = True
    half = measure_surface_distances(mask, mask, SPACING_MM, known=known)
    whole = measure_surface_distances(mask, mask, SPACING_MM)
    assert 0.4 < half.prediction_areas.sum() / whole.prediction_areas.sum() < 0.7
    everything = measure_surface_distances(mask, mask, SPACING_MM, known=np.ones_like(mask))
    np.testing.assert_array_equal(everything.prediction_areas, whole.prediction_areas)


@pytest.mark.parametrize("seed", range(4))
def test_the_box_that_is_looked_at_changes_nothing(seed: int) -> None:
    """Annotated background beside the box makes a surface count; here everything is computed on the whole volume."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    reference = np.where(noise > 0.5, tumour(), IGNORED).astype(np.uint8)
    known = reference != IGNORED
    nearest = distance_transform_edt(~known, SPACING_MM, return_distances=False, return_indices=True)
    masks = [array[tuple(nearest)] > 0 for array in (tumour(3), reference)]
    distances = measure_surface_distances(*masks, SPACING_MM, known=known)
    found = score(tumour(3), reference, regions=REGIONS, ignore_label=IGNORED)["whole"]
    assert found["surface_dice"] == pytest.approx(distances.dice(1.0), rel=1e-9)
    assert found["hd95_mm"] == pytest.approx(distances.hausdorff_mm(), rel=1e-9)


def test_a_reference_that_annotates_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="every voxel of the reference holds the ignore label 200"):
        score(tumour(), np.full(SHAPE, IGNORED, np.uint8), ignore_label=IGNORED)


# --- files


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    affine = np.array([[0, 0, -0.5, 40.0], [0, -1.0, 0, 30.0], [2.5, 0, 0, -7.0], [0, 0, 0, 1]])
    for case, shift in (("one", 1), ("two", 2), ("three", 0)):
        reference = tumour()
        reference[:, 12:] = IGNORED
        io.write_label_map(LabelMap(tumour(shift)[None], affine), tmp_path / "p" / f"{case}.nii.gz")
        io.write_label_map(LabelMap(reference[None], affine), tmp_path / "r" / f"{case}.nii.gz")
    return tmp_path / "p", tmp_path / "r"


def test_files_are_scored_by_label_and_by_region_with_intervals(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = evaluate_segmentation(*folders, LABELS, regions=REGIONS, ignore_label=IGNORED, bootstrap=200)
    assert not result.problems
    cases, summary = result.write(tmp_path / "out")
    with cases.open() as file:
        rows = list(csv.DictReader(file))
    names = ["necrosis", "edema", "enhancing", "whole", "core"]
    assert [(row["case_id"], row["label"]) for row in rows] == [
        (case, name) for case in ("one", "three", "two") for name in names
    ]
    by_hand = score(tumour(1), io.read_label_map(folders[1] / "one.nii.gz").array[0], regions=REGIONS, ignore_label=200)
    assert float(rows[3]["dice"]) == pytest.approx(by_hand["whole"]["dice"], abs=1e-5)
    known_voxels = ((tumour() > 0)[:, :12]).sum()
    assert float(rows[3]["reference_ml"]) == pytest.approx(known_voxels * 2.5 * 0.5 / 1000, rel=1e-4)
    assert float(rows[3]["prediction_ml"]) == pytest.approx(known_voxels * 2.5 * 0.5 / 1000, rel=1e-4)
    content = json.loads(summary.read_text())
    scores = content["scores"]
    assert list(scores) == [*names, ALL_LABELS, ALL_REGIONS]
    for row, members in ((ALL_LABELS, names[:3]), (ALL_REGIONS, ["whole", "core", "enhancing"])):
        mean = np.mean([scores[name]["dice"]["value"] for name in members])
        assert scores[row]["dice"]["value"] == pytest.approx(mean)
        assert scores[row]["dice"]["low"] < scores[row]["dice"]["value"] < scores[row]["dice"]["high"]
    assert content["settings"]["ignore_label"] == IGNORED
    assert content["settings"]["regions"] == {name: list(values) for name, values in REGIONS.items()}


def test_a_prediction_that_holds_the_ignore_label_is_a_problem(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "one.nii.gz").write_bytes((references / "one.nii.gz").read_bytes())
    result = evaluate_segmentation(*folders, LABELS, ignore_label=IGNORED, bootstrap=20)
    assert "one.nii.gz holds the label values [200]; the labels are 0 and [1, 2, 3]" in result.problems[0]
    with pytest.raises(InputError, match=r"no case could be evaluated: .*holds the label values \[200\]"):
        evaluate_segmentation(*folders, LABELS, bootstrap=20)  # unknown values, where no ignore label is told


@pytest.mark.real_data
def test_real_tumours_score_by_region(real_data: Callable[[str], Path]) -> None:
    """A tumour at half its resolution: its regions agree better than its parts."""
    path = real_data("brain_tumor") / "brats_2013_pat0004_1" / "OTMultiClass.nii.gz"
    reference = io.read_label_map(path)
    array = reference.array[0, 40:130, 30:200, 60:220].astype(np.uint8)
    coarse = array[::2, ::2, ::2].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    labels = {1: "necrosis", 2: "edema", 3: "non_enhancing", 4: "enhancing"}
    regions = {"whole_tumor": (1, 2, 3, 4), "tumor_core": (1, 3, 4)}
    scores = segment_scores(coarse, array, labels=labels, regions=regions, spacing_mm=(1.0, 1.0, 1.0))
    assert scores["whole_tumor"]["dice"] > scores["tumor_core"]["dice"] > scores["non_enhancing"]["dice"] > 0.5
