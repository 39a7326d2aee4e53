"""Cross-validation: a run for each fold, one after the other or several at a time, and what came of them.

A fold that fails is named and the others go on; under a launcher it ends the processes, which would no longer be at the
same place. Begun again, it skips folds that are finished and resumes the others.
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
from medi3d.planning import Plan, write_plan
from medi3d.runs.checkpoint import has_checkpoint, load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import FoldsFolder
from medi3d.train.loop import TrainEvent, TrainResult, plan_alike, train_task
from medi3d.train.processes import ask_main, create_accelerator
from medi3d.train.stop import StopRequest
from medi3d.train.threads import count_cores

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
        ConfigError: what keeps every fold from beginning.
        Medi3dError: the folder cannot be written.
    """
    if jobs > 1 and "RANK" in os.environ:
        raise ConfigError("--jobs: several folds at a time are for a single process; leave it out under a launcher")
    accelerator = create_accelerator(task, device)
    folder = ask_main(lambda: folder)
    folds = FoldsFolder(folder)
    earlier = ask_main(lambda: folds.read()["folds"] if folds.exists else {})
    plan = plan_alike(task, PreparedStore(prepared), accelerator, device=device, jobs=jobs)
    task = plan.task
    record: dict[str, Any] = {
        "task": dump_task(task),
        "prepared": str(prepared.resolve()),
        "folds": {fold: earlier.get(fold, {"state": "open"}) for fold in range(task.train.folds)},
    }
    if plan.chosen and is_main_process():
        on_plan(plan)

    def tell(fold: int, event: TrainEvent) -> None:
        if not folds.exists:
            _write(folds, record, plan)
        on_event(fold, event)

    todo = [FoldJob(task, prepared, folds.fold(fold).path, fold, device) for fold in range(task.train.folds)]
    outcomes: list[FoldOutcome] = []
    with closing(_one_by_one(todo, tell) if jobs == 1 else _side_by_side(todo, jobs, tell)) as ended:
        for outcome in ended:
            outcomes.append(outcome)
            record["folds"][outcome.fold] = _describe(outcome)
            _write(folds, record, plan)
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
        result, begun = ask_main(lambda: (finished_result(folder), folder.config_file.exists()))
        if result is None:
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
    except ConfigError:
        raise
    except Medi3dError as error:
        if torch.distributed.is_initialized():
            raise Medi3dError(f"fold {job.fold} failed: {error}") from error
        return FoldOutcome(job.fold, job.run, problem=str(error))
    except Exception as error:
        if torch.distributed.is_initialized():
            raise
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
                    if isinstance(message, TrainEvent):
                        on_event(child.job.fold, message)
                        continue
                    del running[child.connection]
                    slots.append(child.slot)
                    if message is not None:
                        yield message
                    elif not told:  # else it heard the signal before it could begin
                        yield child.explain_end(jobs)
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

    def receive(self) -> TrainEvent | FoldOutcome | None:
        """Return what the process tells next: at last, how the fold ended; ``None`` where it died without a word."""
        try:
            message: TrainEvent | FoldOutcome = self.connection.recv()
        except EOFError:
            self.process.join()
            return None
        if isinstance(message, FoldOutcome):
            self.process.join()
        return message

    def explain_end(self, jobs: int) -> FoldOutcome:
        """Say how the process died."""
        cause = _name_exit(self.process.exitcode)
        problem = f"its process was killed ({cause}); memory may not suffice for --jobs {jobs}"
        return FoldOutcome(self.job.fold, self.job.run, problem=problem)


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

    try:
        outcome = _train_fold(job, tell)
    except ConfigError as error:
        outcome = FoldOutcome(job.fold, job.run, problem=str(error))
    with suppress(OSError):
        connection.send(outcome)


def _share_machine(job: FoldJob, slot: int, jobs: int) -> FoldJob:
    """Give a job its part of the machine: a GPU of its own where there are several, else its share of the cores."""
    gpus = torch.cuda.device_count() if job.device in ("auto", "cuda") else 0
    threads = job.task.train.threads or count_cores(processes=jobs)
    task = replace(job.task, train=replace(job.task.train, threads=threads))
    return replace(job, task=task, device=f"cuda:{slot % gpus}" if gpus > 1 else job.device)


def _name_exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _write(folds: FoldsFolder, record: dict[str, Any], plan: Plan) -> None:
    """Write what is known of the folds, once one has begun: a mistake that keeps all from it leaves nothing behind."""
    if not is_main_process() or not any(folds.fold(number).config_file.exists() for number in record["folds"]):
        return
    if plan.chosen and not folds.exists:
        write_plan(plan, folds.path / "plan.yaml")
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
