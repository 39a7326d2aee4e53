"""``medi3d pretrain``: one encoder trained on several tasks, to start others from."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from medi3d.cli import pretrain_options as own
from medi3d.cli import train_options as options
from medi3d.cli.options import RUNS, parse_assignments
from medi3d.cli.train import check_goes_with_resume, end_stopped, read_flags, resolve_task
from medi3d.cli.train_progress import TrainProgress
from medi3d.config import PretrainConfig, TaskConfig, dump_mixture, dump_task, load_task, task_path
from medi3d.errors import ConfigError

if TYPE_CHECKING:
    from medi3d.planning import Plan
    from medi3d.train.events import TrainResult
    from medi3d.train.part import TaskPart


def pretrain(
    context: typer.Context,
    tasks: own.Tasks = None,
    sampling: own.Sampling = "balanced",
    loss_weights: own.LossWeights = None,
    prepared: own.Prepared = None,
    init: options.Init = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    assign: own.Assign = None,
    budget: options.Budget = None,
    steps: own.Steps = None,
    patch_size: options.PatchSize = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    learning_rate: options.LearningRate = None,
    ema_decay: options.EmaDecay = None,
    seed: options.Seed = None,
    fold: own.Fold = 0,
    output: options.Output = RUNS,
    name: own.Name = None,
    resume: own.Resume = None,
    licence: own.Licence = "not stated",
    device: options.Device = "auto",
    threads: options.Threads = None,
    precision: options.PrecisionFlag = None,
    compile: options.Compile = None,
    print_config: options.PrintConfig = False,
    dry_run: own.DryRun = False,
) -> None:
    """Train one encoder on several tasks, each with a head of its own; the encoder is an --init like any other."""
    overrides = read_flags(context.params) | parse_assignments(assign or [])
    if resume is not None:
        check_goes_with_resume(context, own.RESUMABLE, "the pretraining's own tasks, configuration and folder")
        config, stores, fold = _load_run(resume, overrides, prepared or [])
        run = resume
    else:
        config, stores = _resolve(tasks, sampling, loss_weights, overrides, prepared or [])
        run = output / "pretraining" / (name or f"{datetime.now():%Y%m%d-%H%M%S}")
    if print_config:
        whole = dump_mixture(config) | {"tasks": {task.name: dump_task(task) for task in config.tasks}}
        typer.echo(yaml.safe_dump(whole, sort_keys=False))
    elif dry_run:
        from medi3d.train.pretrain import plan_pretraining

        print_parts(*plan_pretraining(config, prepared=stores, fold=fold, device=device), console=Console())
    else:
        _run(config, stores, run, fold=fold, device=device, resume=resume is not None, licence=licence)


def _run(
    config: PretrainConfig, stores: dict[str, Path], run: Path, *, fold: int, device: str, resume: bool, licence: str
) -> None:
    from medi3d.study.pretraining import pretrain_encoder
    from medi3d.train.cross_validation import is_main_process

    quiet = not is_main_process()
    encoders: dict[int, Path] = {}
    with TrainProgress(Console(stderr=True), quiet=quiet).shown() as progress:
        result = pretrain_encoder(
            config,
            prepared=stores,
            run=run,
            fold=fold,
            device=device,
            resume=resume,
            licence=licence,
            on_event=partial(progress.update, "pretraining"),
            on_start=partial(print_parts, console=Console()),
            on_encoder=lambda channels, folder: encoders.update({channels: folder}),
        )
    if result.stopped:
        end_stopped(run, f"after step {result.steps}", result.exit_code, quiet=quiet, command="pretrain")
    if not quiet:
        _print_end(config, result, encoders)


def _print_end(config: PretrainConfig, result: TrainResult, encoders: dict[int, Path]) -> None:
    kinds = {task.name: "mean Dice" if task.kind == "segmentation" else "AUC" for task in config.tasks}
    scores = ", ".join(f"{name} {kinds[name]} {score:.4f}" for name, score in result.scores.items())
    lines = [f"{result.steps} steps in {result.seconds:.0f} s: {scores}", str(result.run)]
    lines += [
        f"{channels} channel{'s' if channels > 1 else ''}: medi3d train --task TASK --init {folder}/"
        for channels, folder in encoders.items()
    ]
    Console().print("\n".join(lines), highlight=False, soft_wrap=True)


def print_parts(plans: list[Plan], parts: list[TaskPart], *, console: Console) -> None:
    """Print what each task brings, and what is one for all of them."""
    table = Table("task", "kind", "cases", "held out", "channels", "voxels, mm", "patch", "batch", "stages", "batches")
    table.add_column("loss")
    total = sum(part.share for part in parts)
    for part in parts:
        task, spacing = part.task, part.task.preprocess.spacing_mm
        table.add_row(
            *(task.name, task.kind, str(len(part.train)), str(len(part.validation)), str(task.in_channels)),
            spacing if isinstance(spacing, str) else " × ".join(f"{value:g}" for value in spacing),
            *(" × ".join(map(str, task.patch_size)), str(task.batch_size), str(task.model.stages or "all")),
            f"{part.share / total:.0%}",
            f"{part.weight:g} × {task.train.loss}",
        )
    console.print(table)
    shared = Table("for all tasks", "value", "why")
    budget = parts[0].task.train.budget
    if budget is not None:
        shared.add_row("train.budget", budget, "the schedule is fitted to it, whatever train.steps is")
    for key in ("train.steps", "train.learning_rate", "train.precision", "model.depth_plan"):
        section, _, name = key.partition(".")
        shared.add_row(key, str(getattr(getattr(parts[0].task, section), name)), plans[0].reasons[key])
    shared.add_row("model.backbone", parts[0].task.model.backbone, f"from {parts[0].task.model.init}")
    console.print(shared)


def _resolve(
    tasks: str | None, sampling: str, loss_weights: str | None, overrides: dict[str, object], prepared: list[str]
) -> tuple[PretrainConfig, dict[str, Path]]:
    """Load the tasks with the settings that they were prepared with."""
    words = [word.strip() for word in (tasks or "").split(",") if word.strip()]
    if not words:
        raise ConfigError("give --tasks NAME,NAME,… (`medi3d tasks` lists them), or --resume RUN")
    names = {word: load_task(task_path(word)).name for word in words}
    if len(names) < len(words):
        raise ConfigError(f"--tasks {tasks}: a task is named twice")
    stores = own.find_stores(list(names.values()), prepared)
    found = [
        resolve_task(word, own.select_keys(name, list(names.values()), overrides), stores[name], None)
        for word, name in names.items()
    ]
    weights = own.read_numbers("--loss-weights", loss_weights) if loss_weights else {}
    mixed: Any = own.read_numbers("--sampling", sampling) if "=" in sampling else sampling
    return PretrainConfig(tuple(found), mixed, weights), stores


def _load_run(
    run: Path, overrides: dict[str, object], prepared: list[str]
) -> tuple[PretrainConfig, dict[str, Path], int]:
    """Return what a pretraining is of, where its stores lie now, and its fold."""
    from dataclasses import replace

    from medi3d.runs.pretraining import PretrainingFolder

    folder = PretrainingFolder(run)
    config = folder.load_pretraining()
    names = [task.name for task in config.tasks]
    found: list[TaskConfig] = [load_task(run, values=dump_task(task), overrides=overrides) for task in config.tasks]
    known = {name: folder.record(name).load_prepared() for name in names}
    stores = own.find_stores(names, prepared) if prepared else known
    if prepared and all("=" in text for text in prepared):
        stores = known | {name: stores[name] for name in (text.partition("=")[0] for text in prepared)}
    return replace(config, tasks=tuple(found)), stores, folder.record(names[0]).load_fold()
