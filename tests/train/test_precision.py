"""The number format of a run: planned for the machine, kept where the run goes on, refused where it cannot be had."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import Killed, assert_equal, kill_after, read_metrics, weights, with_train

from medi3d.config import TaskConfig
from medi3d.planning import Plan
from medi3d.planning import machine as machine_module
from medi3d.runs.folder import RunFolder
from medi3d.train import processes, train_task
from medi3d.train.loop import TrainResult


def test_a_planned_format_is_that_of_a_run_told_so(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "find_bf16", lambda device: "AVX512_BF16")
    plans: list[Plan] = []
    short = with_train(segmentation_task, steps=2, validations=1, threads=1)
    runs = {
        name: train(with_train(short, precision=name), str(name), on_plan=plans.append) for name in (None, "bf16", "no")
    }
    assert plans[0].chosen["train.precision"] == "bf16"
    assert RunFolder(runs[None].run).load_config().precision == "bf16"
    assert_equal(weights(runs[None].run), weights(runs["bf16"].run))
    losses = {name: [row["loss"] for row in read_metrics(result.run)] for name, result in runs.items()}
    assert losses[None] == losses["bf16"] != losses["no"]


def test_a_run_keeps_its_format_on_a_machine_without_it_and_says_so(
    segmentation_task: TaskConfig,
    train: Callable[..., TrainResult],
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = with_train(segmentation_task, precision="bf16", save_every="0.001s", steps=3, validations=1, threads=1)
    whole = train(task, "whole")
    with pytest.raises(Killed):
        train(task, "killed", on_event=kill_after(2))
    killed = whole.run.with_name("killed")
    monkeypatch.setattr(processes, "find_bf16", lambda device: "")
    with caplog.at_level(logging.WARNING):
        train_task(
            RunFolder(killed).load_config(),
            prepared=tiny / "prepared" / task.name,
            run=killed,
            device="cpu",
            resume=True,
        )
    assert "bf16 is computed in software on this CPU" in caplog.text
    assert_equal(weights(killed), weights(whole.run))
