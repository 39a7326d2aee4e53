"""Cross-validation: a run for each fold, one after the other or several at a time, and what came of them.

A fold that fails is named and the others go on. Begun again, it skips folds that are finished and resumes the others.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch

from medi3d.config import TaskConfig, dump_task
from medi3d.errors import ConfigError, Medi3dError
from medi3d.io.prepared import PreparedStore
from medi3d.planning import Plan, plan_task, write_plan
from medi3d.runs.checkpoint import has_checkpoint, load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import FoldsFolder
from medi3d.train.loop import TrainEvent, TrainResult, train_task
from medi3d.train.stop import StopRequest

logger = logging.getLogger(__name__)

OnFold = Callable[[int, TrainEvent], None]
"""Called with a fold and what its run tells."""

_TELL_EVERY_S, _LOOK_EVERY_S = 0.2, 0.5


@dataclass(frozen=True)
class FoldOutcome:
    """How a fold ended.

    Attributes:
        fold: its number.
        run: its folder.
        result: of its run; ``None`` where it failed.
        problem: why it failed, one line.
    """

    fold: int
    run: Path
    result: TrainResult | None = None
    problem: str | None = None

    @property
    def state(self) -> str:
        """``finished``, ``stopped`` (by a signal; to be resumed) or ``failed``."""
        if self.result is None:
            return "failed"
        return "stopped" if self.result.stopped else "finished"


@dataclass(frozen=True)
class FoldJob:
    """One fold to be trained."""

    task: TaskConfig
    prepared: Path
    run: Path
    fold: int
    device: str


def cross_validate(
    task: TaskConfig,
    *,
    prepared: Path,
    folder: Path,
    device: str = "auto",
    jobs: int = 1,
    on_event: OnFold = lambda fold, event: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> list[FoldOutcome]:
    """Train every fold of a task; folds that a folder holds already are skipped where they are finished, or resumed.

    Args:
        task: the resolved configuration.
        prepared: folder that ``medi3d preprocess`` wrote.
        folder: of the folds; see :class:`medi3d.runs.folds.FoldsFolder`.
        device: as :func:`medi3d.train.train_task` takes it; ``auto`` gives each of several jobs a GPU of its own.
        jobs: how many folds are trained at a time. More than one are processes of their own, which share the
            processor's cores.
        on_event: called as the folds go on, in this process.
        on_plan: called once with what was planned, for all folds alike, where the task leaves something open; it is
            written to the folder's ``plan.yaml`` too.

    Returns:
        An outcome for each fold that was begun: all of them, unless a signal asked to stop.

    Raises:
        InputError: no prepared cases.
        Medi3dError: the folder cannot be written.
    """
    if jobs > 1 and "RANK" in os.environ:
        raise ConfigError("--jobs: several folds at a time are for a single process; leave it out under a launcher")
    folds = FoldsFolder(folder)
    plan = plan_task(task, PreparedStore(prepared), device=device)
    task = plan.task
    record: dict[str, Any] = {
        "task": dump_task(task),
        "prepared": str(prepared.resolve()),
        "folds": {fold: {"state": "open"} for fold in range(task.train.folds)},
    }
    _write(folds, record)
    if plan.chosen and is_main_process():
        write_plan(plan, folder / "plan.yaml")
        on_plan(plan)
    todo = [FoldJob(task, prepared, folds.fold(fold).path, fold, device) for fold in range(task.train.folds)]
    outcomes: list[FoldOutcome] = []
    with closing(_one_by_one(todo, on_event) if jobs == 1 else _side_by_side(todo, jobs, on_event)) as ended:
        for outcome in ended:
            outcomes.append(outcome)
            record["folds"][outcome.fold] = _describe(outcome)
            _write(folds, record)
    return sorted(outcomes, key=lambda outcome: outcome.fold)


def is_main_process() -> bool:
    """Tell whether this is the process of a run that writes and prints; launchers number theirs in ``RANK``."""
    return os.environ.get("RANK", "0") == "0"


def finished_result(folder: RunFolder) -> TrainResult | None:
    """Return how a run ended; ``None`` where it has not begun, or is not at its end."""
    if not has_checkpoint(folder.last):
        return None
    state = load_checkpoint(folder.last)
    if state["progress"] < 1 or state["validated"] < folder.load_config().train.validations:
        return None
    return TrainResult(folder.path, state["step"], state["seconds"], state["score"], state["best"])


def _train_fold(job: FoldJob, on_event: Callable[[TrainEvent], None]) -> FoldOutcome:
    folder = RunFolder(job.run)
    try:
        result = finished_result(folder)
        if result is None:
            begun = folder.config_file.exists()
            task = folder.load_config() if begun else job.task
            # how many threads a process takes is the machine's, not the run's
            task = replace(task, train=replace(task.train, threads=job.task.train.threads))
            result = train_task(
                task,
                prepared=job.prepared,
                run=job.run,
                fold=job.fold,
                device=job.device,
                resume=begun,
                on_event=on_event,
            )
    except Medi3dError as error:
        return FoldOutcome(job.fold, job.run, problem=str(error))
    except Exception as error:
        logger.exception("fold %d failed", job.fold)
        return FoldOutcome(job.fold, job.run, problem=f"{type(error).__name__}: {error}")
    return FoldOutcome(job.fold, job.run, result)


def _one_by_one(todo: Sequence[FoldJob], on_event: OnFold) -> Generator[FoldOutcome, None, None]:
    for job in todo:
        outcome = _train_fold(job, partial(on_event, job.fold))
        yield outcome
        if outcome.state == "stopped":
            return


def _side_by_side(todo: Sequence[FoldJob], jobs: int, on_event: OnFold) -> Generator[FoldOutcome, None, None]:
    """Train each fold in a process of its own, ``jobs`` at a time; a signal to stop is passed on to all of them."""
    waiting, slots = list(todo), list(range(jobs))
    running: dict[Connection, _Child] = {}
    try:
        with StopRequest() as stop:
            told = False
            while running or (waiting and not stop.requested):
                while waiting and slots and not stop.requested:
                    slot = slots.pop(0)
                    child = _Child(_share_machine(waiting.pop(0), slot, jobs), slot)
                    running[child.connection] = child
                for connection in wait(list(running), timeout=_LOOK_EVERY_S):
                    child = running[cast(Connection, connection)]
                    message = child.receive()
                    if isinstance(message, FoldOutcome):
                        del running[child.connection]
                        slots.append(child.slot)
                        yield message
                    else:
                        on_event(child.job.fold, message)
                if stop.requested and not told:
                    told = True
                    for child in running.values():
                        child.process.terminate()
    finally:
        for child in running.values():
            child.process.terminate()
            child.process.join()


class _Child:
    """A process that trains one fold, and the line over which it tells of it."""

    def __init__(self, job: FoldJob, slot: int) -> None:
        self.job, self.slot = job, slot
        context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU, nor torch's threads
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_run_child, args=(job, theirs), name=f"fold {job.fold}")
        self.process.start()
        theirs.close()

    def receive(self) -> TrainEvent | FoldOutcome:
        """Return what the process tells next: at last, how the fold ended, or that the process was killed."""
        try:
            message: TrainEvent | FoldOutcome = self.connection.recv()
        except EOFError:
            self.process.join()
            problem = f"its process was killed ({_name_exit(self.process.exitcode)}); memory may not suffice for --jobs"
            return FoldOutcome(self.job.fold, self.job.run, problem=problem)
        if isinstance(message, FoldOutcome):
            self.process.join()
        return message


def _run_child(job: FoldJob, connection: Connection) -> None:
    """Train one fold and tell the parent; where the parent is gone, save and end."""
    told = 0.0

    def tell(event: TrainEvent) -> None:
        nonlocal told
        if time.monotonic() - told < _TELL_EVERY_S and event.progress < 1:
            return
        told = time.monotonic()
        try:
            connection.send(event)
        except OSError:
            signal.raise_signal(signal.SIGTERM)

    outcome = _train_fold(job, tell)
    with suppress(OSError):
        connection.send(outcome)


def _share_machine(job: FoldJob, slot: int, jobs: int) -> FoldJob:
    """Give a job its part of the machine: a GPU of its own where there are several, else its share of the cores."""
    gpus = torch.cuda.device_count() if job.device in ("auto", "cuda") else 0
    threads = job.task.train.threads or max(_count_cores() // jobs, 1)
    task = replace(job.task, train=replace(job.task.train, threads=threads))
    return replace(job, task=task, device=f"cuda:{slot % gpus}" if gpus > 1 else job.device)


def _count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name_exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _write(folds: FoldsFolder, record: dict[str, Any]) -> None:
    if is_main_process():
        folds.write(record)


def _describe(outcome: FoldOutcome) -> dict[str, Any]:
    """Return a fold's part of the record."""
    entry: dict[str, Any] = {"state": outcome.state}
    if outcome.problem is not None:
        entry["problem"] = outcome.problem
    if outcome.result is not None:
        result = outcome.result
        entry |= {"steps": result.steps, "seconds": round(result.seconds, 1)}
        scores = {"last_score": result.last_score, "best_score": result.best_score}
        entry |= {name: score if math.isfinite(score) else None for name, score in scores.items()}
    return entry
