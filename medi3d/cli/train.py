"""``medi3d train``: one fold of a task."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medi3d.cli.options import PREPARED, RUNS, parse_assignments
from medi3d.config import TaskConfig, dump_task, load_task
from medi3d.errors import ConfigError

if TYPE_CHECKING:
    from medi3d.train.loop import TrainEvent


def train(
    task: Annotated[str | None, typer.Option(help="Built-in task or path of a YAML file.")] = None,
    init: Annotated[
        str | None,
        typer.Option(help="imagenet-inflated, imagenet-center, imagenet-overshoot, random, or a checkpoint."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="timm's name of the 2D network to inflate.")] = None,
    weights: Annotated[Path | None, typer.Option(help="File with the backbone's 2D weights.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Wall-clock budget such as 10m; the schedule is fitted to it.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the schedule in steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches a step and process.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws folds, patches, augmentation and random weights.")] = None,
    fold: Annotated[int, typer.Option(help="Which fold to validate on, from 0.")] = 0,
    assign: Annotated[list[str] | None, typer.Option("--set", help="Any key: section.key=value; repeatable.")] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="Prepared data [data/prepared/<task>, or the resumed run's].")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where runs go.")] = RUNS,
    name: Annotated[str | None, typer.Option(help="Name of the run [init, fold and time].")] = None,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    resume: Annotated[Path | None, typer.Option(help="Go on with this run from its last checkpoint.")] = None,
    print_config: Annotated[bool, typer.Option(help="Print what the run would use, and stop.")] = False,
) -> None:
    """Train one fold of a task on its prepared cases."""
    flags = {
        "model.init": init,
        "model.backbone": backbone,
        "model.weights": None if weights is None else str(weights),
        "train.budget": budget,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.learning_rate": learning_rate,
        "train.seed": seed,
    }
    overrides = {key: value for key, value in flags.items() if value is not None} | parse_assignments(assign or [])
    if resume is not None:
        if overrides or task or name or fold or output != RUNS:
            raise ConfigError(
                "--resume goes on with the run's own configuration, fold and folder; leave other flags out"
            )
        from medi3d.runs.folder import RunFolder

        config, run = RunFolder(resume).load_config(), resume
    else:
        config = _load_task(task, overrides, prepared)
        # An --init that is a path gives its file's name to the run.
        default = f"{Path(config.model.init).stem}-fold{fold}-{datetime.now():%Y%m%d-%H%M%S}"
        run = output / config.name / (name or default)
    if print_config:
        typer.echo(yaml.safe_dump(dump_task(config), sort_keys=False))
        return
    _train(config, prepared, run, fold, device, resume is not None)


def _train(config: TaskConfig, prepared: Path | None, run: Path, fold: int, device: str, resume: bool) -> None:
    from medi3d.runs.folder import RunFolder
    from medi3d.train.loop import train_task

    own = RunFolder(run).load_prepared() if resume else PREPARED / config.name
    with _progress_bar() as bar:
        result = train_task(
            config,
            prepared=prepared or own,
            run=run,
            fold=fold,
            device=device,
            resume=resume,
            on_event=_show_on(bar),
        )
    measure = "mean Dice" if config.kind == "segmentation" else "AUC"
    Console().print(
        f"{result.steps} steps in {result.seconds:.0f} s: validation {measure} {result.last_score:.4f} "
        f"(best {result.best_score:.4f})\n{result.run}",
        highlight=False,
    )


def _load_task(task: str | None, overrides: dict[str, object], prepared: Path | None) -> TaskConfig:
    """Load a task; preprocessing settings are those that its cases were prepared with, unless a flag says otherwise."""
    if task is None:
        raise ConfigError("give --task NAME (`medi3d tasks` lists them), or --resume RUN")
    config = load_task(task, overrides=overrides)
    store = prepared or PREPARED / config.name
    if not (store / "dataset.json").is_file():
        return config
    from medi3d.io import PreparedStore

    used = {f"preprocess.{key}": value for key, value in PreparedStore(store).task_values["preprocess"].items()}
    return load_task(task, overrides=used | overrides)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("step {task.fields[step]}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TextColumn("loss {task.fields[loss]}  score {task.fields[score]}  best {task.fields[best]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,  # so that a mistake found now is one line, without an empty bar above it
    )


def _show_on(bar: Progress) -> Callable[[TrainEvent], None]:
    row = bar.add_task("train", total=1.0, step=0, loss="-", score="-", best="-")

    def show(event: TrainEvent) -> None:
        score, best = ("-" if value is None else f"{value:.3f}" for value in (event.score, event.best))
        bar.update(row, completed=event.progress, step=event.step, loss=f"{event.loss:.3f}", score=score, best=best)

    return show
