from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medi3d import io
from medi3d.errors import InputError
from medi3d.evaluate import ALL_LABELS, Evaluation, evaluate_segmentation, find_labels
from medi3d.volume import LabelMap

LABELS = {1: "solid", 2: "subsolid"}
AFFINE = np.array([[0, 0, -0.5, 40.0], [0, -1.0, 0, 30.0], [2.5, 0, 0, -7.0], [0, 0, 0, 1]])
VOXEL_ML = 2.5 * 1.0 * 0.5 / 1000


def label_map(*, solid: slice, subsolid: slice | None = None) -> LabelMap:
    array = np.zeros((1, 9, 12, 16), np.uint8)
    array[0, 2:6, 2:8, solid] = 1
    if subsolid is not None:
        array[0, 7:, 2:8, subsolid] = 2
    return LabelMap(array, AFFINE)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for folder, solid in ((references, slice(2, 8)), (predictions, slice(4, 10))):
        io.write_label_map(label_map(solid=solid), folder / "one.nii.gz")
        io.write_label_map(label_map(solid=slice(3, 9), subsolid=slice(3, 9)), folder / "two.nii.gz")
    return predictions, references


def evaluate(predictions: Path, references: Path) -> Evaluation:
    return evaluate_segmentation(predictions, references, LABELS, bootstrap=100)


def test_cases_are_paired_and_scored(folders: tuple[Path, Path]) -> None:
    result = evaluate(*folders)
    assert [(row["case_id"], row["label"]) for row in result.rows] == [
        ("one", "solid"), ("one", "subsolid"), ("two", "solid"), ("two", "subsolid"),
    ]  # fmt: skip
    assert result.rows[0]["dice"] == pytest.approx(2 * 4 / 12)
    assert result.rows[0]["hd95_mm"] == pytest.approx(1.0)
    assert result.rows[0]["reference_ml"] == pytest.approx(4 * 6 * 6 * VOXEL_ML)
    assert result.scores["solid"]["dice"].value == pytest.approx((2 / 3 + 1) / 2)
    assert result.scores["subsolid"]["dice"].value == 1.0
    assert result.scores["subsolid"]["dice"].cases == 1
    assert result.scores[ALL_LABELS]["dice"].value == pytest.approx((2 / 3 + 1) / 2)


def test_results_are_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    cases, summary = evaluate(*folders).write(tmp_path / "new" / "out")
    with cases.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["dice"] == ""
    assert float(rows[2]["dice"]) == 1.0
    content = json.loads(summary.read_text())
    assert content["cases"] == 2
    assert content["scores"]["solid"]["dice"]["value"] == pytest.approx(5 / 6)
    settings = {"tolerance_mm": 1.0, "bootstrap": 100, "seed": 0, "level": 0.95}
    settings |= {"surface": "elements", "lesion_iou": 0.1, "labels": ["solid", "subsolid"]}
    assert content["settings"] == {**settings, "ignore_label": None, "regions": {}}


def test_missing_and_unmatched_predictions_are_named(folders: tuple[Path, Path]) -> None:
    predictions, _ = folders
    (predictions / "one.nii.gz").rename(predictions / "other.nii.gz")
    result = evaluate(*folders)
    assert (result.cases, result.missing, result.unmatched) == (1, ("one",), ("other",))


def test_a_prediction_may_bear_the_channel_suffix_of_its_image(folders: tuple[Path, Path]) -> None:
    predictions, _ = folders
    (predictions / "one.nii.gz").rename(predictions / "one_0000.nii.gz")
    assert evaluate(*folders).missing == ()


def test_single_files_need_no_common_name(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    result = evaluate(predictions / "two.nii.gz", references / "one.nii.gz")
    assert [row["case_id"] for row in result.rows] == ["one", "one"]
    pairs = evaluate_segmentation({"a": predictions / "two.nii.gz"}, {"a": references / "two.nii.gz"}, LABELS)
    assert pairs.scores["solid"]["dice"].value == 1.0


def shifted(label: LabelMap) -> LabelMap:
    affine = np.array(label.affine)
    affine[2, 3] += 2.5
    return LabelMap(label.array, affine)


def cut(label: LabelMap) -> LabelMap:
    return LabelMap(label.array[:, 1:], label.affine)


def relabelled(label: LabelMap) -> LabelMap:
    return LabelMap(label.array * 3, label.affine)


def sheared(label: LabelMap) -> LabelMap:
    affine = np.array(label.affine)
    affine[1, 0] = 0.5
    return LabelMap(label.array, affine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            shifted,
            r"one.nii.gz has .*origin \(40, 30, -4.5\) mm; its reference .*one.nii.gz has .*origin \(40, 30, -7\)",
        ),
        (cut, r"has \(8, 12, 16\) voxels .D, H, W. of 2.5 × 1 × 0.5 mm, .*; its reference .* has \(9, 12, 16\) voxels"),
        (relabelled, r"label values \[3\]"),
    ],
)
def test_a_case_that_does_not_fit_is_a_problem_and_the_others_go_on(
    folders: tuple[Path, Path], change: Callable[[LabelMap], LabelMap], message: str
) -> None:
    predictions, _ = folders
    path = predictions / "one.nii.gz"
    io.write_label_map(change(io.read_label_map(path)), path)
    result = evaluate(*folders)
    assert result.cases == 1
    assert re.search(message, result.problems[0])
    assert "\n" not in result.problems[0]


def test_a_damaged_file_is_a_problem(folders: tuple[Path, Path]) -> None:
    predictions, _ = folders
    path = predictions / "two.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert "two.nii.gz: damaged gzip" in evaluate(*folders).problems[0]


def test_nothing_to_score_is_an_error(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    stranger = tmp_path / "strangers"
    stranger.mkdir()
    shutil.copy(predictions / "one.nii.gz", stranger / "x.nii.gz")
    with pytest.raises(
        InputError, match=r"no case could be evaluated: 2 references have no prediction .* \(one, two\)"
    ):
        evaluate(stranger, references)


def test_patients_are_drawn_together(folders: tuple[Path, Path]) -> None:
    together = evaluate_segmentation(*folders, LABELS, bootstrap=100, groups={"one": "p", "two": "p"})
    dice = together.scores["solid"]["dice"]
    assert dice.low == dice.high == pytest.approx(dice.value)


def test_axes_that_are_not_at_right_angles_are_a_problem(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        path = folder / "one.nii.gz"
        io.write_label_map(sheared(io.read_label_map(path)), path)
    assert "not at right angles; resample both" in evaluate(*folders).problems[0]


def test_labels_are_found_in_references(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert find_labels(folders[1]) == {1: "label 1", 2: "label 2"}
    empty = LabelMap(np.zeros((1, 9, 12, 16), np.uint8), AFFINE)
    io.write_label_map(empty, tmp_path / "empty.nii.gz")
    with pytest.raises(InputError, match="no label in any reference; expected values above 0"):
        find_labels(tmp_path / "empty.nii.gz")


def test_progress_is_told(folders: tuple[Path, Path]) -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate_segmentation(*folders, LABELS, bootstrap=10, on_case=lambda *call: calls.append(call))
    assert calls == [("one", 1, 2), ("two", 2, 2)]
