"""Choosing steps of post-processing: by hand-made cases with a known answer, and through the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from medi3d.config import TaskConfig
from medi3d.config.postprocess import FillHoles, LargestComponent, RemoveSmall
from medi3d.errors import InputError
from medi3d.evaluate import Interval, dice_scores
from medi3d.infer.postprocess import postprocess
from medi3d.runs.folder import RunFolder
from medi3d.study.postprocess_choice import Case, Choice, choose_steps, write_choice
from medi3d.volume import LabelMap

AFFINE = np.diag([2.5, 1.0, 1.0, 1.0])


def truth() -> np.ndarray:
    array = np.zeros((6, 20, 24), np.uint8)
    array[1:5, 2:10, 2:10] = 1
    array[1:5, 2:10, 12:20] = 2
    return array


def as_case(number: int, damage: Callable[[np.ndarray], None]) -> Case:
    predicted = truth()
    damage(predicted)
    maps = LabelMap(predicted[None], AFFINE), LabelMap(truth()[None], AFFINE)
    return Case(f"case_{number}", f"patient_{number // 2}", lambda: maps)


def island(array: np.ndarray) -> None:
    array[0, 15:19, 20:24] = 1  # 16 voxels of 2.5 mm³: 0.04 ml


def hole(array: np.ndarray) -> None:
    array[2:4, 5:7, 15:17] = 0


def both(array: np.ndarray) -> None:
    island(array)
    hole(array)


@pytest.fixture
def task(segmentation_task: TaskConfig) -> TaskConfig:
    return replace(segmentation_task, evaluate=replace(segmentation_task.evaluate, bootstrap=200))


def test_what_mends_the_cases_is_chosen_and_its_gain_told(task: TaskConfig) -> None:
    cases = [as_case(number, damage) for number, damage in enumerate((both, island, hole, both, lambda array: None))]
    choice = choose_steps(cases, task, grid="native")
    # what removes the islands: the mildest of the steps that all remove 0.04 ml and keep the rest
    assert set(choice.steps) == {
        RemoveSmall(labels=(1, 2), together=True, min_ml=0.1),
        FillHoles(labels=(1, 2)),
    }
    before = np.array(
        [
            list(dice_scores(p.array[0], t.array[0], labels=task.data.labels).values())
            for p, t in (case.read() for case in cases)
        ]
    ).mean(axis=1)
    assert choice.before == pytest.approx(before.mean())
    assert choice.after == pytest.approx(1.0)
    assert choice.gain.value == pytest.approx(1 - before.mean())
    assert 0 <= choice.gain.low < choice.gain.value < choice.gain.high
    assert choice.cases == 5
    total = 0.0
    for trial in choice.trials:
        assert trial.structure == "all labels"
        assert (trial.improved, trial.worsened) == (3, 0)
        total += trial.gain.value
    assert total == pytest.approx(choice.gain.value)
    for case in cases:
        prediction, reference = case.read()
        np.testing.assert_array_equal(postprocess(prediction, choice.steps).array, reference.array)


def test_a_step_that_mends_one_label_and_spoils_the_other_is_taken_for_the_one(task: TaskConfig) -> None:
    def split_and_island(array: np.ndarray) -> None:
        island(array)
        array[1:5, 5:7, 12:20] = 0  # what is true of label 2 is in two pieces of 0.24 and 0.24 ml

    cases = [as_case(number, split_and_island) for number in range(3)]
    truth_in_pieces = LabelMap(cases[0].read()[0].array.copy(), AFFINE)
    truth_in_pieces.array[0, 0] = 0
    cases = [replace(case, read=lambda case=case: (case.read()[0], truth_in_pieces)) for case in cases]
    choice = choose_steps(cases, task, grid="native")
    assert choice.after == pytest.approx(1.0)
    assert all(not isinstance(step, LargestComponent) or step.labels == (1,) for step in choice.steps)


def test_nothing_is_chosen_where_nothing_helps(task: TaskConfig) -> None:
    choice = choose_steps([as_case(number, lambda array: None) for number in range(2)], task, grid="native")
    assert choice.steps == ()
    assert (choice.before, choice.after, choice.gain.value) == (1.0, 1.0, 0.0)
    with pytest.raises(InputError, match="no held-out case could be predicted"):
        choose_steps([], task, grid="native")


def test_an_absent_label_that_is_predicted_counts(task: TaskConfig) -> None:
    """Removing all of it makes the Dice undefined and so raises the mean, as in evaluation."""
    absent = truth() * (truth() != 2)
    predicted = absent.copy()
    predicted[0, 0, 0] = 2
    spurious = LabelMap(predicted[None], AFFINE), LabelMap(absent[None], AFFINE)
    cases = [as_case(0, lambda array: None), Case("b", "b", lambda: spurious)]
    choice = choose_steps(cases, task, grid="native")
    assert choice.steps == (RemoveSmall(labels=(1, 2), together=True, min_ml=0.003),)
    assert choice.before == pytest.approx((1 + (1 + 0) / 2) / 2)
    assert choice.after == 1.0


def test_the_choice_goes_into_the_runs_configuration(segmentation_task: TaskConfig, tiny: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_config(segmentation_task)
    step = LargestComponent(labels=(1,))
    interval = Interval(0.01, 0.0, 0.02, 3)
    choice = Choice((step,), (), 12, 3, "native", 0.8, 0.81, interval)
    write_choice([run], choice, {"prepared": "there"})
    assert run.load_config().infer.postprocess == (step,)
    assert replace(run.load_config(), infer=segmentation_task.infer) == segmentation_task
    record = json.loads((run.path / "postprocess.json").read_text())
    assert record["gain"] == {"value": 0.01, "low": 0.0, "high": 0.02, "cases": 3}
    assert (record["replaced"], record["prepared"], record["grid"]) == ([], "there", "native")
    assert record["steps"][0]["step"] == "largest_component"
    assert yaml.safe_load(run.config_file.read_text())["infer"]["postprocess"][0]["labels"] == [1]


@pytest.mark.slow
def test_the_commands_choose_and_then_use_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from medi3d import io
    from medi3d.cli import main
    from medi3d.config import load_task
    from medi3d.train import train_task

    def medi3d(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["medi3d", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.run()
        assert not ended.value.code, capsys.readouterr()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    task = load_task(tiny / "tiny_segmentation.yaml", overrides={"train.steps": 4, "train.validations": 1})
    prepared, raw = tiny / "prepared" / "tiny_segmentation", tiny / "raw" / "tiny_segmentation"
    runs = [
        train_task(task, prepared=prepared, run=Path(f"fold{fold}"), fold=fold, device="cpu").run for fold in (0, 1)
    ]
    before = [(run / "config.yaml").read_bytes() for run in runs]
    for data in (raw, Path("absent")):
        told = medi3d(
            "postprocess", *runs, "--data", data, "--device", "cpu", "--dry-run", "--output", f"of_{data.name}"
        )
        assert "4 held-out cases, " + ("native" if data == raw else "prepared") in told
    assert [(run / "config.yaml").read_bytes() for run in runs] == before
    assert f"{runs[1]}/config.yaml: infer.postprocess" in medi3d("postprocess", *runs, "--data", raw, "--device", "cpu")
    steps = RunFolder(runs[0]).load_config().infer.postprocess
    assert steps
    assert RunFolder(runs[1]).load_config().infer.postprocess == steps
    told = medi3d(
        "predict",
        *runs,
        "--input",
        raw / "imagesTr",
        "--output",
        "with",
        "--report",
        "r.json",
        "--probabilities",
        "dark",
    )
    assert f"post-processing: {steps[0].step}" in told
    assert "6 predicted: with" in told
    assert json.loads(Path("r.json").read_text())["cases"][0]["status"] == "predicted"
    assert Path("with/probabilities/case_0_2.nii.gz").is_file()
    assert "6 predicted (6 of them kept" in medi3d(
        "predict", *runs, "--input", raw / "imagesTr", "--output", "with", "--probabilities", 2
    )
    told = medi3d("predict", *runs, "--input", raw / "imagesTr", "--output", "without", "--no-postprocess")
    assert "post-processing" not in told
    plain = io.read_label_map("without/case_0.nii.gz")
    np.testing.assert_array_equal(postprocess(plain, steps).array, io.read_label_map("with/case_0.nii.gz").array)
    shutil.rmtree("with")
