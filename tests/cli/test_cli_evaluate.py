from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from small_tasks import write_nodules_task
from typer.testing import CliRunner, Result

from medi3d import io
from medi3d.cli.evaluate import evaluate
from medi3d.errors import ConfigError, Medi3dError
from medi3d.volume import LabelMap

AFFINE = np.diag([2.5, 1.0, 0.5, 1.0])

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(evaluate)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(path: Path, *, start: int, value: int = 1) -> None:
    array = np.zeros((1, 6, 8, 12), np.uint8)
    array[0, 2:5, 2:6, start : start + 4] = value
    io.write_label_map(LabelMap(array, AFFINE), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for case in ("one", "two"):
        write(tmp_path / "p" / f"{case}.nii.gz", start=3)
        write(tmp_path / "r" / f"{case}.nii.gz", start=2)
    return tmp_path / "p", tmp_path / "r"


def test_label_maps_are_scored_with_a_task(folders: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("--predictions", folders[0], "--references", folders[1])
    result = run(*arguments, "--task", "lung_nodule_seg", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "surface Dice" in result.output
    assert "0.750" in result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["scores"]["nodule"]["dice"]["value"] == pytest.approx(0.75)


def test_without_a_task_labels_are_found_and_results_lie_beside_the_predictions(folders: tuple[Path, Path]) -> None:
    result = run("--predictions", folders[0], "--references", folders[1], "--tolerance-mm", "0.5", "--bootstrap", "50")
    assert result.exit_code == 0, result.output
    assert "label 1" in result.output
    summary = json.loads((folders[0] / "evaluation" / "summary.json").read_text())
    assert summary["settings"]["tolerance_mm"] == 0.5
    assert summary["scores"]["label 1"]["surface_dice"]["value"] == 1.0
    again = run("--predictions", folders[0], "--references", folders[1])
    assert "without a reference" not in again.output


def test_a_missing_prediction_fails_unless_it_is_allowed(folders: tuple[Path, Path]) -> None:
    (folders[0] / "two.nii.gz").rename(folders[0] / "other.nii.gz")
    arguments = ("--predictions", folders[0], "--references", folders[1])
    failed = run(*arguments)
    assert failed.exit_code == 1
    assert "1 references without a prediction: two" in failed.output
    assert "1 predictions without a reference: other" in failed.output
    assert run(*arguments, "--only-predicted").exit_code == 0


def test_a_problem_is_a_line_and_fails(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "two.nii.gz", start=2, value=7)
    result = run("--predictions", folders[0], "--references", folders[1], "--task", "lung_nodule_seg")
    assert result.exit_code == 1
    assert "holds the label values [7]; the labels are 0 and [1]" in result.output


def test_raw_data_serves_as_references(folders: tuple[Path, Path], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for case in ("one", "two"):
        write(raw / "imagesTr" / f"{case}.nii.gz", start=2)
        write(raw / "labelsTr" / f"{case}.nii.gz", start=2)
    result = run("--predictions", folders[0], "--references", raw, "--task", "demo")
    assert result.exit_code == 0, result.output
    assert "solid" in result.output


def test_tables_are_scored(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text(
        "case_id,benign,malignant,predicted\na,0.9,0.1,benign\nb,0.2,0.8,malignant\n"
    )
    (tmp_path / "nodules.csv").write_text("case_id,patient_id,label\na,p,benign\nb,q,malignant\nc,q,\n")
    result = run("--predictions", tmp_path, "--references", tmp_path / "nodules.csv", "--task", "lung_nodule")
    assert result.exit_code == 0, result.output
    assert "AUC" in result.output
    assert "malignant" in result.output
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text())["settings"]["unlabelled"] == 1


def test_a_table_without_a_task_is_refused(tmp_path: Path) -> None:
    result = run("--predictions", tmp_path / "p.csv", "--references", tmp_path / "r.csv")
    with pytest.raises(ConfigError, match="give --task, which tells the classes"):
        raise result.exception or AssertionError(result.output)


# --- regions, ignored voxels, classes beside label maps

TUMOURS = """
name: tumours
kind: segmentation
data:
  channels: [T1]
  labels: {1: core, 2: edema}
  regions: {whole: [1, 2], core: [1]}
  ignore_label: 9
"""


def test_regions_are_scored_beside_labels_and_ignored_voxels_are_not(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, references = folders
    for case in ("one", "two"):
        label = io.read_label_map(references / f"{case}.nii.gz")
        array = label.array.copy()
        array[0, :, :4] = 9
        array[0, 2:5, 4:6, 4:6] = 2  # half of what is left of 1, and found as 1
        io.write_label_map(LabelMap(array, label.affine), references / f"{case}.nii.gz")
    (tmp_path / "tumours.yaml").write_text(TUMOURS)
    result = run("--predictions", predictions, "--references", references, "--task", tmp_path / "tumours.yaml")
    assert result.exit_code == 0, result.output
    summary = json.loads((predictions / "evaluation" / "summary.json").read_text())
    dice = {name: metrics["dice"]["value"] for name, metrics in summary["scores"].items()}
    assert dice == pytest.approx(
        {"core": 1 / 3, "edema": 0, "whole": 0.75, "all labels": 1 / 6, "all regions": (0.75 + 1 / 3) / 2}
    )
    assert all(name in result.output for name in ("whole", "all regions"))
    rows = (predictions / "evaluation" / "cases.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in rows[1:]] == [
        [case, name] for case in ("one", "two") for name in ("core", "edema", "whole")
    ]


@pytest.fixture
def nodules(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Predictions, raw data and YAML file of a task with masks and classes."""
    predictions, raw = folders
    task = write_nodules_task(tmp_path)
    rows = [
        f"{case},{case},i.nii.gz,{case}.nii.gz,{label}" for case, label in (("one", "benign"), ("two", "malignant"))
    ]
    write(raw / "i.nii.gz", start=2)
    (raw / "nodules.csv").write_text("\n".join(["case_id,patient_id,image,mask,label", *rows]))
    (predictions / "predictions.csv").write_text("case_id,benign,malignant\none,0.9,0.1\ntwo,0.3,0.7\n")
    return predictions, raw, task


def test_label_maps_and_classes_are_scored_in_one_call(nodules: tuple[Path, Path, Path]) -> None:
    predictions, raw, task = nodules
    result = run("--predictions", predictions, "--references", raw, "--task", task, "--bootstrap", "50")
    assert result.exit_code == 0, result.output
    masks = json.loads((predictions / "evaluation" / "summary.json").read_text())
    assert masks["kind"] == "segmentation"
    assert masks["scores"]["nodule"]["dice"]["value"] == pytest.approx(0.75)
    classes = json.loads((predictions / "evaluation" / "classes" / "summary.json").read_text())
    assert classes["kind"] == "classification"
    assert classes["scores"]["malignant"]["auc"]["value"] == 1.0
    assert "surface Dice" in result.output
    assert "AUC" in result.output


def test_the_table_alone_or_the_label_maps_alone_are_scored_too(nodules: tuple[Path, Path, Path]) -> None:
    predictions, raw, task = nodules
    table = run("--predictions", predictions / "predictions.csv", "--references", raw, "--task", task)
    assert table.exit_code == 0, table.output
    assert "AUC" in table.output
    assert "Dice" not in table.output
    assert not (predictions / "evaluation" / "classes").exists()
    (predictions / "predictions.csv").unlink()
    masks = run("--predictions", predictions, "--references", raw, "--task", task)
    assert masks.exit_code == 0, masks.output
    assert "AUC" not in masks.output
    assert "predictions.csv: no such table, so the task's classes are not scored" in " ".join(masks.output.split())


def test_a_class_that_cannot_be_scored_fails_the_call(nodules: tuple[Path, Path, Path]) -> None:
    predictions, raw, task = nodules
    (predictions / "predictions.csv").write_text("case_id,benign,malignant\none,0.9,0.1\ntwo,0.3,9\n")
    result = run("--predictions", predictions, "--references", raw, "--task", task)
    assert result.exit_code == 1
    assert "holds no probabilities that sum to 1" in result.output


# --- two against each other


@pytest.fixture
def rivals(folders: tuple[Path, Path]) -> tuple[Path, Path, Path]:
    """Two folders of predictions, the second perfect, and the references."""
    first, references = folders
    for case in ("one", "two"):
        write(first.parent / "q" / f"{case}.nii.gz", start=2)
    return first, first.parent / "q", references


def test_two_folders_of_predictions_are_scored_and_compared(rivals: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first, second, references = rivals
    result = run(
        "--compare", first, second, "--references", references, "--output", tmp_path / "out", "--bootstrap", 50
    )
    assert result.exit_code == 0, result.output
    for text in (f"A: {first}", f"B: {second}", "-0.250", "Cases that differ most", "2 cases; p: signed-rank"):
        assert text in " ".join(result.output.split())
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    dice = written["scores"]["label 1"]["dice"]
    assert (dice["first"], dice["second"], dice["difference"]["value"]) == pytest.approx((0.75, 1.0, -0.25))
    assert (first / "evaluation" / "summary.json").is_file()


def test_evaluations_that_are_there_are_compared_without_references(rivals: tuple[Path, Path, Path]) -> None:
    first, second, references = rivals
    for folder in (first, second):
        assert run("--predictions", folder, "--references", references).exit_code == 0
    shutil.move(second / "evaluation", second / "out_of_fold" / "evaluation" / "labels")
    for a in (first, first / "evaluation"):
        result = run("--compare", a, second, "--bootstrap", 50)
        assert result.exit_code == 0, result.output
        assert "-0.250" in result.output


def test_label_maps_and_classes_are_compared_in_one_call(nodules: tuple[Path, Path, Path], tmp_path: Path) -> None:
    predictions, raw, task = nodules
    shutil.copytree(predictions, tmp_path / "q")
    (tmp_path / "q" / "predictions.csv").write_text("case_id,benign,malignant\none,0.2,0.8\ntwo,0.3,0.7\n")
    arguments = ("--references", raw, "--task", task, "--bootstrap", 50, "--output", tmp_path / "out")
    result = run("--compare", predictions, tmp_path / "q", *arguments)
    assert result.exit_code == 0, result.output
    classes = json.loads((tmp_path / "out" / "classes" / "comparison.json").read_text())
    assert classes["scores"]["malignant"]["auc"]["difference"]["value"] == 1.0
    assert classes["differing"]["one"] == pytest.approx([0.9, 0.2])
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["kind"] == "segmentation"


def test_a_comparison_or_scores_that_cannot_be_are_refused(rivals: tuple[Path, Path, Path]) -> None:
    first, second, references = rivals
    refused = [
        (("--compare", first, second), "no evaluation in it .*; give --references, and --task, to score"),
        (("--compare", first, second, "--predictions", first), "leave out --predictions"),
        (("--predictions", first), "give --predictions and --references, or two folders to --compare"),
        (("--predictions", first, "--references", references, "--surface", "faces"), "--surface: .*'elements'"),
        (("--predictions", first, "--references", references, "--tolerance-mm", "-1"), "--tolerance-mm: .* Got: -1"),
    ]
    for arguments, message in refused:
        with pytest.raises(Medi3dError, match=message):
            raise run(*arguments).exception or AssertionError(arguments)


def test_what_a_surface_and_a_lesion_are_can_be_told(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    arguments = ("--predictions", predictions, "--references", references, "--surface", "voxels", "--lesion-iou", "0.7")
    assert run(*arguments, "--jobs", "1").exit_code == 0
    summary = json.loads((predictions / "evaluation" / "summary.json").read_text())
    assert (summary["settings"]["surface"], summary["settings"]["lesion_iou"]) == ("voxels", 0.7)
    assert summary["scores"]["label 1"]["lesion_f1"]["value"] == 0  # its IoU is 3/5
