"""``medi3d train``: one fold of a task, or all of them."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from rich.console import Console

from medi3d.cli import train_options as options
from medi3d.cli.options import PREPARED, RAW, RUNS, parse_assignments
from medi3d.cli.train_progress import TrainProgress, print_folds, print_plan
from medi3d.config import TaskConfig, dump_task, load_task
from medi3d.errors import ConfigError

if TYPE_CHECKING:
    from medi3d.train.cross_validation import FoldOutcome


def train(
    context: typer.Context,
    task: options.Task = None,
    init: options.Init = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    plan: options.Plan = None,
    assign: options.Assign = None,
    budget: options.Budget = None,
    steps: options.Steps = None,
    patch_size: options.PatchSize = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    learning_rate: options.LearningRate = None,
    ema_decay: options.EmaDecay = None,
    seed: options.Seed = None,
    fold: options.Fold = "0",
    jobs: options.Jobs = 1,
    prepared: options.Prepared = None,
    data: options.Data = None,
    output: options.Output = RUNS,
    name: options.Name = None,
    resume: options.Resume = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    precision: options.PrecisionFlag = None,
    compile: options.Compile = None,
    print_config: options.PrintConfig = False,
) -> None:
    """Train one fold of a task on its prepared cases, or with --fold all every fold."""
    overrides = read_flags(context.params) | parse_assignments(assign or [])
    if resume is not None:
        check_goes_with_resume(context, options.RESUMABLE, "the run's own configuration, fold and folder")
        config, run, every_fold = _load_run(resume, overrides)
    else:
        every_fold = _read_fold(fold) is None
        config = resolve_task(task, overrides, prepared, plan)
        # An --init that is a path gives its file's name to the run.
        folds = "folds" if every_fold else f"fold{fold}"
        run = output / config.name / (name or f"{Path(config.model.init).stem}-{folds}-{datetime.now():%Y%m%d-%H%M%S}")
    if jobs > 1 and not every_fold:
        raise ConfigError("--jobs trains several folds at a time; give --fold all with it")
    if print_config:
        typer.echo(yaml.safe_dump(dump_task(config), sort_keys=False))
    elif every_fold:
        _train_folds(config, prepared, run, resume is not None, device, jobs, data)
    else:
        train_fold(config, prepared, run, resume is not None, device, _read_fold(fold) or 0)


def train_fold(config: TaskConfig, prepared: Path | None, run: Path, resume: bool, device: str, fold: int) -> None:
    """Train one fold, and say how it went."""
    from medi3d.runs.folder import RunFolder
    from medi3d.train.cross_validation import is_main_process
    from medi3d.train.loop import train_task

    quiet = not is_main_process()
    with TrainProgress(Console(stderr=True), quiet=quiet).shown() as progress:
        result = train_task(
            config,
            prepared=prepared or (RunFolder(run).load_prepared() if resume else PREPARED / config.name),
            run=run,
            fold=fold,
            device=device,
            resume=resume,
            on_event=partial(progress.update, config.name),
            on_plan=partial(print_plan, console=Console()),
        )
    if result.stopped:
        end_stopped(run, f"after step {result.steps}", result.exit_code, quiet=quiet)
    if quiet:
        return
    Console().print(
        f"{result.steps} steps in {result.seconds:.0f} s: validation {_measure(config)} {result.last_score:.4f} "
        f"(best {result.best_score:.4f})\n{result.run}",
        highlight=False,
        soft_wrap=True,
    )


def _train_folds(
    config: TaskConfig, prepared: Path | None, run: Path, resume: bool, device: str, jobs: int, data: Path | None
) -> None:
    from medi3d.runs.folds import FoldsFolder
    from medi3d.train.cross_validation import cross_validate, is_main_process

    folds = FoldsFolder(run)
    if not resume:
        folds.check_free()
    quiet = not is_main_process()
    with TrainProgress(Console(stderr=True), quiet=quiet).shown() as progress:
        outcomes = cross_validate(
            config,
            prepared=prepared or (Path(folds.read()["prepared"]) if resume else PREPARED / config.name),
            folder=run,
            device=device,
            jobs=jobs,
            on_event=lambda fold, event: progress.update(f"fold {fold}", event),
            on_plan=partial(print_plan, console=Console()),
        )
    if not quiet:
        print_folds(outcomes, Console(), measure=_measure(config))
    codes = [outcome.result.exit_code for outcome in outcomes if outcome.result and outcome.result.stopped]
    if codes:
        end_stopped(run, "before all folds were finished", max(codes), quiet=quiet)
    if quiet:
        return
    if any(outcome.state == "finished" for outcome in outcomes):
        _print_scores(folds, data or RAW / config.name, device)
    _end_failed(outcomes, run)


def _print_scores(folds: Any, raw: Path, device: str) -> None:
    """Score the held-out cases, and say how to predict with all folds."""
    from rich.progress import Progress

    from medi3d.cli.score_tables import print_result
    from medi3d.study.out_of_fold import score_out_of_fold

    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("out of fold", total=None)
        scored = score_out_of_fold(
            folds,
            raw=raw,
            device=device,
            on_case=lambda case, number, total: bar.update(row, description=case, completed=number, total=total),
        )
    for kind, evaluation in scored.evaluations.items():
        print_result(evaluation, (folds.out_of_fold / "evaluation" / kind,))
    for line in (*scored.notes, *(f"{case}: {text}" for case, text in scored.predictions.problems.items())):
        typer.echo(line, err=True)
    typer.echo(f"predict new cases with all folds: medi3d predict {folds.path} --input IMAGES --output FOLDER")


def _end_failed(outcomes: list[FoldOutcome], run: Path) -> None:
    failed = [outcome for outcome in outcomes if outcome.problem is not None]
    for outcome in failed:
        typer.echo(f"fold {outcome.fold} failed: {outcome.problem}", err=True)
    if failed:
        if any(outcome.run.exists() for outcome in outcomes):
            typer.echo(f"go on with: medi3d train --resume {run}", err=True)
        raise typer.Exit(1)


def end_stopped(run: Path, when: str, code: int, *, quiet: bool, command: str = "train") -> None:
    """End as a shell expects of a process that a signal ended, so that a batch system tells it from a failure."""
    if not quiet:
        typer.echo(f"stopped {when}, saved; go on with: medi3d {command} --resume {run}", err=True)
    raise typer.Exit(code)


def _measure(config: TaskConfig) -> str:
    return "mean Dice" if config.kind == "segmentation" else "AUC"


def read_flags(params: dict[str, Any]) -> dict[str, object]:
    """Return dotted key → value of the flags that are given."""
    given = {name: params[name] for name in options.KEYS if params[name] is not None}
    if "patch_size" in given:
        given["patch_size"] = options.parse_sizes(given["patch_size"])
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in given.items()}
    return {options.KEYS[name]: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


def _read_fold(text: str) -> int | None:
    """Return a fold's number; ``None`` for all of them."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--fold {text}: give a fold's number, from 0, or all")
    return int(text)


