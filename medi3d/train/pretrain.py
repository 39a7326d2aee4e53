"""Multi-task pretraining: one encoder trained on several tasks at once, each with a head of its own.

One run of the same engine as ``medi3d train``: its schedule, checkpoints, resumption, moving average and table. Every
batch is of one task; which one, :func:`medi3d.data.mixture.order_tasks` says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from medi3d.config import PretrainConfig, TaskConfig
from medi3d.errors import ConfigError
from medi3d.io.prepared import PreparedStore
from medi3d.planning import Plan, plan_task
from medi3d.planning.combine import combine_plans
from medi3d.runs.pretraining import PretrainingFolder
from medi3d.train.events import TrainEvent, TrainResult
from medi3d.train.loop import Job, Source, check_settings, find_parts, run_job
from medi3d.train.part import TaskPart

logger = logging.getLogger(__name__)

_FAR_APART = 2.0
"""Times that one task's voxels are as large as another's from which a warning says so."""


def pretrain(
    config: PretrainConfig,
    *,
    prepared: Mapping[str, Path],
    run: Path,
    fold: int = 0,
    device: str = "auto",
    resume: bool = False,
    on_event: Callable[[TrainEvent], None] | None = None,
    on_start: Callable[[list[Plan], list[TaskPart]], None] = lambda plans, parts: None,
) -> TrainResult:
    """Train one encoder on several tasks.

    A single task is trained as :func:`medi3d.train.train_task` trains it.

    Args:
        config: the tasks and how they are mixed.
        prepared: task → folder that ``medi3d preprocess`` wrote.
        run: folder of the pretraining; it must not hold one unless ``resume``.
        fold: of every task, which is held out; as in a run of that task alone.
        device: as :func:`medi3d.train.train_task` takes it.
        resume: go on from the last checkpoint.
        on_event: called after every step, in the first process.
        on_start: called once in the first process, with each task's plan and part, before the first step.

    Raises:
        ConfigError: tasks that cannot share an encoder, or others than those of the run that is to go on.
        InputError: a store is missing, was made with other settings, or the run's folder is taken.
    """
    folder = PretrainingFolder(run)
    if resume:
        _check_same(config, folder)
    job = create_job(config, prepared=prepared, folder=folder, fold=fold, device=device, resume=resume)
    parts: list[TaskPart] = []
    mix = job.mix

    def keep(found: list[TaskPart]) -> list[TaskPart]:
        parts[:] = mix(found)
        return parts

    return run_job(replace(job, mix=keep), on_event=on_event, on_plans=lambda plans: on_start(plans, parts))


def plan_pretraining(
    config: PretrainConfig, *, prepared: Mapping[str, Path], fold: int = 0, device: str = "auto"
) -> tuple[list[Plan], list[TaskPart]]:
    """Return what :func:`pretrain` would do: each task's plan and part; nothing is written."""
    job = create_job(config, prepared=prepared, folder=PretrainingFolder(Path()), fold=fold, device=device)
    for source in job.sources:
        check_settings(source.store, source.task)
    plans = combine_plans([plan_task(source.task, source.store, device=device) for source in job.sources])
    return plans, find_parts(job, plans)


def create_job(
    config: PretrainConfig,
    *,
    prepared: Mapping[str, Path],
    folder: PretrainingFolder,
    fold: int = 0,
    device: str = "auto",
    resume: bool = False,
) -> Job:
    """Put together what :func:`pretrain` trains; its arguments are those of :func:`pretrain`."""
    sources = [Source(task, PreparedStore(prepared[task.name]), folder.record(task.name)) for task in config.tasks]
    _warn_of_spacings(config.tasks)

    def mix(parts: list[TaskPart]) -> list[TaskPart]:
        shares = config.measure_shares({part.name: len(part.train) for part in parts})
        return [
            replace(part, share=shares[part.name], weight=config.loss_weights.get(part.name, 1.0)) for part in parts
        ]

    def created(tasks: list[TaskConfig]) -> None:
        folder.write_pretraining(replace(config, tasks=tuple(tasks)))

    return Job(sources, folder, fold, device, resume, mix=mix, on_created=created)


def _check_same(config: PretrainConfig, folder: PretrainingFolder) -> None:
    kept = folder.load_pretraining()
    for what, was, now in (
        ("tasks", *(", ".join(task.name for task in one.tasks) for one in (kept, config))),
        ("sampling", kept.sampling, config.sampling),
        ("loss_weights", kept.loss_weights, config.loss_weights),
    ):
        if was != now:
            raise ConfigError(
                f"{folder.path}: a pretraining with {what} {was}, and {now} is asked for; `medi3d pretrain --resume "
                f"{folder.path}` goes on with its own, or begin another one with --init {folder.encoder}/"
            )


def _warn_of_spacings(tasks: tuple[TaskConfig, ...]) -> None:
    """Say where the same structure is of quite another size to the shared kernels."""
    known = [(task.name, task.preprocess.spacing_mm) for task in tasks]
    fixed = [(name, spacing) for name, spacing in known if not isinstance(spacing, str)]
    for (one, first), (other, second) in combinations(fixed, 2):
        ratio = max(max(a / b, b / a) for a, b in zip(first, second, strict=True))
        if ratio > _FAR_APART:
            logger.warning(
                "%s has voxels of %s mm and %s of %s: to shared kernels the same structure is of another size; "
                "prepare both with one --spacing where that can be",
                *(one, " × ".join(map(str, first)), other, " × ".join(map(str, second))),
            )
