"""What the tests of training share: tasks changed by a few keys, runs on the tiny stores, what runs leave."""

from __future__ import annotations

import csv
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medi3d.config import TaskConfig, load_task
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.train import train_task
from medi3d.train.loop import TrainEvent


def with_train(task: TaskConfig, **options: object) -> TaskConfig:
    return replace(task, train=replace(task.train, **options))  # type: ignore[arg-type]


def with_model(task: TaskConfig, **options: object) -> TaskConfig:
    return replace(task, model=replace(task.model, **options))  # type: ignore[arg-type]


class Killed(Exception):
    """What a killed process would feel."""


def kill_after(step: int) -> Callable[[TrainEvent], None]:
    def on_event(event: TrainEvent) -> None:
        if event.step == step:
            raise Killed

    return on_event


def weights(run: Path, name: str = "last", key: str = "model") -> dict[str, Tensor]:
    state = load_checkpoint(run / "checkpoints" / f"{name}.pt")[key]
    assert state
    return dict(state)


def differences(one: Any, two: Any, name: str = "") -> list[str]:
    """Return where two states differ: every tensor bit for bit, every other value, but for times."""
    if name.rpartition("/")[2] in ("seconds", "cpu_seconds", "validation_s"):
        return []
    if isinstance(one, Tensor):
        return [] if isinstance(two, Tensor) and torch.equal(one, two) else [name]
    if isinstance(one, dict):
        assert one.keys() == two.keys(), name
        return [found for key in one for found in differences(one[key], two[key], f"{name}/{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(two), name
        pairs = enumerate(zip(one, two, strict=True))
        return [found for number, pair in pairs for found in differences(*pair, f"{name}/{number}")]
    return [] if one == two or one != one else [f"{name} {one} {two}"]


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert not differences(one, two)


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# --- runs of several processes


def start_processes(count: int, function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Run a function in processes that a launcher could have started; return their exit codes.

    Args:
        count: how many.
        function: of a module, called with its process's number and the arguments.
        arguments: passed on.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medi3d.data.loader", "medi3d.train.loop"])
    processes = [
        context.Process(target=_join_and_call, args=(number, count, port, function, arguments))
        for number in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
            pytest.fail("a process did not end")
    return [process.exitcode for process in processes]


def _join_and_call(number: int, count: int, port: int, function: Callable[..., None], arguments: Any) -> None:
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    function(number, *arguments)


def train_and_note(number: int, values: Path, overrides: dict[str, object], prepared: Path, run: Path) -> None:
    """Train as one of the processes; the losses of all steps go to a file beside the run."""
    losses: list[float] = []
    task = load_task(values, overrides=overrides)
    train_task(task, prepared=prepared, run=run, device="cpu", on_event=lambda event: losses.append(event.loss))
    if number == 0:
        run.with_suffix(".losses").write_text("\n".join(map(repr, losses)))


def read_losses(run: Path) -> list[float]:
    return [float(line) for line in run.with_suffix(".losses").read_text().splitlines()]
