"""``medi3d export``: a run as a folder to share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medi3d.cli.options import Checkpoint


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    output: Annotated[Path, typer.Option(help="New folder for model.safetensors, config.yaml and card.json.")],
    checkpoint: Annotated[Checkpoint, typer.Option(help="Best by validation score, or last.")] = Checkpoint.best,
) -> None:
    """Write what prediction needs of a run as safetensors; predict and --init take it like the run itself."""
    from medi3d.export import export_run

    typer.echo(export_run(run, output, checkpoint=checkpoint.value))
