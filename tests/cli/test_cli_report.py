"""A trained run becomes a page, and two become a comparison, by nothing but their folders."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from medi3d import io
from medi3d.cli.held_out import Overrides, find_held_out
from medi3d.cli.main import app
from medi3d.config import TaskConfig
from medi3d.errors import ConfigError, InputError
from medi3d.planning.machine import name_device
from medi3d.runs.folder import RunFolder
from medi3d.train import train_task


def train(tiny: Path, task: TaskConfig, folder: Path, steps: int) -> Path:
    short = replace(task, train=replace(task.train, steps=steps, validations=1))
    train_task(short, prepared=tiny / "prepared" / task.name, run=folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def trained(tiny: Path, segmentation_task: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny, segmentation_task, tmp_path_factory.mktemp("report") / "tiny" / "first", 2)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "tiny" / "first"))


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def succeed(*words: object) -> Result:
    answer = invoke(*words)
    assert answer.exit_code == 0, f"{answer.output} {answer.exception}"
    return answer


def test_a_run_alone_is_enough(run: Path, tiny: Path) -> None:
    answer = succeed("report", run, "--no-viewer", "--data", tiny / "raw" / "tiny_segmentation")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert answer.stdout.split() == [str(run / "report.html")]
    assert "predicted and scored first" in answer.stderr
    held_out = RunFolder(run).load_split().validation
    assert sorted(io.case_name(path) for path in (run / "out_of_fold").glob("*.nii.gz")) == sorted(held_out)
    assert f"Scored on {len(held_out)} cases held out from training" in page
    assert page.count("data:image/webp;base64,") == len(held_out)
    assert "not on the scanner" not in page
    # again: nothing is predicted anew, unless the weights are newer
    assert succeed("report", run, "--no-viewer").stderr == ""
    late = (run / "out_of_fold" / "evaluation" / "labels" / "summary.json").stat().st_mtime + 10
    os.utime(run / "checkpoints" / "last.pt", (late, late))
    answer = succeed("report", run, "--no-viewer", "--data", "gone")
    assert "predicted and scored first" in answer.stderr
    assert "Scored on the grid of the prepared data" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("changed", ["checkpoints/last.pt", "config.yaml"])
def test_scores_older_than_what_decides_them_are_made_anew(
    changed: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`medi3d postprocess` changes the configuration, and with it what is predicted."""
    summary = run / "out_of_fold" / "evaluation" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text('{"kind": "segmentation"}')
    anew: dict[str, Path] = {}
    monkeypatch.setattr("medi3d.cli.held_out._predict_and_score", lambda *_: anew)
    place = run / "out_of_fold"
    assert find_held_out([run], Overrides(), place=place).evaluations == {"segmentation": summary.parent}
    late = summary.stat().st_mtime + 10
    os.utime(run / changed, (late, late))
    assert find_held_out([run], Overrides(), place=place).evaluations is anew


def test_given_predictions_must_be_evaluated(run: Path, tiny: Path, tmp_path: Path) -> None:
    labels = tiny / "raw" / "tiny_segmentation" / "labelsTr"
    predictions = Path(shutil.copytree(labels, tmp_path / "predictions"))
    answer = invoke("report", run, "--predictions", predictions)
    assert isinstance(answer.exception, InputError)
    assert "no summary.json here; score the predictions first: medi3d evaluate --predictions" in str(answer.exception)
    task = tiny / "tiny_segmentation.yaml"
    succeed("evaluate", "--predictions", predictions, "--references", labels, "--task", task)
    output = tmp_path / "new" / "page.html"
    succeed("report", run, "--predictions", predictions, "--no-viewer", "--output", output, "--case", "case_2")
    page = output.read_text(encoding="utf-8")
    assert "Scored on 6 cases: the regions" in page
    assert "Dice of 1.000 on average" in page
    assert re.findall(r'alt="Slices of (\w+)"', page) == ["case_2"]
    assert not (run / "out_of_fold").exists()


def test_prepared_data_that_is_gone_is_told(run: Path, tmp_path: Path) -> None:
    facts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(facts | {"prepared": str(tmp_path / "gone")}))
    answer = invoke("report", run)
    assert isinstance(answer.exception, InputError)
    assert "is not where it was; give --prepared" in str(answer.exception)


def test_several_runs_need_a_place_for_their_page(run: Path) -> None:
    answer = invoke("report", run, run)
    assert isinstance(answer.exception, ConfigError)
    assert "several runs make one page; say where" in str(answer.exception)


def test_a_classification_is_shown_with_what_spoke_for_the_class(
    tiny: Path, classification_task: TaskConfig, tmp_path: Path
) -> None:
    run = train(tiny, classification_task, tmp_path / "tiny" / "classes", 2)
    succeed("report", run, "--no-viewer")
    page = (run / "report.html").read_text(encoding="utf-8")
    held_out = RunFolder(run).load_split().validation
    assert page.count("data:image/webp;base64,") == len(held_out)
    for words in ("ROC curve", "Decision curve", "what spoke for the class", "For research only"):
        assert words in page


def test_two_runs_are_compared(trained: Path, tiny: Path, segmentation_task: TaskConfig, tmp_path: Path) -> None:
    runs = [
        Path(shutil.copytree(trained, tmp_path / "tiny" / "first")),
        train(tiny, segmentation_task, tmp_path / "tiny" / "second", 3),
    ]
    files = {"--csv": tmp_path / "a.csv", "--figure": tmp_path / "a.svg", "--html": tmp_path / "a.html"}
    answer = succeed("compare", *runs, *(word for pair in files.items() for word in pair))
    assert "less first" in answer.stdout
    assert "Dice, all labels" in answer.stdout
    assert "processor time" in answer.stdout
    with files["--csv"].open(newline="", encoding="utf-8") as stream:
        rows = {(row["run"], row["scored"], row["metric"]): row for row in csv.DictReader(stream)}
    first, second = (rows[name, "all labels", "dice"] for name in ("first", "second"))
    assert first["difference_value"] == ""
    assert float(second["difference_value"]) == pytest.approx(float(second["value"]) - float(first["value"]), abs=1e-5)
    assert second["shared_cases"] == second["cases"]
    assert first["parameters"] == second["parameters"] != "0"
    assert first["device"] == second["device"] == name_device(torch.device("cpu"))
    assert 0 < float(first["processor_minutes"]) < 5
    assert "train.steps" in files["--html"].read_text(encoding="utf-8")
    assert files["--figure"].read_text(encoding="utf-8").startswith("<?xml")


def test_one_run_and_other_tasks_are_no_comparison(run: Path, tmp_path: Path) -> None:
    answer = invoke("compare", run)
    assert isinstance(answer.exception, ConfigError)
    assert "expected two runs or more to compare; got 1" in str(answer.exception)
