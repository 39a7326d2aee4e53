"""Training one fold of a task: from prepared cases and a configuration to a run that is finished or can go on."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from medi3d.config import TaskConfig, dump_task
from medi3d.data.splits import Split, split_cases
from medi3d.errors import ConfigError, InputError, MissingDependencyError
from medi3d.io.prepared import PreparedCase, PreparedStore
from medi3d.models.shared import read_held_out
from medi3d.planning import Plan, plan_task, write_plan
from medi3d.planning.combine import combine_plans
from medi3d.planning.machine import find_machine, name_device
from medi3d.runs.checkpoint import State
from medi3d.runs.folder import RunFolder
from medi3d.train.events import TrainEvent, TrainResult
from medi3d.train.health import explain_out_of_memory, is_out_of_memory
from medi3d.train.part import TaskPart
from medi3d.train.processes import ask_main, count_local_processes, create_accelerator, list_causes, named_losses
from medi3d.train.stop import StopRequest
from medi3d.train.trainer import Trainer

__all__ = ["TrainEvent", "TrainResult", "train_task"]

logger = logging.getLogger(__name__)

_COMPILERS = ("g++", "clang++")


@dataclass(frozen=True)
class Source:
    """What a task of a run is trained from.

    Args:
        task: its configuration.
        store: its prepared data.
        record: where configuration, split, environment and plan are kept.
    """

    task: TaskConfig
    store: PreparedStore
    record: RunFolder


@dataclass(frozen=True)
class Job:
    """What was asked for.

    Args:
        sources: of each task.
        folder: of the run.
        fold: which fold to validate on.
        device: as :func:`train_task` takes it.
        resume: go on from the run's last checkpoint.
        mix: gives parts of a run of several tasks their shares and weights.
        on_created: called in the first process with the tasks that are trained, when their records are written.
    """

    sources: Sequence[Source]
    folder: RunFolder
    fold: int
    device: str
    resume: bool
    mix: Callable[[list[TaskPart]], list[TaskPart]] = lambda parts: parts
    on_created: Callable[[list[TaskConfig]], None] = lambda tasks: None


def train_task(
    task: TaskConfig,
    *,
    prepared: Path,
    run: Path,
    fold: int = 0,
    device: str = "auto",
    resume: bool = False,
    on_event: Callable[[TrainEvent], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> TrainResult:
    """Train one fold of a task.

    Under a launcher (``accelerate launch``, ``torchrun``), each process calls it alike; the first one writes.

    Args:
        task: the resolved configuration.
        prepared: folder that ``medi3d preprocess`` wrote.
        run: folder of the run; it must not hold one unless ``resume``.
        fold: which fold to validate on.
        device: ``auto`` takes a GPU where there is one, ``cpu`` stays on the processor, ``cuda`` and ``cuda:1`` name
            one.
        resume: go on from the run's last checkpoint.
        on_event: called after every step, in the first process.
        on_plan: called once with what was planned, where the task leaves something open; it is written to the run's
            ``plan.yaml`` too.

    Raises:
        InputError: no prepared cases, cases that do not fit the task, or a run folder that is taken.
        WeightsError: pretrained weights or a checkpoint that cannot be had.
        Medi3dError: the loss stopped being a number, memory did not suffice, or another process is gone.
    """
    folder = RunFolder(run)
    job = Job([Source(task, PreparedStore(prepared), folder)], folder, fold, device, resume)
    show = on_plan or (lambda plan: None)
    return run_job(job, on_event=on_event, on_plans=lambda plans: show(plans[0]) if plans[0].chosen else None)


def run_job(
    job: Job,
    *,
    on_event: Callable[[TrainEvent], None] | None = None,
    on_plans: Callable[[list[Plan]], None] = lambda plans: None,
) -> TrainResult:
    """Train one fold of one task, or of several on one encoder; see :func:`train_task`.

    Args:
        job: what to train.
        on_event: called after every step, in the first process.
        on_plans: called in the first process with the plan of each task, before the first step.
    """
    for source in job.sources:
        check_settings(source.store, source.task)
        if not job.resume:
            warn_of_seen_cases(source.task, job.fold)
    accelerator = create_accelerator(job.sources[0].task, job.device)
    with StopRequest() as stop, named_losses(accelerator, job.folder.path):
        plans = combine_plans([plan_alike(one.task, one.store, accelerator, device=job.device) for one in job.sources])
        if job.sources[0].task.train.precision is None:
            accelerator = create_accelerator(plans[0].task, job.device)
        try:
            return _train(job, plans, accelerator, stop, on_event=on_event, on_plans=on_plans)
        except Exception as error:
            cause = next((cause for cause in list_causes(error) if is_out_of_memory(cause)), None)
            if cause is None:
                raise
            largest = max((plan.task for plan in plans), key=lambda task: task.batch_size * math.prod(task.patch_size))
            raise explain_out_of_memory(cause, largest, among_others=len(plans) > 1) from error


def _train(
    job: Job,
    plans: Sequence[Plan],
    accelerator: Accelerator,
    stop: StopRequest,
    *,
    on_event: Callable[[TrainEvent], None] | None,
    on_plans: Callable[[list[Plan]], None],
) -> TrainResult:
    folder, writes = job.folder, accelerator.is_main_process
    if writes and not job.resume:
        folder.check_free()
    parts = find_parts(job, plans)
    for part in parts:
        _check_options(part.task, accelerator)
    with ExitStack() as locked:
        if writes and job.resume:
            locked.enter_context(folder.lock())
        state = folder.rewind(write=writes) if job.resume else None
        trainer = Trainer(parts, folder, accelerator, stop, on_event=on_event, state=state)
        if writes and not job.resume:
            # Nothing is written before all that was asked for is known to be there.
            locked.enter_context(folder.lock())
        if writes:
            _record(job, plans, parts, state, device=name_device(accelerator.device))
            on_plans(list(plans))
        accelerator.wait_for_everyone()
        return trainer.fit()


def _record(job: Job, plans: Sequence[Plan], parts: Sequence[TaskPart], state: State | None, *, device: str) -> None:
    """Write what describes the run, or note that it goes on."""
    for source, part in zip(job.sources, parts, strict=True):
        prepared = source.store.folder
        if job.resume:
            source.record.note_resumption(state, prepared)
        else:
            source.record.create(part.task, part.split, prepared=prepared, fold=job.fold)
        source.record.note_device(device)
    if not job.resume:
        job.on_created([part.task for part in parts])
    for source, plan in zip(job.sources, plans, strict=True):
        if plan.chosen:
            write_plan(plan, source.record.path / "plan.yaml")


def find_parts(job: Job, plans: Sequence[Plan]) -> list[TaskPart]:
    """Find the cases of each task that are trained on and held out.

    A patient who is held out in one task is trained on in none, as the tasks share an encoder.

    Raises:
        InputError: cases of a resumed run are gone, or a task has none left to train on.
    """
    found: list[tuple[TaskConfig, list[PreparedCase], list[PreparedCase]]] = []
    for source, plan in zip(job.sources, plans, strict=True):
        cases = {case.case_id: case for case in source.store.cases()}
        split = _load_split(source, cases) if job.resume else _split(plan.task, job.fold, list(cases.values()))
        found.append((plan.task, [cases[name] for name in split.train], [cases[name] for name in split.validation]))
    held_out = {case.group for _, _, validation in found for case in validation}
    parts = [
        TaskPart(task, [case for case in train if case.group not in held_out], validation)
        for task, train, validation in found
    ]
    empty = next((part for part in parts if not part.train), None)
    if empty is not None:
        raise InputError(
            f"{empty.name}: every patient of its training cases is held out in another task; leave one of them out"
        )
    return job.mix(parts)


def plan_alike(task: TaskConfig, store: PreparedStore, accelerator: Accelerator, *, device: str, jobs: int = 1) -> Plan:
    """Plan in the first process, which finds how much memory is free, for all of them.

    Args:
        task: the task.
        store: its prepared data.
        accelerator: of this process.
        device: as :func:`train_task` takes it.
        jobs: runs that train at the same time on this machine.
    """

    def plan() -> Plan:
        on_cpu = accelerator.device.type == "cpu"
        sharers = count_local_processes(accelerator) * jobs if on_cpu else -(-jobs // torch.cuda.device_count())
        memory_bytes = find_machine(device).memory_bytes // sharers if sharers > 1 else None
        return plan_task(task, store, device=device, memory_bytes=memory_bytes)

    return ask_main(plan)


def _split(task: TaskConfig, fold: int, cases: Sequence[PreparedCase]) -> Split:
    config = task.train
    try:
        return split_cases(cases, folds=config.folds, fold=fold, seed=config.fold_seed, train_cases=config.cases)
    except (InputError, ConfigError) as error:
        raise type(error)(f"{task.name}: {error}") from None


def _load_split(source: Source, cases: dict[str, PreparedCase]) -> Split:
    split = source.record.load_split()
    missing = [name for name in (*split.train, *split.validation) if name not in cases]
    if missing:
        raise InputError(
            f"{source.store.folder}: {len(missing)} cases of the run are gone, {missing[0]} first; prepare them again"
        )
    return split


def _check_options(task: TaskConfig, accelerator: Accelerator) -> None:
    """Refuse what training cannot do, before anything is written."""
    config, processes = task.train, accelerator.num_processes
    if task.kind == "classification" and task.batch_size * processes < 2:
        raise ConfigError("train.batch_size: the classifier's head normalises over the batch; give at least 2")
    if not config.compile:
        return
    if config.checkpoint_activations:
        raise ConfigError(
            "train.compile: the compiler decides what is computed again; leave train.checkpoint_activations out"
        )
    if accelerator.device.type == "cpu" and not any(map(shutil.which, _COMPILERS)):
        raise MissingDependencyError(
            f"train.compile: on a CPU it needs a C++ compiler ({' or '.join(_COMPILERS)}); install one, or leave it out"
        )


def warn_of_seen_cases(task: TaskConfig, fold: int) -> None:
    """Say where a run starts from an encoder that has been trained on cases which the run holds out."""
    held_out = read_held_out(task.model.init)
    own = {"fold": fold, "seed": task.train.fold_seed, "folds": task.train.folds}
    if task.name in held_out and held_out[task.name] != own:
        told = ", ".join(f"{key} {value}" for key, value in held_out[task.name].items())
        logger.warning(
            "%s: the encoder %s was trained on this task with %s held out, so it has seen cases that this run "
            "validates on, and the scores flatter it; train with its fold, train.split_seed and train.folds to compare",
            *(task.name, task.model.init, told),
        )


def check_settings(store: PreparedStore, task: TaskConfig) -> None:
    """Refuse a store that was prepared for another task or with other settings: prediction would prepare by the task's.

    Raises:
        InputError: a setting that preprocessing followed differs.
    """
    prepared, wanted = store.task_values, json.loads(json.dumps(dump_task(task)))
    pairs: dict[str, tuple[Any, Any]] = {"kind": (prepared["kind"], wanted["kind"])}
    keys = ("channels", "labels", "ignore_label", "classes")
    pairs |= {f"data.{key}": (prepared["data"].get(key), wanted["data"][key]) for key in keys}
    pairs |= {
        f"preprocess.{key}": (prepared["preprocess"].get(key), wanted["preprocess"][key])
        for key in wanted["preprocess"]
    }
    for key, (was, now) in pairs.items():
        if was != now:
            raise InputError(
                f"{store.folder}: prepared with {key} {was}, the task has {now}; run `medi3d preprocess --task "
                f"{task.name}` again with the task's settings, or give --set {key}=... to train as well"
            )
