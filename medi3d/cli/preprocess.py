"""``medi3d preprocess``: raw cases into the prepared store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from medi3d.cli.options import PREPARED, RAW, parse_assignments
from medi3d.config import TaskConfig, list_tasks, load_task
from medi3d.errors import ConfigError, InputError
from medi3d.preprocess import Summary, prepare_dataset

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


def preprocess(
    task: Annotated[
        list[str] | None, typer.Option(help="Task name or YAML file; may be repeated. [every task in data/raw]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of raw cases. [data/raw/<task>]")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the prepared store. [data/prepared/<task>]")] = None,
    spacing: Annotated[
        list[str] | None, typer.Option(help="Spacing in mm: 1.0, or D,H,W such as 2.5,0.8,0.8. [the task's own]")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [number of CPUs]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Prepare unchanged cases as well.")] = False,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the task: preprocess.crop=foreground.")
    ] = None,
) -> None:
    """Prepare raw cases for training: orient, resample, crop, normalise."""
    overrides = parse_assignments(assign or [])
    if spacing:
        overrides["preprocess.spacing_mm"] = parse_spacing(spacing)
    tasks = [load_task(name, overrides=overrides) for name in task or _tasks_with_raw_data(data)]
    if len(tasks) > 1 and (data or output):
        raise ConfigError("--data and --output go with a single --task; several tasks have a folder each in data/raw")
    console = Console()
    problems = 0
    for config in tasks:
        store = output or PREPARED / config.name
        summary = _prepare(config, data or RAW / config.name, store, workers or os.cpu_count() or 1, overwrite, console)
        _show(summary, config, store, console)
        problems += len(summary.problems)
    if problems:
        raise typer.Exit(1)


def parse_spacing(values: list[str]) -> object:
    """Read ``--spacing``: one number for all axes, or three for (D, H, W), by commas, spaces or repeated flags.

    Raises:
        ConfigError: neither one nor three numbers.

    Example:
        >>> parse_spacing(["2.5,0.8,0.8"])
        [2.5, 0.8, 0.8]
    """
    words = " ".join(values).replace(",", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or min(numbers) <= 0:
        given = " ".join(values)
        raise ConfigError(f"--spacing {given}: give millimetres above 0, one number or three for D,H,W (2.5,0.8,0.8)")
    return numbers[0] if len(numbers) == 1 else numbers


def _tasks_with_raw_data(data: Path | None) -> list[str]:
    if data is not None:
        raise ConfigError("--data needs --task, which tells what the folder holds; `medi3d tasks` lists the tasks")
    found = [name for name in list_tasks() if (RAW / name).is_dir()]
    if not found:
        raise InputError(
            f"no raw data: no folder {RAW}/<task> here ({Path.cwd()}); put a task's cases into one of "
            f"{', '.join(f'{RAW / name}' for name in list_tasks())}, or give --task and --data; "
            "`medi3d demo` runs on synthetic cases instead"
        )
    return found


def _prepare(config: TaskConfig, raw: Path, store: Path, workers: int, overwrite: bool, console: Console) -> Summary:
    with Progress(*_COLUMNS, console=console, transient=True) as progress:
        bar = progress.add_task(f"preprocess {config.name}", total=None)
        return prepare_dataset(
            raw,
            config,
            store,
            workers=workers,
            overwrite=overwrite,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )


def _show(summary: Summary, config: TaskConfig, store: Path, console: Console) -> None:
    table = Table("task", "prepared", "unchanged", "problems")
    table.add_column("store", overflow="fold")
    table.add_row(
        config.name, str(len(summary.prepared)), str(len(summary.skipped)), str(len(summary.problems)), str(store)
    )
    console.print(table)
    for problem in summary.problems:
        console.print(f"problem: {problem.case_id}: {problem.message}", markup=False, highlight=False, soft_wrap=True)
    if summary.left_out:
        console.print(f"{summary.left_out} rows without a label left out")
    if summary.stale:
        console.print(
            f"{len(summary.stale)} prepared cases are no longer among the usable raw cases and are not used any more "
            f"(first: {summary.stale[0]}); delete them from {store / 'cases'} to free the space",
            markup=False,
            soft_wrap=True,
        )
