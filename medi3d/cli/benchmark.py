"""``medi3d benchmark``: controlled comparisons that run many trainings and say what they show together."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from medi3d.cli.options import PREPARED, RUNS, parse_assignments
from medi3d.config import load_task
from medi3d.errors import ConfigError
from medi3d.study import (
    METRIC,
    Cell,
    CellResult,
    Contrast,
    Study,
    StudyDesign,
    contrast_arms,
    learning_curves,
    write_contrasts,
)


class What(str, Enum):
    """What the arms differ in."""

    init = "init"


def benchmark(
    what: Annotated[What, typer.Argument(help="What the runs differ in: init, the weights they start from.")],
    task: Annotated[str, typer.Option(help="Built-in task or path of a YAML file.")],
    inits: Annotated[
        str, typer.Option(help="Arms, comma-separated; the first is the one that others are compared with.")
    ] = "random,imagenet-inflated,imagenet-center,imagenet-overshoot,slicewise",
    fractions: Annotated[str, typer.Option(help="Numbers of training cases, comma-separated.")] = "8,16,32,all",
    seeds: Annotated[int, typer.Option(help="How many; arms of one seed share split, patches and order.")] = 5,
    steps: Annotated[int | None, typer.Option(help="Steps of every run. Default: planned once, for all.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Any key, for every run: section.key=value; repeatable.")
    ] = None,
    prepared: Annotated[Path | None, typer.Option(help="Prepared data [prepared/<task>].")] = None,
    output: Annotated[Path, typer.Option(help="Parent of the folder.")] = RUNS,
    name: Annotated[str, typer.Option(help="Of the folder; the same name goes on with what is missing.")] = "inits",
    keep: Annotated[bool, typer.Option("--keep", help="Keep every run's checkpoints and predictions.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Train every init with every number of training cases and every seed, and compare them.

    Writes scores.csv (a row a run), cases.csv (a row a held-out case of each run), contrasts.csv (the table, with
    intervals and paired tests) and inits.png. It may be stopped at any time, and several may work on one folder.
    """
    from medi3d.io.prepared import PreparedStore
    from medi3d.planning import plan_task
    from medi3d.study.run import run_study
    from medi3d.train.events import TrainEvent

    assert what is What.init
    overrides = parse_assignments(assign or []) | ({} if steps is None else {"train.steps": steps})
    task_name = load_task(task).name
    folder, store = output / task_name / name, prepared or PREPARED / task_name
    planned_before = Study(folder).read_plan()  # what is free of the machine today shall not make a new plan
    config = plan_task(load_task(task, overrides=planned_before | overrides), PreparedStore(store), device=device).task
    design = StudyDesign(config, _split(inits), tuple(map(_read_fraction, _split(fractions))), seeds)
    console = Console(stderr=True)
    with console.status("") as status:
        shown = [""]

        def show_cell(cell: Cell, number: int, total: int) -> None:
            shown[0] = f"{number + 1} of {total}: {cell.init}, {cell.cases or 'all'} cases, seed {cell.seed}"

        def show_step(event: TrainEvent) -> None:
            status.update(f"{shown[0]}, {event.progress:.0%}")

        results = run_study(
            design, folder, prepared=store, device=device, keep=keep, on_cell=show_cell, on_event=show_step
        )
    total = len(list(design.cells()))
    if results:
        _write_and_print(Study(folder), design, results)
    if len(results) < total:
        typer.echo(f"{len(results)} of {total} runs are finished; the same command goes on", err=True)
        raise typer.Exit(1)


def _write_and_print(study: Study, design: StudyDesign, results: list[CellResult]) -> None:
    contrasts = contrast_arms(results)
    written = [study.scores_file, study.cases_file, write_contrasts(contrasts, study.folder / "contrasts.csv")]
    written.append(_draw(study, design, results, contrasts))
    console = Console()
    console.print(_table(contrasts, METRIC[design.task.kind]))
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)


def _draw(study: Study, design: StudyDesign, results: list[CellResult], contrasts: list[Contrast]) -> Path:
    from medi3d.report.study_figure import ArmPoints, draw_study

    sizes = {result.cell.cases: result.train_cases for result in results}
    arms = {}
    for init in design.inits:
        own = [contrast for contrast in contrasts if contrast.init == init]
        if own:
            columns = zip(*((sizes[c.cases], c.score.value, c.score.low, c.score.high) for c in own), strict=True)
            arms[init] = ArmPoints(*columns)
    metric = {"dice": "Dice", "auc": "AUC"}[METRIC[design.task.kind]]
    title = f"{design.task.name}, {design.task.model.backbone}, {design.task.steps} steps"
    return draw_study(arms, learning_curves(results), study.folder / "inits.png", metric=metric, title=title)


def _table(contrasts: list[Contrast], metric: str) -> Table:
    table = Table(
        "cases",
        Column("init", no_wrap=True),
        f"{metric}, 95 % interval",
        f"against {contrasts[0].init}",
        "p, Holm",
        "seeds",
    )
    for number, c in enumerate(contrasts):
        if number and c.cases != contrasts[number - 1].cases:
            table.add_section()
        table.add_row(
            str(c.cases or "all"),
            c.init,
            f"{c.score.value:.4f} ({c.score.low:.4f} to {c.score.high:.4f})",
            "" if (d := c.difference) is None else f"{d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f})",
            "" if math.isnan(c.p_adjusted) else f"{c.p_adjusted:.3f}",
            str(c.score.cases),
        )
    return table


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _read_fraction(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--fractions: numbers of training cases and all, such as 8,16,all; got {text!r}")
    return int(text)
