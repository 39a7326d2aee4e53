"""``medi3d preprocess``: raw cases into the prepared store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medi3d.cli import spacing as spacing_option
from medi3d.cli.options import PREPARED, RAW, parse_assignments
from medi3d.cli.preparation_table import show_data, show_summary
from medi3d.config import list_tasks, load_task
from medi3d.errors import ConfigError, InputError
from medi3d.io import PreparedStore
from medi3d.preprocess import prepare_dataset
from medi3d.preprocess.scheduling.budget import parse_bytes
from medi3d.report.quality import write_quality

_REFRESH_SECONDS = 0.1


def preprocess(
    task: Annotated[
        list[str] | None, typer.Option(help="Task name or YAML file; may be repeated. [every task in data/raw]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of raw cases. [data/raw/<task>]")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the prepared store. [data/prepared/<task>]")] = None,
    spacing: Annotated[str | None, typer.Option(help=spacing_option.HELP)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [number of CPUs]")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of all cases under way together, such as 8G. [80 % of what is free]")
    ] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for the voxels of cases that do not fit in memory. [the store's]")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler whose workers do the work: tcp://host:port.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Prepare unchanged cases as well.")] = False,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the task: preprocess.crop=foreground.")
    ] = None,
) -> None:
    """Prepare raw cases for training: orient, resample, crop, normalise, and look for what is wrong with them."""
    overrides = parse_assignments(assign or [])
    if spacing is not None:
        overrides["preprocess.spacing_mm"] = spacing_option.parse_spacing(spacing)
    tasks = [load_task(name, overrides=overrides) for name in task or _tasks_with_raw_data(data)]
    if len(tasks) > 1 and (data or output):
        raise ConfigError("--data and --output go with a single --task; several tasks have a folder each in data/raw")
    memory_bytes = None if memory is None else parse_bytes(memory)
    console = Console()
    problems = 0
    for config in tasks:
        store = output or PREPARED / config.name
        with _progress(f"preprocess {config.name}", console) as show_progress:
            summary = prepare_dataset(
                data or RAW / config.name,
                config,
                store,
                workers=workers or os.cpu_count() or 1,
                memory_bytes=memory_bytes,
                scheduler=scheduler,
                scratch=scratch,
                on_progress=show_progress,
                overwrite=overwrite,
            )
        show_summary(summary, config, store, console)
        if summary.prepared or summary.skipped:
            prepared = PreparedStore(store)
            show_data(prepared.fingerprint, prepared.quality, console)
            page = write_quality(store, problems=summary.problems_to_keep(config))
            console.print(f"a picture of every case, the oddest first: {page}", markup=False, soft_wrap=True)
        problems += len(summary.problems)
    if problems:
        raise typer.Exit(1)


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


@contextmanager
def _progress(title: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left on a terminal, and what an interrupted run leaves behind.

    The bar has no thread that redraws it: processes are forked from a process of one thread only.
    """
    try:
        if not console.is_terminal:
            yield lambda done, total: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("left"), console=console, transient=True, auto_refresh=False) as progress:
            bar = progress.add_task(title, total=None)
            drawn = 0.0

            def show(done: int, total: int) -> None:
                nonlocal drawn
                progress.update(bar, completed=done, total=total)
                if time.monotonic() - drawn > _REFRESH_SECONDS:
                    progress.refresh()
                    drawn = time.monotonic()

            yield show
    except KeyboardInterrupt:
        typer.echo("stopped; the cases prepared so far are kept, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
