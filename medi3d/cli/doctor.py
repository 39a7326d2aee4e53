"""``medi3d doctor``: is everything there that training needs, and how is what is not mended."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from medi3d.cli.options import PREPARED, RAW, RUNS
from medi3d.config import ModelConfig, TaskConfig
from medi3d.errors import ConfigError

if TYPE_CHECKING:
    from medi3d.cli.diagnosis import Diagnosis

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    task: Annotated[str | None, typer.Option(help="Built-in task or path of a YAML file.")] = None,
    prepared: Annotated[Path | None, typer.Option(help="Prepared data [data/prepared/<task>].")] = None,
    data: Annotated[Path | None, typer.Option(help="Raw data; needs --task.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    output: Annotated[Path, typer.Option(help="Where runs go.")] = RUNS,
) -> None:
    """Check versions, devices, memory, disk, weights and data; exit code 1 if training would fail."""
    if data is not None and task is None:
        raise ConfigError("--data needs --task: the task says in which layout raw data lies")
    console, counts = Console(highlight=False), dict.fromkeys(_STYLES, 0)
    for found in _examine(task, prepared, data, device, output):
        counts[found.state] += 1
        line = Text.assemble((f"{found.state:8}", _STYLES[found.state]), f" {found.topic}: {found.text}")
        console.print(line, soft_wrap=True)
        if found.remedy:
            console.print(f"         → {found.remedy}", soft_wrap=True, markup=False)
    console.print(f"{counts['problem']} problems, {counts['warning']} warnings")
    if counts["problem"]:
        raise typer.Exit(1)


def _examine(
    task: str | None, prepared: Path | None, data: Path | None, device: str, output: Path
) -> Iterator[Diagnosis]:
    from medi3d.cli.diagnosis import Diagnosis, check_devices, check_disk, check_memory, check_versions, check_weights

    versions = list(check_versions())
    yield from versions
    if any(found.state == "problem" for found in versions):
        yield Diagnosis("doctor", "warning", "stopped here: the rest needs the packages above", "install them first")
        return
    yield from chain(
        check_devices(), check_memory(), check_disk("runs", output), check_disk("data", prepared or PREPARED)
    )

    from medi3d.cli.data_diagnosis import check_plan, check_raw, check_store
    from medi3d.cli.train import resolve_task

    config: TaskConfig | None = None if task is None else resolve_task(task, {}, prepared, None)
    yield from check_weights(config.model if config is not None else ModelConfig())
    stores = _find_stores(config, prepared)
    if not stores:
        where = prepared or (PREPARED if config is None else PREPARED / config.name)
        yield Diagnosis("data", "warning", f"{where}: nothing is prepared", "run `medi3d preprocess --task NAME`")
    for store in stores:
        found = list(check_store(store, config))
        yield from found
        if config is not None and all(one.state != "problem" for one in found):
            yield from check_plan(store, config, device)
    if config is not None and (data is not None or (RAW / config.name).is_dir()):
        yield from check_raw(data or RAW / config.name, config)


def _find_stores(config: TaskConfig | None, prepared: Path | None) -> list[Path]:
    """Return the stores to look into: the one that is named, that of the task, or all that there are."""
    if prepared is not None:
        return [prepared]
    if config is not None:
        return [PREPARED / config.name] if (PREPARED / config.name).is_dir() else []
    return sorted(path for path in PREPARED.glob("*") if path.is_dir())
