"""``medi3d plan``: what a task leaves open, chosen from the prepared data and the memory at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medi3d.cli.options import PREPARED, parse_assignments
from medi3d.cli.train import resolve_task
from medi3d.cli.train_progress import print_plan
from medi3d.config import parse_duration


def plan(
    task: Annotated[str, typer.Option(help="Built-in task or path of a YAML file.")],
    prepared: Annotated[Path | None, typer.Option(help="Prepared data [data/prepared/<task>].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    memory: Annotated[
        str | None, typer.Option(help="Memory that training may use, such as 8G [80 % of what is free on the device].")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Wall-clock budget of the training, such as 10m.")] = None,
    output: Annotated[Path | None, typer.Option(help="YAML file for `medi3d train --plan`.")] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="Any key: section.key=value; repeatable.")] = None,
) -> None:
    """Choose patch, batch, stages, depth plan, learning rate and steps for a task, and say why."""
    from medi3d.io import PreparedStore
    from medi3d.planning import estimate_training_bytes, plan_task, write_plan
    from medi3d.preprocess.scheduling.budget import parse_bytes

    flags = parse_assignments(assign or [])
    if budget is not None:
        parse_duration(budget)
        flags["train.budget"] = budget
    config = resolve_task(task, flags, prepared, None)
    memory_bytes = None if memory is None else parse_bytes(memory)
    store = PreparedStore(prepared or PREPARED / config.name)
    made = plan_task(config, store, device=device, memory_bytes=memory_bytes)
    console = Console()
    print_plan(made, console)
    needed = estimate_training_bytes(made.task) / 1e9
    console.print(
        f"needs about {needed:.2g} GB of the {made.made_for['memory_gb']:.3g} GB that training may use on this "
        f"{'GPU' if made.made_for['device'] == 'cuda' else 'CPU'}",
        highlight=False,
    )
    if output is not None:
        write_plan(made, output, flags=flags)
        console.print(f"medi3d train --task {task} --plan {output}", highlight=False, soft_wrap=True)
