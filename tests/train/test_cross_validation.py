from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest
import torch

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError, Medi3dError
from medi3d.planning import read_plan
from medi3d.runs.checkpoint import load_checkpoint, save_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import FoldsFolder
from medi3d.train import cross_validation
from medi3d.train.cross_validation import FoldJob, FoldOutcome, cross_validate, finished_result
from medi3d.train.loop import TrainEvent, TrainResult, train_task

CrossValidate = Callable[..., list[FoldOutcome]]


@pytest.fixture
def short(segmentation_task: TaskConfig) -> TaskConfig:
    """Three folds of two steps, on one thread, so that the bits do not depend on how many are at work."""
    return replace(segmentation_task, train=replace(segmentation_task.train, steps=2, validations=1, threads=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tiny" / "all"


@pytest.fixture
def train(short: TaskConfig, tiny: Path, folder: Path) -> CrossValidate:
    def run(task: TaskConfig = short, **options: object) -> list[FoldOutcome]:
        return cross_validate(task, prepared=tiny / "prepared" / task.name, folder=folder, device="cpu", **options)  # type: ignore[arg-type]

    return run


def begin(folder: Path, *folds: int) -> None:
    """Leave what a fold leaves that has begun, as far as its folder knows."""
    for fold in folds:
        run = RunFolder(folder / f"fold{fold}")
        run.path.mkdir(parents=True)
        run.config_file.write_text("name: tiny\nkind: segmentation\ndata: {labels: {1: one}}\n")


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(RunFolder(run).last)["model"]
    return state


def test_every_case_is_held_out_once_and_each_fold_is_the_run_that_it_would_be_alone(
    train: CrossValidate, short: TaskConfig, tiny: Path, folder: Path, tmp_path: Path
) -> None:
    told: list[int] = []
    outcomes = train(on_event=lambda fold, event: told.append(fold))
    assert [(outcome.fold, outcome.state) for outcome in outcomes] == [
        (0, "finished"),
        (1, "finished"),
        (2, "finished"),
    ]
    assert told == [0, 0, 1, 1, 2, 2]
    held_out = [name for outcome in outcomes for name in RunFolder(outcome.run).load_split().validation]
    assert sorted(held_out) == [f"case_{number}" for number in range(6)]
    alone = train_task(short, prepared=tiny / "prepared" / short.name, run=tmp_path / "alone", fold=1, device="cpu")
    for name, tensor in weights(alone.run).items():
        assert torch.equal(tensor, weights(folder / "fold1")[name]), name
    record = FoldsFolder(folder).read()
    assert record["folds"][1]["state"] == "finished"
    assert record["folds"][1]["steps"] == 2
    assert record["folds"][1]["last_score"] == pytest.approx(alone.last_score)
    assert record["prepared"] == str((tiny / "prepared" / short.name).resolve())


def test_what_is_finished_is_skipped_and_what_is_not_goes_on(
    train: CrossValidate, short: TaskConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(train()) == 3
    # fold 1 stands after its first step, and fold 2 has not begun
    state = load_checkpoint(RunFolder(folder / "fold1").last)
    before = RunFolder(folder / "fold0").last.stat().st_mtime_ns
    save_checkpoint(state | {"progress": 0.5, "step": 1, "validated": 0}, RunFolder(folder / "fold1").last)
    rmtree(folder / "fold2")
    began: list[tuple[int, bool]] = []
    real = train_task

    def note(task: TaskConfig, **options: object) -> TrainResult:
        began.append((options["fold"], options["resume"]))  # type: ignore[arg-type]
        return real(task, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cross_validation, "train_task", note)
    assert [outcome.state for outcome in train()] == ["finished"] * 3
    assert began == [(1, True), (2, False)]
    assert RunFolder(folder / "fold0").last.stat().st_mtime_ns == before
    skipped = finished_result(RunFolder(folder / "fold0"))
    assert skipped is not None
    assert skipped.steps == 2
    assert finished_result(RunFolder(folder / "none")) is None


def test_a_fold_that_fails_is_named_and_the_others_go_on(
    train: CrossValidate, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = {0: Medi3dError("the loss is nan"), 1: ZeroDivisionError("division by zero")}

    def fail(task: TaskConfig, *, run: Path, fold: int, **options: object) -> TrainResult:
        if fold in failures:
            raise failures[fold]
        return TrainResult(run, 2, 1.0, 0.5, 0.5)

    begin(folder, 1)
    monkeypatch.setattr(cross_validation, "train_task", fail)
    first, second, third = train()
    assert (first.state, first.problem) == ("failed", "the loss is nan")
    assert (second.state, second.problem) == ("failed", "ZeroDivisionError: division by zero")
    assert "Traceback" in caplog.text  # of the one that is no user's mistake
    assert third.state == "finished"
    entries = FoldsFolder(folder).read()["folds"]
    assert entries[0] == {"state": "failed", "problem": "the loss is nan"}
    assert entries[2]["state"] == "finished"


def test_a_signal_stops_the_folds_that_follow(
    train: CrossValidate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(task: TaskConfig, *, run: Path, **options: object) -> TrainResult:
        return TrainResult(run, 1, 0.5, math.nan, -math.inf, stopped=True)

    begin(folder, 0)
    monkeypatch.setattr(cross_validation, "train_task", stop)
    assert [(outcome.fold, outcome.state) for outcome in train()] == [(0, "stopped")]
    entries = FoldsFolder(folder).read()["folds"]
    assert entries[0] == {"state": "stopped", "steps": 1, "seconds": 0.5, "last_score": None, "best_score": None}
    assert entries[1] == {"state": "open"}


def test_what_a_task_leaves_open_is_planned_once_for_all_folds(
    train: CrossValidate, short: TaskConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[object] = []
    given: list[float | None] = []

    def note(task: TaskConfig, *, run: Path, fold: int, **options: object) -> TrainResult:
        begin(folder, fold)
        given.append(task.train.learning_rate)
        return TrainResult(run, 2, 1.0, 0.5, 0.5)

    monkeypatch.setattr(cross_validation, "train_task", note)
    train(replace(short, train=replace(short.train, learning_rate=None)), on_plan=plans.append)
    assert len(plans) == 1
    assert given == [read_plan(folder / "plan.yaml")["train.learning_rate"]] * 3


# --- several folds at a time


@pytest.mark.slow
def test_folds_side_by_side_are_those_one_after_the_other(
    train: CrossValidate, short: TaskConfig, tiny: Path, folder: Path
) -> None:
    told: set[int] = set()
    outcomes = train(jobs=2, on_event=lambda fold, event: told.add(fold))
    assert [outcome.state for outcome in outcomes] == ["finished"] * 3
    assert told == {0, 1, 2}
    one_by_one = cross_validate(
        short, prepared=tiny / "prepared" / short.name, folder=folder.with_name("other"), device="cpu"
    )
    for outcome in one_by_one:
        for name, tensor in weights(outcome.run).items():
            assert torch.equal(tensor, weights(folder / f"fold{outcome.fold}")[name]), name


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_others_go_on(train: CrossValidate, short: TaskConfig) -> None:
    long = replace(short, train=replace(short.train, steps=5000))
    children: dict[int, int] = {}
    real = cross_validation._Child.__init__

    def remember(self: cross_validation._Child, job: FoldJob, slot: int) -> None:
        # the second fold is long, and killed
        real(self, replace(job, task=long if job.fold == 1 else job.task), slot)
        children[job.fold] = self.process.pid or 0

    def kill(fold: int, event: TrainEvent) -> None:
        if fold == 1 and event.step < 5000:
            os.kill(children[1], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation._Child, "__init__", remember)
        outcomes = train(jobs=2, on_event=kill)
    assert [outcome.state for outcome in outcomes] == ["finished", "failed", "finished"]
    assert outcomes[1].problem == "its process was killed (SIGKILL); memory may not suffice for --jobs 2"


@pytest.mark.slow
def test_a_stop_reaches_every_process_and_all_of_them_save(train: CrossValidate, short: TaskConfig) -> None:
    long = replace(short, train=replace(short.train, steps=100_000))
    running: set[int] = set()

    def stop_when_both_run(fold: int, event: TrainEvent) -> None:
        running.add(fold)
        if len(running) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    outcomes = train(long, jobs=2, on_event=stop_when_both_run)
    assert [(outcome.fold, outcome.state) for outcome in outcomes] == [(0, "stopped"), (1, "stopped")]
    for outcome in outcomes:
        assert outcome.result is not None
        state = load_checkpoint(RunFolder(outcome.run).last)
        assert 0 < state["step"] == outcome.result.steps


def test_cores_and_gpus_are_shared(short: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def share(slot: int, device: str = "auto", threads: int | None = None) -> tuple[str, int | None]:
        task = replace(short, train=replace(short.train, threads=threads))
        given = cross_validation._share_machine(FoldJob(task, tmp_path, tmp_path, 3, device), slot, 3)
        return given.device, given.task.train.threads

    monkeypatch.setattr(cross_validation, "count_cores", lambda *, processes: 8 // processes)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert share(1) == ("auto", 2)
    assert share(1, threads=5) == ("auto", 5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [share(slot)[0] for slot in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert share(1, "cpu")[0] == "cpu"
    assert share(0, "cuda:1")[0] == "cuda:1"


def test_under_a_launcher_one_fold_follows_the_other_and_the_first_process_writes(
    train: CrossValidate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation.os, "environ", {**os.environ, "RANK": "1"})
    with pytest.raises(ConfigError, match="--jobs: several folds at a time are for a single process"):
        train(jobs=2)
    monkeypatch.setattr(cross_validation, "train_task", lambda task, *, run, **_: TrainResult(run, 2, 1.0, 0.5, 0.5))
    assert len(train()) == 3
    assert not folder.exists()


def test_a_mistake_that_keeps_every_fold_from_beginning_leaves_nothing_behind(
    train: CrossValidate, short: TaskConfig, folder: Path
) -> None:
    with pytest.raises(ConfigError, match="unknown init 'imagenet'"):
        train(replace(short, model=replace(short.model, init="imagenet")))
    assert not folder.exists()
    gone = replace(short, model=replace(short.model, init="gone.pt"))
    assert {outcome.problem for outcome in train(gone)} == {"gone.pt: no such weights file"}
    assert not folder.exists()


def test_the_record_keeps_what_was_known_of_folds_that_are_not_reached(
    train: CrossValidate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder, 0, 1)
    known = {"state": "failed", "problem": "before"}
    FoldsFolder(folder).write({"folds": {0: {"state": "open"}, 1: known, 2: {"state": "open"}}})
    monkeypatch.setattr(
        cross_validation, "train_task", lambda task, *, run, **_: TrainResult(run, 1, 0.5, 0.25, 0.25, stopped=True)
    )
    train()
    record = json.loads((folder / "cross_validation.json").read_text())
    assert record["folds"]["0"]["state"] == "stopped"
    assert record["folds"]["1"] == known