def check_goes_with_resume(context: typer.Context, resumable: set[str], own: str) -> None:
    """Refuse flags that say again what the run that goes on has settled.

    Raises:
        ConfigError: a flag on the command line whose parameter is not ``resumable``; ``own`` says what is kept.
    """
    given = {
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    wrong = sorted(given - resumable)
    if wrong:
        raise ConfigError(f"--resume goes on with {own}; leave other flags out: {', '.join(wrong)}")


def _load_run(run: Path, overrides: dict[str, object]) -> tuple[TaskConfig, Path, bool]:
    """Return the configuration of a run or of a folder of folds, its folder, and whether it is one of folds."""
    from medi3d.runs.folder import RunFolder
    from medi3d.runs.folds import FoldsFolder

    folds = FoldsFolder(run)
    if folds.exists:
        return load_task(folds.record_file, values=folds.read()["task"], overrides=overrides), run, True
    config = RunFolder(run).load_config()
    return load_task(run, values=dump_task(config), overrides=overrides), run, False


def resolve_task(
    task: str | None, overrides: dict[str, object], prepared: Path | None, plan: Path | None
) -> TaskConfig:
    """Load a task; preprocessing settings are those that its cases were prepared with, unless a flag says otherwise."""
    if task is None:
        raise ConfigError("give --task NAME (`medi3d tasks` lists them), or --resume RUN")
    config = load_task(task, overrides=overrides)
    if plan is not None:
        from medi3d.planning import read_plan

        overrides = read_plan(plan, task=config.name) | overrides
    store = prepared or PREPARED / config.name
    used: dict[str, object] = {}
    if (store / "dataset.json").is_file():
        from medi3d.io import PreparedStore

        used = {f"preprocess.{key}": value for key, value in PreparedStore(store).task_values["preprocess"].items()}
    return load_task(task, overrides=used | overrides)
