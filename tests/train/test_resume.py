"""A run that was killed or asked to stop goes on to the same end, bit for bit."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import Killed, assert_equal, differences, kill_after, read_metrics, weights, with_model, with_train

from medi3d.config import TaskConfig
from medi3d.runs.checkpoint import load_checkpoint, save_checkpoint
from medi3d.train import trainer
from medi3d.train.loop import TrainEvent, TrainResult

PLAIN = {"dropout": 0.3}, {"threads": 1}
EVERYTHING = (
    {"dropout": 0.3, "drop_path": 0.2},
    {
        "threads": 1,
        "accumulate": 2,
        "ema_decay": 0.9,
        "freeze": 0.25,
        "warmup": 0.25,
        "norm_statistics": "reestimate",
        "layer_decay": 0.7,
        "learning_rate": 1e-2,
    },
)


def assert_same_runs(one: TrainResult, two: TrainResult) -> None:
    """All that the checkpoints hold, and the table, but for times."""
    for name in ("last", "best"):
        states = [load_checkpoint(result.run / "checkpoints" / f"{name}.pt") for result in (one, two)]
        assert not differences(*states, name)
    columns = ("step", "learning_rate", "loss", "score")
    tables = [[[row[name] for name in columns] for row in read_metrics(result.run)] for result in (one, two)]
    assert tables[0] == tables[1]
    assert (one.steps, one.last_score, one.best_score) == (two.steps, two.last_score, two.best_score)


@pytest.mark.parametrize(
    ("kind", "changes", "step"),
    [
        ("segmentation", PLAIN, 2),
        ("classification", PLAIN, 3),
        ("segmentation", EVERYTHING, 3),
        pytest.param("segmentation", PLAIN, 3, marks=pytest.mark.slow),
        pytest.param("classification", EVERYTHING, 2, marks=pytest.mark.slow),
    ],
)
def test_a_killed_and_resumed_run_ends_as_one_that_was_not(
    kind: str,
    changes: tuple[dict[str, object], dict[str, object]],
    step: int,
    tasks: dict[str, TaskConfig],
    train: Callable[..., TrainResult],
) -> None:
    """It is validated after steps 2 and 4; a kill after step 3 loses that step, which is done again."""
    task = with_train(with_model(tasks[kind], **changes[0]), **changes[1])
    if changes is EVERYTHING:
        task = with_train(task, augment=replace(task.train.augment, mixup=0.4))
    whole = train(task, "whole")
    with pytest.raises(Killed):
        train(task, "resumed", on_event=kill_after(step))
    torch.rand(5)
    resumed = train(task, "resumed", resume=True)
    assert resumed.steps == 4
    assert_same_runs(resumed, whole)


def test_a_checkpoint_comes_when_it_is_due(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every 10 s of a clock that goes 4 s a step: after the fourth, which is at 12 s."""
    clock = {"now": 0.0}
    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock["now"])
    task = with_train(segmentation_task, steps=8, validations=1, save_every="10s", threads=1)
    steps: list[int] = []

    def on_event(event: TrainEvent) -> None:
        clock["now"] += 4
        steps.append(event.step)
        if len(steps) == 7:
            raise Killed

    with pytest.raises(Killed):
        train(task, "run", on_event=on_event)
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"]
    assert saved == 4
    train(task, "run", resume=True, on_event=on_event)
    assert steps == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    number: signal.Signals, segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    task = with_train(segmentation_task, threads=1)

    def ask(event: TrainEvent) -> None:
        if event.step == 3:
            os.kill(os.getpid(), number)

    stopped = train(task, "run", on_event=ask)
    assert (stopped.stopped, stopped.steps, stopped.exit_code) == (True, 3, 128 + number)
    resumed = train(task, "run", resume=True)
    assert (resumed.stopped, resumed.steps, resumed.exit_code) == (False, 4, 0)
    if number == signal.SIGTERM:
        assert_same_runs(resumed, train(task, "whole"))


def test_a_run_without_a_checkpoint_starts_again(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        train(segmentation_task, "run", on_event=kill_after(1))
    steps: list[int] = []
    train(segmentation_task, "run", resume=True, on_event=lambda event: steps.append(event.step))
    assert steps == [1, 2, 3, 4]
    assert "ended before its first checkpoint; starts again from step 0" in caplog.text


def test_a_run_that_goes_on_needs_no_pretrained_weights(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], tmp_path: Path
) -> None:
    """They may be gone from the disk that it began with."""
    first = train(with_train(segmentation_task, steps=1, validations=1), "first")
    source = tmp_path / "weights.pt"
    source.write_bytes((first.run / "checkpoints" / "last.pt").read_bytes())
    task = with_model(segmentation_task, init=str(source))
    with pytest.raises(Killed):
        train(task, "run", on_event=kill_after(2))
    source.unlink()
    assert train(task, "run", resume=True).steps == 4


def test_a_budget_goes_on_where_it_stood(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes 1 s a step; of 9 s, the four before the kill count."""
    clock = {"now": 0.0}
    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock["now"])
    task = with_train(segmentation_task, budget="9s", validations=2, threads=1)
    seconds: list[float] = []

    def on_event(event: TrainEvent) -> None:
        clock["now"] += 1
        seconds.append(event.seconds)
        assert event.steps is None
        assert event.budget_s == 9
        if len(seconds) == 7:
            raise Killed

    with pytest.raises(Killed):
        train(task, "run", on_event=on_event)
    clock["now"] = 500.0
    train(task, "run", resume=True, on_event=on_event)
    assert seconds == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9]


def test_resuming_a_finished_run_changes_nothing(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    first = train(segmentation_task, "run")
    before = weights(first.run)
    again = train(segmentation_task, "run", resume=True)
    assert (again.steps, again.last_score, again.best_score) == (first.steps, first.last_score, first.best_score)
    assert_equal(weights(again.run), before)


def test_another_number_of_processes_is_warned_of(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], caplog: pytest.LogCaptureFixture
) -> None:
    result = train(with_train(segmentation_task, steps=1, validations=1), "run")
    path = result.run / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    state["processes"] = 3
    save_checkpoint(state, path)
    with caplog.at_level(logging.WARNING):
        train(segmentation_task, "run", resume=True)
    assert "goes on with 1 processes, 3 before" in caplog.text
