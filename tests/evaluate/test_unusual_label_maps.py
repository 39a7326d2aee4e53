"""Label files as they come: of floats, of one slice, at the border, empty, unknown values; and many at a time."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medi3d import io
from medi3d.errors import InputError
from medi3d.evaluate import evaluate_segmentation, segment_scores
from medi3d.volume import LabelMap

AFFINE = np.diag([0.7, 0.9, 3.0, 1.0])
LABELS = {1: "organ", 2: "lesion"}


def write(path: Path, array: np.ndarray) -> None:
    """Write a ``(D, H, W)`` array of any type; nibabel's axes are the reverse."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array.transpose(2, 1, 0), AFFINE).to_filename(path)


def label(shape: tuple[int, int, int] = (5, 8, 11)) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[:, 2:6, :7] = 1  # up to three sides of the volume
    array[0, 3:5, 2:4] = 2
    return array


def test_whole_numbers_stored_as_floats_are_labels_and_others_are_not(tmp_path: Path) -> None:
    for case in ("good", "bad"):
        write(tmp_path / "r" / f"{case}.nii.gz", label())
    write(tmp_path / "p" / "good.nii.gz", label().astype(np.float64))
    write(tmp_path / "p" / "bad.nii.gz", label().astype(np.float32) * 0.5)
    result = evaluate_segmentation(tmp_path / "p", tmp_path / "r", LABELS, bootstrap=20)
    assert result.cases == 1
    assert result.scores["organ"]["dice"].value == 1
    assert "bad.nii.gz: " in result.problems[0]
    assert "not whole numbers; was it resampled with interpolation?" in result.problems[0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_scored(axis: int) -> None:
    plane = label()[0]
    both = np.expand_dims(np.roll(plane, 2, axis=0), axis), np.expand_dims(plane, axis)
    spacing_mm = tuple(3.0 if axis == other else 1.0 for other in range(3))
    found = segment_scores(*both, labels=LABELS, spacing_mm=spacing_mm)["organ"]  # type: ignore[arg-type]
    assert 0 < found["dice"] < 1
    assert 0 < found["surface_dice"] < 1
    assert 0 < found["assd_mm"] < found["hd95_mm"] == 2


def test_a_label_at_the_border_scores_as_one_inside() -> None:
    reference, prediction = label(), np.roll(label(), 1, axis=1)
    padded = [np.pad(array, 4) for array in (prediction, reference)]
    at_border = segment_scores(prediction, reference, labels={1: "it"}, spacing_mm=(3.0, 0.9, 0.7))["it"]
    assert segment_scores(*padded, labels={1: "it"}, spacing_mm=(3.0, 0.9, 0.7))["it"] == pytest.approx(at_border)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_and_layouts_of_arrays_do_not_matter(dtype: type, order: str) -> None:
    reference = label((5, 8, 12))[:, :, ::2] if order == "C" else np.asfortranarray(label((5, 8, 6)))
    prediction = np.roll(reference, 1, axis=0).astype(dtype)
    expected = segment_scores(
        np.ascontiguousarray(prediction).astype(np.uint8), np.ascontiguousarray(reference),
        labels=LABELS, spacing_mm=(3.0, 0.9, 0.7),
    )  # fmt: skip
    found = segment_scores(prediction, reference.astype(dtype), labels=LABELS, spacing_mm=(3.0, 0.9, 0.7))
    np.testing.assert_equal(found, expected)


def test_an_empty_prediction_is_a_miss_and_an_empty_pair_is_nothing(tmp_path: Path) -> None:
    write(tmp_path / "r" / "missed.nii.gz", label())
    write(tmp_path / "r" / "healthy.nii.gz", 0 * label())
    for case in ("missed", "healthy"):
        write(tmp_path / "p" / f"{case}.nii.gz", 0 * label())
    scores = evaluate_segmentation(tmp_path / "p", tmp_path / "r", LABELS, bootstrap=20).scores["organ"]
    assert (scores["dice"].value, scores["dice"].cases) == (0, 1)
    assert scores["hd95_mm"].value == pytest.approx(np.linalg.norm([5 * 3.0, 8 * 0.9, 11 * 0.7]), rel=1e-6)
    assert (np.isnan(scores["precision"].value), scores["precision"].cases) == (True, 0)


def test_several_processes_say_the_same_as_one_and_name_bad_cases(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / "r" / f"c{number}.nii.gz", label())
        write(tmp_path / "p" / f"c{number}.nii.gz", np.roll(label(), number % 3, axis=2) * (1 + 8 * (number == 3)))
    (tmp_path / "p" / "c1.nii.gz").write_bytes(b"nothing")
    calls: list[str] = []
    results = [
        evaluate_segmentation(
            tmp_path / "p", tmp_path / "r", LABELS, bootstrap=50, jobs=jobs, on_case=lambda case, *_: calls.append(case)
        )
        for jobs in (1, 2)
    ]
    assert results[0] == results[1]
    assert [problem.partition(":")[0] for problem in results[1].problems] == ["c1", "c3"]
    assert "holds the label values [9, 18]; the labels are 0 and [1, 2]" in results[1].problems[1]
    assert calls == 2 * [f"c{number}" for number in range(5)]


def test_large_values_and_many_labels_are_scored_one_by_one() -> None:
    """Labels of a large value; memory does not grow with their number, see benchmarks/metric_speed.py."""
    reference = np.zeros((6, 20, 20), np.int32)
    names = {}
    for number in range(40):
        reference[1:4, number // 10 * 5 : number // 10 * 5 + 3, number % 10 * 2] = 1000 + number
        names[1000 + number] = f"n{number}"
    scores = segment_scores(reference, reference, labels=names, spacing_mm=(1, 1, 1))
    assert all(values["dice"] == values["surface_dice"] == 1 for values in scores.values())
    assert all(values["reference_ml"] == pytest.approx(0.009) for values in scores.values())


def test_geometries_of_both_are_told(tmp_path: Path) -> None:
    io.write_label_map(LabelMap(label()[None], np.diag([3.0, 1, 1, 1])), tmp_path / "p" / "a.nii.gz")
    io.write_label_map(LabelMap(label()[None], np.diag([2.5, 1, 1, 1])), tmp_path / "r" / "a.nii.gz")
    expected = (
        r"a.nii.gz has \(5, 8, 11\) voxels \(D, H, W\) of 3 × 1 × 1 mm, orientation RAS, origin \(0, 0, 0\) mm; "
        r"its reference .*a.nii.gz has \(5, 8, 11\) voxels \(D, H, W\) of 2.5 × 1 × 1 mm"
    )
    with pytest.raises(InputError, match=expected):
        evaluate_segmentation(tmp_path / "p", tmp_path / "r", LABELS, bootstrap=20)
