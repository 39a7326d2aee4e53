"""``medi3d pretrain``: one encoder trained on several tasks, to start others from."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from medi3d.cli import train_options as options
from medi3d.cli.options import PREPARED, RUNS, parse_assignments
from medi3d.cli.train import end_stopped, read_flags, resolve_task
from medi3d.cli.train_progress import TrainProgress
from medi3d.config import PretrainConfig, TaskConfig, dump_mixture, dump_task, load_task, task_path
from medi3d.errors import ConfigError

if TYPE_CHECKING:
    from medi3d.planning import Plan
    from medi3d.train.events import TrainResult
    from medi3d.train.part import TaskPart

_MIX = "Tasks"

_RESUMABLE = {"resume", "prepared", "device", "threads", "print_config", "dry_run", "licence"}
"""Parameters that go with ``--resume``."""


def pretrain(
    context: typer.Context,
    tasks: Annotated[
        str | None,
        typer.Option(help="Built-in tasks or paths of YAML files, comma-separated.", rich_help_panel=_MIX),
    ] = None,
    sampling: Annotated[
        str,
        typer.Option(
            help="How often a batch is of each task: balanced, proportional to its cases, or weights: a=2,b=1.",
            rich_help_panel=_MIX,
        ),
    ] = "balanced",
    loss_weights: Annotated[
        str | None,
        typer.Option(metavar="TASK=NUMBER,…", help="Factors of tasks' losses. Default: 1.", rich_help_panel=_MIX),
    ] = None,
    prepared: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR or TASK=DIR",
            help="Folder of prepared stores, one a task, or one task's; repeatable. Default: data/prepared.",
            rich_help_panel=_MIX,
        ),
    ] = None,
    init: options.Init = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any key, for all tasks: section.key=value; for one: TASK.section.key=value; repeatable.",
            rich_help_panel=_MIX,
        ),
    ] = None,
    budget: options.Budget = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of all tasks together. Default: the sum of the tasks' plans.", rich_help_panel="Length"
        ),
    ] = None,
    patch_size: options.PatchSize = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    learning_rate: options.LearningRate = None,
    ema_decay: options.EmaDecay = None,
    seed: options.Seed = None,
    fold: Annotated[
        int, typer.Option(help="Fold of every task that is held out, from 0.", rich_help_panel="Folds and folders")
    ] = 0,
    output: options.Output = RUNS,
    name: Annotated[
        str | None, typer.Option(help="Name of the run. Default: the time.", rich_help_panel="Folds and folders")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with this pretraining.", rich_help_panel="Folds and folders"),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the encoder's weights, for its card.")] = "not stated",
    device: options.Device = "auto",
    threads: options.Threads = None,
    precision: options.PrecisionFlag = None,
    compile: options.Compile = None,
    print_config: options.PrintConfig = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
) -> None:
    """Train one encoder on several tasks, each with a head of its own; the encoder is an --init like any other."""
    overrides = read_flags(context.params) | parse_assignments(assign or [])
    if resume is not None:
        _check_goes_with_resume(context)
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
    stores = _find_stores(list(names.values()), prepared)
    found = [
        resolve_task(word, _own(name, list(names.values()), overrides), stores[name], None)
        for word, name in names.items()
    ]
    weights = _read_numbers("--loss-weights", loss_weights) if loss_weights else {}
    mixed: Any = _read_numbers("--sampling", sampling) if "=" in sampling else sampling
    return PretrainConfig(tuple(found), mixed, weights), stores


def _own(task: str, names: list[str], overrides: dict[str, object]) -> dict[str, object]:
    """Return what goes for a task: keys that name none go for all, and a task's own go over them."""
    common = {key: value for key, value in overrides.items() if not any(key.startswith(f"{name}.") for name in names)}
    prefix = f"{task}."
    return common | {key.removeprefix(prefix): value for key, value in overrides.items() if key.startswith(prefix)}


def _find_stores(names: list[str], prepared: list[str]) -> dict[str, Path]:
    """Return task → store, from ``DIR`` (a folder of stores) and ``TASK=DIR``."""
    pairs = [text.partition("=") for text in prepared]
    folders = [Path(first) for first, sign, _ in pairs if not sign]
    if len(folders) > 1:
        raise ConfigError(f"--prepared: one folder of stores, beside it TASK=DIR; got {', '.join(map(str, folders))}")
    own = {first: Path(place) for first, sign, place in pairs if sign}
    unknown = next((name for name in own if name not in names), None)
    if unknown is not None:
        raise ConfigError(f"--prepared {unknown}=…: {unknown} is none of --tasks ({', '.join(names)})")
    return {name: own.get(name, (folders[0] if folders else PREPARED) / name) for name in names}


def _read_numbers(flag: str, text: str) -> dict[str, float]:
    pairs = [word.partition("=") for word in text.split(",") if word.strip()]
    try:
        return {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        raise ConfigError(f"{flag} {text}: write TASK=NUMBER,TASK=NUMBER") from None


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
    stores = _find_stores(names, prepared) if prepared else known
    if prepared and all("=" in text for text in prepared):
        stores = known | {name: stores[name] for name in (text.partition("=")[0] for text in prepared)}
    return replace(config, tasks=tuple(found)), stores, folder.record(names[0]).load_fold()


def _check_goes_with_resume(context: typer.Context) -> None:
    given = {
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    wrong = sorted(given - _RESUMABLE)
    if wrong:
        raise ConfigError(
            "--resume goes on with the pretraining's own tasks, configuration and folder; leave other flags out: "
            + ", ".join(wrong)
        )
