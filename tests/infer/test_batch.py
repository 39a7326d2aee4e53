from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from medi3d import io
from medi3d.config import PatternsConfig, TaskConfig
from medi3d.errors import InputError
from medi3d.infer.batch import BatchOptions, predict_files
from medi3d.infer.inputs import list_inputs
from medi3d.infer.predictor import Prediction, Predictor, PreparedInput
from medi3d.io import Record
from medi3d.runs.folder import RunFolder
from medi3d.types import FloatTriple
from medi3d.volume import LabelMap, Volume


@pytest.fixture
def segment(segmentation_runs: tuple[Path, Path]) -> Predictor:
    return Predictor(segmentation_runs[:1], device="cpu")


@pytest.fixture
def classify(classification_runs: tuple[Path, Path]) -> Predictor:
    return Predictor(classification_runs[:1], device="cpu")


@pytest.fixture
def image(tiny: Path) -> Volume:
    return io.read_volume(tiny / "raw" / "tiny_segmentation" / "imagesTr" / "case_0.nii.gz")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".medi3d")


# --- segmentation


def test_a_file_gives_a_file_of_its_name_and_geometry(segment: Predictor, image: Volume, tmp_path: Path) -> None:
    io.write_volume(image, tmp_path / "in" / "Some Patient.nii.gz")
    summary = predict_files(segment, tmp_path / "in" / "Some Patient.nii.gz", tmp_path / "out" / "deep")
    assert summary.predicted == ["Some Patient"]
    assert not summary.problems
    assert summary.output == tmp_path / "out" / "deep"
    assert names(summary.output) == ["Some Patient.nii.gz"]
    written = io.read_label_map(summary.output / "Some Patient.nii.gz")
    assert written.grid.is_close(io.read_volume(tmp_path / "in" / "Some Patient.nii.gz").grid)
    np.testing.assert_array_equal(written.array, segment.predict_labels(image).array)


def test_a_folder_is_predicted_whatever_the_formats_and_a_bad_file_is_named(
    segment: Predictor, image: Volume, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    io.write_volume(image, source / "a.nii.gz")
    sitk.WriteImage(io.to_sitk(image), str(source / "b.nrrd"))
    sitk.WriteImage(io.to_sitk(image), str(source / "c_0000.mha"))
    (source / "cut.nii.gz").write_bytes((source / "a.nii.gz").read_bytes()[:900])
    broken = image.array.copy()
    broken[0, 1, 2, 3] = np.nan
    io.write_volume(Volume(broken, image.affine), source / "nan.nii.gz")
    (source / "notes.txt").write_text("not an image")
    seen = []
    summary = predict_files(
        segment, source, tmp_path / "out", on_case=lambda case, number, total: seen.append((case, number, total))
    )
    assert summary.predicted == ["a", "b", "c"]
    assert names(tmp_path / "out") == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert list(summary.problems) == ["cut", "nan"]
    assert "cut.nii.gz" in summary.problems["cut"]
    assert "1 of 2240 voxels are NaN or infinite" in summary.problems["nan"]
    assert all("\n" not in problem for problem in summary.problems.values())
    assert seen == [("a", 0, 5), ("b", 1, 5), ("c", 2, 5), ("cut", 3, 5), ("nan", 4, 5)]
    first, second = (io.read_label_map(tmp_path / "out" / f"{name}.nii.gz").array for name in "ab")
    np.testing.assert_array_equal(first, second)


def write_dicom_series(volume: Volume, folder: Path) -> None:
    folder.mkdir()
    image = sitk.Cast(io.to_sitk(volume), sitk.sitkInt16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for number in range(image.GetSize()[2]):
        piece = image[:, :, number : number + 1]
        tags = {
            "0008|0060": "MR",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.9",
            "0020|000d": "1.2.3",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.9.{number + 1}",
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, number)))),
            "0020|0037": "\\".join(map(str, np.reshape(direction, (3, 3)).T[:2].ravel())),
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{100 - number}.dcm"))
        writer.Execute(piece)


def test_a_dicom_series_is_one_case_named_by_its_folder(segment: Predictor, image: Volume, tmp_path: Path) -> None:
    write_dicom_series(image, tmp_path / "series_7")
    native = io.read_volume(tmp_path / "series_7")
    summary = predict_files(segment, tmp_path / "series_7", tmp_path / "out")
    assert summary.predicted == ["series_7"]
    written = io.read_label_map(tmp_path / "out" / "series_7.nii.gz")
    assert written.grid.is_close(native.grid, tolerance=0.01)


