"""Training one fold of a task: from prepared cases and a configuration to a run that is finished or can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
from medi3d.planning import Plan, plan_task, write_plan
from medi3d.planning.machine import find_machine
from medi3d.runs.folder import RunFolder
from medi3d.train.events import TrainEvent, TrainResult
from medi3d.train.health import explain_out_of_memory, is_out_of_memory
from medi3d.train.processes import ask_main, count_local_processes, create_accelerator, list_causes, named_losses
from medi3d.train.stop import StopRequest
from medi3d.train.trainer import Trainer

__all__ = ["TrainEvent", "TrainResult", "train_task"]

_COMPILERS = ("g++", "clang++")


@dataclass(frozen=True)
class _Job:
    """What was asked for."""

    task: TaskConfig
    store: PreparedStore
    folder: RunFolder
    fold: int
    device: str
    resume: bool


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
    job = _Job(task, PreparedStore(prepared), RunFolder(run), fold, device, resume)
    _check_settings(job.store, task)
    accelerator = create_accelerator(task, device)
    with StopRequest() as stop, named_losses(accelerator, run):
        plan = plan_alike(task, job.store, accelerator, device=device)
        if task.train.precision is None:
            accelerator = create_accelerator(plan.task, device)
        try:
            return _train(job, plan, accelerator, stop, on_event=on_event, on_plan=on_plan)
        except Exception as error:
            cause = next((cause for cause in list_causes(error) if is_out_of_memory(cause)), None)
            if cause is None:
                raise
            raise explain_out_of_memory(cause, plan.task) from error


def _train(
    job: _Job,
    plan: Plan,
    accelerator: Accelerator,
    stop: StopRequest,
    *,
    on_event: Callable[[TrainEvent], None] | None,
    on_plan: Callable[[Plan], None] | None,
) -> TrainResult:
    folder, writes = job.folder, accelerator.is_main_process
    cases = {case.case_id: case for case in job.store.cases()}
    if writes and not job.resume:
        folder.check_free()
    split = _load_split(job, cases) if job.resume else _split(job, cases)
    _check_options(plan.task, accelerator)
    with ExitStack() as locked:
        if writes and job.resume:
            locked.enter_context(folder.lock())
        state = folder.resume(job.store.folder, write=writes) if job.resume else None
        trainer = Trainer(plan.task, folder, accelerator, stop, on_event=on_event, state=state)
        if writes and not job.resume:
            # Nothing is written before all that was asked for is known to be there.
            locked.enter_context(folder.lock())
            folder.create(plan.task, split, prepared=job.store.folder, fold=job.fold)
        if writes and plan.chosen:
            write_plan(plan, folder.path / "plan.yaml")
            if on_plan is not None:
                on_plan(plan)
        accelerator.wait_for_everyone()
        return trainer.fit([cases[name] for name in split.train], [cases[name] for name in split.validation])


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


def _split(job: _Job, cases: dict[str, PreparedCase]) -> Split:
    config = job.task.train
    return split_cases(
        list(cases.values()), folds=config.folds, fold=job.fold, seed=config.seed, train_cases=config.cases
    )


def _load_split(job: _Job, cases: dict[str, PreparedCase]) -> Split:
    split = job.folder.load_split()
    missing = [name for name in (*split.train, *split.validation) if name not in cases]
    if missing:
        raise InputError(
            f"{job.store.folder}: {len(missing)} cases of the run are gone, {missing[0]} first; prepare them again"
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


def _check_settings(store: PreparedStore, task: TaskConfig) -> None:
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
