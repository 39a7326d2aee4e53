"""``medi3d train`` as a user types it: folds, plans, what it shows, how it ends."""

from __future__ import annotations

import io as text_io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from medi3d import io
from medi3d.cli import main as main_module
from medi3d.cli.train_options import parse_sizes
from medi3d.cli.train_progress import TrainProgress, describe_event, print_folds
from medi3d.config import load_task
from medi3d.errors import ConfigError, InputError
from medi3d.infer.predictor import Predictor
from medi3d.io import PreparedStore
from medi3d.planning import read_plan
from medi3d.preprocess.pipeline import prepare_image
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import FoldsFolder
from medi3d.study.out_of_fold import score_out_of_fold
from medi3d.train import cross_validation
from medi3d.train.cross_validation import FoldOutcome
from medi3d.train.events import TrainEvent, TrainResult

TASK = "tiny_segmentation"


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def medi3d(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run ``medi3d ...`` in this process, in an empty folder; a traceback would be an exception here."""
    monkeypatch.chdir(tmp_path)
    return run_here(monkeypatch, capsys.readouterr)


def run_here(monkeypatch: pytest.MonkeyPatch, read: Callable[[], tuple[str, str]]) -> Command:
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments: object) -> Answer:
        read()
        monkeypatch.setattr(sys, "argv", ["medi3d", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main_module.run()
        return Answer(int(ended.value.code or 0), *read())

    return run


def tiny_train(tiny: Path, *more: object, task: str = TASK) -> list[object]:
    return [
        *("train", "--task", tiny / f"{task}.yaml", "--prepared", tiny / "prepared" / task, "--device", "cpu"),
        *("--steps", 2, "--set", "train.validations=1", *more),
    ]


# --- folds


@pytest.fixture(scope="module")
def folds(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> FoldsFolder:
    """All folds of the tiny segmentation, trained and scored once; not to be written into."""
    folder = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:
        medi3d = run_here(patch, lambda: ("", ""))
        raw = ("--data", tiny / "raw" / TASK)
        answer = medi3d(*tiny_train(tiny, "--fold", "all", "--output", folder, "--name", "all", *raw))
    assert answer.code == 0
    return FoldsFolder(folder / TASK / "all")


def test_all_folds_are_trained_and_their_held_out_cases_scored_in_their_own_space(
    folds: FoldsFolder, tiny: Path
) -> None:
    record = folds.read()
    assert [entry["state"] for entry in record["folds"].values()] == ["finished"] * 3
    evaluation = record["evaluation"]
    assert (evaluation["grid"], evaluation["cases"], evaluation["problems"]) == ("native", {"labels": 6}, [])
    dice = evaluation["scores"]["labels"]["bright"]["dice"]
    assert dice["low"] <= dice["value"] <= dice["high"]
    assert (folds.out_of_fold / "evaluation" / "labels" / "cases.csv").is_file()
    # each prediction is that of the last weights of the run that held the case out, and of no other
    by_hand = []
    for fold in range(3):
        alone = Predictor([folds.fold(fold).path], device="cpu", checkpoint="last")
        for case in folds.fold(fold).load_split().validation:
            image = io.read_volume(tiny / "raw" / TASK / "imagesTr" / f"{case}.nii.gz")
            written = io.read_label_map(folds.out_of_fold / f"{case}.nii.gz").array
            np.testing.assert_array_equal(written, alone.predict_labels(image).array)
            truth = io.read_label_map(tiny / "raw" / TASK / "labelsTr" / f"{case}.nii.gz").array
            by_hand.append(2 * ((written == 1) & (truth == 1)).sum() / ((written == 1).sum() + (truth == 1).sum()))
    assert len(by_hand) == 6
    assert dice["value"] == pytest.approx(np.mean(by_hand))


def test_without_raw_data_the_prepared_grid_is_scored_and_said(folds: FoldsFolder, tmp_path: Path) -> None:
    copied = FoldsFolder(tmp_path / "copy")
    for number in range(3):
        (copied.path / f"fold{number}").mkdir(parents=True)
        for path in folds.fold(number).path.rglob("*"):
            target = copied.path / path.relative_to(folds.path)
            target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    copied.write(folds.read())
    seen: list[str] = []
    result = score_out_of_fold(
        copied, raw=tmp_path / "absent", device="cpu", on_case=lambda case, number, total: seen.append(case)
    )
    assert result.grid == "prepared"
    assert "not the scanner's own: there is no raw data in" in result.notes[0]
    assert "--data says where it lies" in result.notes[0]
    assert seen == [f"case_{number}" for number in range(6)]
    case = next(case for case in PreparedStore(copied.read()["prepared"]).cases() if case.case_id == "case_3")
    fold = next(n for n in range(3) if "case_3" in copied.fold(n).load_split().validation)
    labels = Predictor([copied.fold(fold).path], device="cpu", checkpoint="last").predict_prepared(
        torch.from_numpy(case.image()[:])
    )[0]
    written = io.read_label_map(copied.out_of_fold / "case_3.nii.gz")
    np.testing.assert_array_equal(written.array[0], labels.argmax(0).numpy())
    assert written.grid.is_close(case.record.prepared, tolerance=1e-3)
    assert copied.read()["evaluation"]["grid"] == "prepared"
    unfinished = copied.read()
    copied.write(unfinished | {"folds": {0: {"state": "failed"}}})
    with pytest.raises(InputError, match="no fold is finished"):
        score_out_of_fold(copied, raw=tmp_path, device="cpu", on_case=lambda *_: None)


def test_a_folder_of_folds_predicts_the_mean_of_its_runs(
    medi3d: Command, folds: FoldsFolder, tiny: Path, tmp_path: Path
) -> None:
    image = tiny / "raw" / TASK / "imagesTr" / "case_2.nii.gz"
    answer = medi3d("predict", folds.path, "--input", image, "--output", "out", "--device", "cpu")
    assert answer.code == 0, answer
    runs = [folds.fold(number).path for number in range(3)]
    named = medi3d("predict", *runs, "--input", image, "--output", "named", "--device", "cpu")
    assert named.code == 0
    written = [io.read_label_map(tmp_path / name / "case_2.nii.gz").array for name in ("out", "named")]
    np.testing.assert_array_equal(*written)
    prepared = prepare_image(io.read_volume(image), load_task(tiny / f"{TASK}.yaml"))[0]
    array = torch.from_numpy(np.ascontiguousarray(prepared.array))
    singles = [Predictor([run], device="cpu").predict_prepared(array)[0] for run in runs]
    together = Predictor(runs, device="cpu").predict_prepared(array)[0]
    assert not torch.allclose(singles[0], singles[1])
    torch.testing.assert_close(together, torch.stack(singles).mean(0))


def test_runs_of_other_networks_are_averaged_too(medi3d: Command, folds: FoldsFolder, tiny: Path) -> None:
    assert medi3d(*tiny_train(tiny, "--backbone", "resnet18", "--name", "other")).code == 0
    runs = [folds.fold(0).path, Path("runs") / TASK / "other"]
    array = torch.from_numpy(PreparedStore(tiny / "prepared" / TASK).cases()[0].image()[:])
    singles = [Predictor([run], device="cpu").predict_prepared(array)[0] for run in runs]
    torch.testing.assert_close(Predictor(runs, device="cpu").predict_prepared(array)[0], (singles[0] + singles[1]) / 2)


def test_folds_that_are_finished_are_not_trained_again(
    medi3d: Command, folds: FoldsFolder, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> TrainResult:
        raise AssertionError("trained again")

    monkeypatch.setattr(cross_validation, "train_task", fail)
    before = folds.read()
    answer = medi3d("train", "--resume", folds.path, "--device", "cpu", "--data", tiny / "raw" / TASK)
    assert answer.code == 0, answer
    assert "mean ± sd" in answer.out
    assert f"predict new cases with all folds: medi3d predict {folds.path}" in answer.out
    after = folds.read()
    assert after["evaluation"] == before["evaluation"]
    assert [entry["last_score"] for entry in after["folds"].values()] == [
        entry["last_score"] for entry in before["folds"].values()
    ]
    taken = medi3d(*tiny_train(tiny, "--fold", "all", "--output", folds.path.parents[1], "--name", "all"))
    assert taken.code == 1
    assert "already holds a run; give another --name, or --resume it" in taken.err


def test_a_failed_fold_is_named_the_others_are_scored_and_the_exit_code_is_1(
    medi3d: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cross_validation.train_task

    def fail(task: Any, *, fold: int, **options: Any) -> TrainResult:
        if fold == 1:
            raise InputError("the loss is nan")
        return real(task, fold=fold, **options)

    monkeypatch.setattr(cross_validation, "train_task", fail)
    answer = medi3d(*tiny_train(tiny, "--fold", "all", "--name", "all", "--data", tiny / "raw" / TASK))
    assert answer.code == 1
    assert answer.err.splitlines()[-2:] == [
        "fold 1 failed: the loss is nan",
        f"go on with: medi3d train --resume runs/{TASK}/all",
    ]
    assert FoldsFolder(Path("runs") / TASK / "all").read()["evaluation"]["cases"] == {"labels": 4}


def test_classes_are_scored_over_patients(medi3d: Command, tiny: Path) -> None:
    task = "tiny_classification"
    answer = medi3d(*tiny_train(tiny, "--fold", "all", "--name", "all", "--data", tiny / "raw" / task, task=task))
    assert answer.code == 0, answer
    assert "AUC" in answer.out
    folder = Path("runs") / task / "all"
    assert FoldsFolder(folder).read()["evaluation"]["cases"] == {"classes": 8}
    settings = json.loads((folder / "out_of_fold/evaluation/classes/summary.json").read_text())
    assert settings["missing"] == []


def test_what_cannot_be_asked_for_of_folds(medi3d: Command, tiny: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--fold", "some"), "--fold some: give a fold's number, from 0, or all"),
        (("--jobs", 2), "--jobs trains several folds at a time; give --fold all with it"),
        (("--fold", "all", "--init", "imagenet"), "unknown init 'imagenet'"),
        (("--patch-size", "8,8"), "--patch-size 8,8: give voxels along D, H and W, such as 48,64,48"),
    ):
        answer = medi3d(*tiny_train(tiny, *arguments))
        assert answer.code == 2
        assert answer.err.startswith(f"medi3d: {message}")
        assert answer.err.count("\n") == 1
    missing = medi3d(*tiny_train(tiny, "--fold", "all", "--init", "gone.pt"))
    assert missing.code == 1
    assert "fold 0 failed: gone.pt: no such weights file" in missing.err
    assert "go on with" not in missing.err
    assert not (tmp_path / "runs").exists()


# --- flags and plans


def test_flags_set_the_keys_that_they_name(medi3d: Command, tmp_path: Path) -> None:
    import yaml

    flags = ("--patch-size", "24x32x40", "--accumulate", 2, "--ema-decay", 0.5, "--threads", 1, "--compile")
    answer = medi3d("train", "--task", "demo", *flags, "--precision", "bf16", "--print-config")
    train = yaml.safe_load(answer.out)["train"]
    assert train["patch_size"] == [24, 32, 40]
    assert (train["accumulate"], train["ema_decay"], train["threads"]) == (2, 0.5, 1)
    assert (train["compile"], train["precision"]) == (True, "bf16")
    assert not yaml.safe_load(medi3d("train", "--task", "demo", "--no-compile", "--print-config").out)["train"][
        "compile"
    ]


def test_patch_sizes() -> None:
    assert parse_sizes("8") == [8, 8, 8]
    for wrong in ("", "0", "8,8", "8,-8,8", "a", "8,8,8,8", "1.5"):
        with pytest.raises(ConfigError, match="--patch-size"):
            parse_sizes(wrong)


def test_what_is_planned_is_shown_with_reasons_kept_and_taken_again(medi3d: Command, tiny: Path) -> None:
    opened = ("--set", "train.learning_rate=null")
    answer = medi3d(*tiny_train(tiny, *opened, "--name", "one"))
    assert answer.code == 0, answer
    plan = Path("runs") / TASK / "one" / "plan.yaml"
    rate = read_plan(plan)["train.learning_rate"]
    assert any("train.learning_rate" in line and str(rate) in line for line in answer.out.splitlines())
    plan.write_text(plan.read_text().replace(f"learning_rate: {rate}", "learning_rate: 0.0625"))
    assert medi3d(*tiny_train(tiny, *opened[:0], "--plan", plan, "--name", "two")).code == 0
    config = RunFolder(Path("runs") / TASK / "two").load_config()
    assert (config.learning_rate, config.steps) == (0.0625, 2)  # a flag goes over the plan


def test_resuming_takes_the_machines_flags_and_names_the_others(medi3d: Command, tiny: Path) -> None:
    assert medi3d(*tiny_train(tiny, "--name", "one")).code == 0
    run = Path("runs") / TASK / "one"
    assert medi3d("train", "--resume", run, "--device", "cpu", "--threads", 1).code == 0
    refused = medi3d("train", "--resume", run, "--steps", 5, "--fold", 0)
    assert refused.code == 2
    assert refused.err.rstrip().endswith("leave other flags out: fold, steps")


def test_a_stopped_run_says_how_it_goes_on(medi3d: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(task: Any, *, run: Path, **options: Any) -> TrainResult:
        return TrainResult(run, 7, 1.0, float("nan"), float("nan"), stopped=True, exit_code=143)

    monkeypatch.setattr("medi3d.train.loop.train_task", stop)
    monkeypatch.setattr(cross_validation, "train_task", stop)
    line = f"go on with: medi3d train --resume runs/{TASK}"
    answer = medi3d(*tiny_train(tiny, "--name", "one"))
    assert (answer.code, answer.err) == (143, f"stopped after step 7, saved; {line}/one\n")
    answer = medi3d(*tiny_train(tiny, "--name", "all", "--fold", "all"))
    assert answer.code == 143
    assert answer.err == f"stopped before all folds were finished, saved; {line}/all\n"


def test_other_processes_than_the_first_say_nothing(
    medi3d: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(task: Any, *, run: Path, on_event: Callable[[TrainEvent], None], **options: Any) -> TrainResult:
        on_event(EVENT)
        return TrainResult(run, 2, 1.0, 0.5, 0.5)

    monkeypatch.setattr("medi3d.train.loop.train_task", answer)
    assert medi3d(*tiny_train(tiny, "--name", "one")).out
    monkeypatch.setenv("RANK", "1")
    assert medi3d(*tiny_train(tiny, "--name", "one")) == Answer(0, "", "")


# --- what is shown

EVENT = TrainEvent(
    step=120, progress=0.25, seconds=90.0, loss=0.51234, score=0.75, best=None,
    patches_per_second=3.456, waiting=0.0123, memory_gb=1.25, eta_s=270.0,
)  # fmt: skip


def test_a_step_on_one_line() -> None:
    assert describe_event(EVENT) == ("step 120  loss 0.512  score 0.750  best -  3.46 patches/s  waiting 1%  1.2 GB")


def test_a_terminal_gets_a_bar_for_each_fold_and_a_file_a_line_now_and_then() -> None:
    terminal = Console(file=text_io.StringIO(), force_terminal=True, width=200)
    with TrainProgress(terminal).shown() as progress:
        progress.update("fold 0", EVENT)
        progress.update("fold 1", EVENT)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "fold 0" in shown
    assert "fold 1" in shown
    assert "3.46 patches/s" in shown

    file = Console(file=text_io.StringIO(), width=40)
    with TrainProgress(file).shown() as progress:
        for _ in range(5):
            progress.update("demo", EVENT)
        progress.update("demo", SimpleNamespace(**{**vars(EVENT), "score": 0.875}))  # type: ignore[arg-type]
    lines = file.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2
    assert lines[0] == f"demo   25%  {describe_event(EVENT)}  0:01:30 ETA 0:04:30"
    assert "score 0.875" in lines[1]


def test_the_table_of_folds() -> None:
    outcomes = [
        FoldOutcome(0, Path("a"), TrainResult(Path("a"), 100, 61.0, 0.8, 0.9)),
        FoldOutcome(1, Path("b"), problem="gone"),
        FoldOutcome(2, Path("c"), TrainResult(Path("c"), 100, 3600.0, 0.6, 0.7)),
        FoldOutcome(3, Path("d"), TrainResult(Path("d"), 7, 1.0, float("nan"), -np.inf, stopped=True)),
    ]
    console = Console(file=text_io.StringIO(), width=120)
    print_folds(outcomes, console, measure="mean Dice")
    rows = [line.split("│")[1:-1] for line in console.file.getvalue().splitlines() if "│" in line]  # type: ignore[attr-defined]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [
        ["0", "finished", "100", "0:01:01", "0.8000", "0.9000"],
        ["1", "failed", "-", "-", "-", "-"],
        ["2", "finished", "100", "1:00:00", "0.6000", "0.7000"],
        ["3", "stopped", "7", "0:00:01", "-", "-"],
        ["mean ± sd", "", "", "", "0.7000 ± 0.1414", "0.8000 ± 0.1414"],
    ]


@pytest.mark.slow
@pytest.mark.real_data
def test_two_folds_of_hippocampus_from_raw_files_to_scores(
    medi3d: Command, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    source, raw = real_data("hippocampus"), tmp_path / "data" / "raw" / "hippocampus"
    names = sorted(path.name for path in (source / "labelsTr").glob("*.nii.gz"))[:16]
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
        for name in names:
            (raw / folder / name).symlink_to(source / folder / name)
    assert medi3d("preprocess", "--task", "hippocampus", "--workers", 1).code == 0
    flags = ("--steps", 40, "--patch-size", "24,32,24", "--batch-size", 2, "--learning-rate", 5e-3, "--device", "cpu")
    keys = ("--set", "train.folds=2", "--set", "train.validations=1")
    answer = medi3d("train", "--task", "hippocampus", "--fold", "all", "--name", "cv", *flags, *keys)
    assert answer.code == 0, answer
    folds = FoldsFolder(Path("runs") / "hippocampus" / "cv")
    evaluation = folds.read()["evaluation"]
    assert (evaluation["grid"], evaluation["cases"]) == ("native", {"labels": 16})
    anterior = evaluation["scores"]["labels"]["anterior"]["dice"]
    assert 0.3 < anterior["low"] < anterior["value"] < anterior["high"]
    # the held-out cases, predicted and scored by the commands one by one, score the same
    held_out = ("--out-of-fold", "--checkpoint", "last", "--output", "out", "--device", "cpu")
    assert medi3d("predict", folds.path, "--input", raw / "imagesTr", *held_out).code == 0
    assert medi3d("evaluate", "--task", "hippocampus", "--predictions", "out", "--references", raw).code == 0
    summary = json.loads(Path("out/evaluation/summary.json").read_text())
    assert summary["scores"]["anterior"]["dice"]["value"] == pytest.approx(anterior["value"])
    # all folds together predict a new case
    new = sorted((source / "imagesTr").glob("*.nii.gz"))[20]
    assert medi3d("predict", folds.path, "--input", new, "--output", "new", "--device", "cpu").code == 0
    assert io.read_label_map(tmp_path / "new" / new.name).shape == io.read_volume(new).shape
