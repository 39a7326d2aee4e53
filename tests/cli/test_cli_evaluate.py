from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from medi3d import io
from medi3d.cli.evaluate import evaluate
from medi3d.errors import ConfigError
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