def test_a_dicom_series_is_taken_by_a_task_of_patterns_too(
    image: Volume, tmp_path: Path, segmentation_task: TaskConfig
) -> None:
    write_dicom_series(image, tmp_path / "series")
    data = replace(segmentation_task.data, layout="patterns", patterns=PatternsConfig(images=("{case}/MR*.nii.gz",)))
    task = replace(segmentation_task, data=data)
    assert [case.case_id for case in list_inputs(tmp_path / "series", task, None).cases] == ["series"]
    io.write_volume(image, tmp_path / "nested" / "one" / "MR_1.nii.gz")
    io.write_volume(image, tmp_path / "nested" / "two" / "MR_2.nii.gz")
    io.write_volume(image, tmp_path / "nested" / "two" / "MR_3.nii.gz")
    found = list_inputs(tmp_path / "nested", task, None)
    assert [case.case_id for case in found.cases] == ["one"]
    assert [problem.case_id for problem in found.problems] == ["two"]
    assert [case.case_id for case in list_inputs(tmp_path / "nested" / "two", task, None).cases] == ["MR_2", "MR_3"]


class TwoChannels(Predictor):
    """Stands for the runs of a task of two channels; it sees what it is to predict."""

    def __init__(self, task: TaskConfig) -> None:
        self.task = replace(task, data=replace(task.data, channels=("T1", "T2")))
        self.seen: list[Volume] = []
        self._members = []

    def prepare(self, volume: Volume, *, center_mm: FloatTriple | None = None) -> PreparedInput:
        self.seen.append(volume)
        return PreparedInput(torch.zeros(2, 1, 1, 1), Record(volume.grid, volume.grid))

    def predict_input(self, prepared: PreparedInput, *, probabilities: Sequence[int] = ()) -> Prediction:
        grid = prepared.record.native
        return Prediction(LabelMap(np.zeros((1, *grid.shape), np.uint8), grid.affine), None)


def test_channel_suffixes_make_one_case(segmentation_task: TaskConfig, image: Volume, tmp_path: Path) -> None:
    for number in range(2):
        io.write_volume(Volume(image.array + number, image.affine), tmp_path / "in" / f"scan_000{number}.nii.gz")
    io.write_volume(image, tmp_path / "in" / "lonely_0000.nii.gz")
    shifted = image.affine.copy()
    shifted[0, 3] += 500
    io.write_volume(image, tmp_path / "in" / "moved_0000.nii.gz")
    io.write_volume(Volume(image.array, shifted), tmp_path / "in" / "moved_0001.nii.gz")
    predictor = TwoChannels(segmentation_task)
    summary = predict_files(predictor, tmp_path / "in", tmp_path / "out")
    assert summary.predicted == ["scan"]
    assert names(tmp_path / "out") == ["scan.nii.gz"]
    np.testing.assert_allclose(predictor.seen[0].array[1] - predictor.seen[0].array[0], 1, atol=1e-3)
    assert "expected 2 channels" in summary.problems["lonely"]
    assert "covers 0% of" in summary.problems["moved"]


def test_out_of_fold_predicts_only_what_was_held_out(
    segmentation_runs: tuple[Path, Path], tiny: Path, tmp_path: Path
) -> None:
    source = tiny / "raw" / "tiny_segmentation" / "imagesTr"
    both = Predictor(segmentation_runs, device="cpu")
    summary = predict_files(both, source, tmp_path / "out", options=BatchOptions(out_of_fold=True))
    held = [set(RunFolder(run).load_split().validation) for run in segmentation_runs]
    assert summary.predicted == sorted(held[0] | held[1])
    name = min(held[0])
    alone = Predictor(segmentation_runs[:1], device="cpu").predict_labels(io.read_volume(source / f"{name}.nii.gz"))
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "out" / f"{name}.nii.gz").array, alone.array)
    trained = min({f"case_{n}" for n in range(6)} - held[0] - held[1])
    with pytest.raises(InputError, match="nothing to predict that these runs held out"):
        predict_files(both, source / f"{trained}.nii.gz", tmp_path / "none", options=BatchOptions(out_of_fold=True))
    assert not (tmp_path / "none").exists()


def test_nothing_to_predict_is_an_error(segment: Predictor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder; --input takes an image, a folder, a DICOM series"):
        predict_files(segment, tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no image in it"):
        predict_files(segment, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- classification


def test_a_table_gives_a_table(classify: Predictor, tiny: Path, tmp_path: Path) -> None:
    raw = tiny / "raw" / "tiny_classification"
    summary = predict_files(classify, raw / "cases.csv", tmp_path / "out")
    assert summary.output == tmp_path / "out" / "predictions.csv"
    assert names(tmp_path / "out") == ["predictions.csv"]
    rows = read_rows(summary.output)
    assert [row["case_id"] for row in rows] == [f"nodule_{n}" for n in range(10)]  # those without a class too
    for row in rows:
        bright, dark = float(row["bright"]), float(row["dark"])
        assert bright + dark == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == ("bright" if bright > dark else "dark")


def test_a_row_of_the_table_that_cannot_be_used_is_named(classify: Predictor, tiny: Path, tmp_path: Path) -> None:
    raw = tiny / "raw" / "tiny_classification"
    (tmp_path / "cases.csv").write_text(
        "case_id,image,mask\n"
        f"good,{raw / 'images/nodule_1.nii.gz'},{raw / 'masks/nodule_1.nii.gz'}\n"
        f"gone,images/gone.nii.gz,{raw / 'masks/nodule_1.nii.gz'}\n"
        f"nowhere,{raw / 'images/nodule_2.nii.gz'},\n"
    )
    summary = predict_files(classify, tmp_path / "cases.csv", tmp_path / "out")
    assert summary.predicted == ["good"]
    assert "gone.nii.gz does not exist" in summary.problems["gone"]
    assert "this task cuts a cube and nothing tells where" in summary.problems["nowhere"]
    assert [row["case_id"] for row in read_rows(summary.output)] == ["good"]


def test_where_the_cube_lies_is_told_by_masks_or_by_the_images_middle(
    classify: Predictor, tiny: Path, tmp_path: Path
) -> None:
    raw = tiny / "raw" / "tiny_classification"
    table = predict_files(classify, raw / "cases.csv", tmp_path / "table")
    expected = {row["case_id"]: row for row in read_rows(table.output)}

    folder = predict_files(classify, raw / "images", tmp_path / "folder", masks=raw / "masks")
    assert {row["case_id"]: row for row in read_rows(folder.output)} == expected
    single = predict_files(
        classify, raw / "images" / "nodule_4.nii.gz", tmp_path / "one", masks=raw / "masks" / "nodule_4.nii.gz"
    )
    assert read_rows(single.output) == [expected["nodule_4"]]

    middle = predict_files(
        classify, raw / "images" / "nodule_4.nii.gz", tmp_path / "m", options=BatchOptions(center_of_image=True)
    )
    image = io.read_volume(raw / "images" / "nodule_4.nii.gz")
    world = image.affine[:3, :3] @ ((np.array(image.shape) - 1) / 2) + image.affine[:3, 3]
    probabilities = classify.predict_classes(image, center_mm=tuple(world))
    assert float(read_rows(middle.output)[0]["dark"]) == pytest.approx(float(probabilities[1]), abs=1e-5)


def test_without_a_centre_or_with_an_empty_mask_nothing_is_written(
    classify: Predictor, tiny: Path, tmp_path: Path
) -> None:
    images = tiny / "raw" / "tiny_classification" / "images"
    summary = predict_files(classify, images / "nodule_0.nii.gz", tmp_path / "out")
    assert "give --masks with a mask of that name" in summary.problems["nodule_0"]
    mask = io.read_label_map(tiny / "raw" / "tiny_classification" / "masks" / "nodule_0.nii.gz")
    io.write_label_map(LabelMap(mask.array * 0, mask.affine), tmp_path / "masks" / "nodule_0.nii.gz")
    summary = predict_files(classify, images / "nodule_0.nii.gz", tmp_path / "out", masks=tmp_path / "masks")
    assert "the mask has no voxel above 0" in summary.problems["nodule_0"]
    summary = predict_files(classify, images / "nodule_1.nii.gz", tmp_path / "out", masks=tmp_path / "masks")
    assert "nothing tells where" in summary.problems["nodule_1"]
    assert not (tmp_path / "out" / "predictions.csv").exists()
