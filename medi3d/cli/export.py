"""``medi3d export``: a run, or those of all folds, as folders to share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medi3d.cli.options import Checkpoint
from medi3d.errors import ConfigError


def export(
    runs: Annotated[list[Path], typer.Argument(help="Run, or several, or a folder of folds.")],
    output: Annotated[
        Path,
        typer.Option(
            help="New folder for model.safetensors, config.yaml and card.json; of several runs, one in it each."
        ),
    ],
    checkpoint: Annotated[Checkpoint, typer.Option(help="Best by validation score, or last.")] = Checkpoint.best,
    encoder: Annotated[
        bool, typer.Option("--encoder", help="The run's encoder alone, which create_encoder and --init take.")
    ] = False,
    licence: Annotated[str, typer.Option(help="Licence of the encoder's weights, for its card.")] = "not stated",
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Put the encoder on the Hugging Face hub as well.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A new repository there is seen by all.")] = False,
) -> None:
    """Write what prediction needs of a run as safetensors; predict and --init take it like the run itself."""
    from medi3d.export import export_run_encoder, export_runs, push_encoder

    if encoder:
        if len(runs) != 1:
            raise ConfigError(f"--encoder exports that of one run; got {len(runs)}")
        folder = export_run_encoder(runs[0], output, checkpoint=checkpoint.value, licence=licence)
        typer.echo(folder)
        if push is not None:
            typer.echo(f"{push}@{push_encoder(folder, push, private=not public)}")
        return
    if push is not None or public or licence != "not stated":
        raise ConfigError("--push, --public and --licence go with --encoder")
    for folder in export_runs(runs, output, checkpoint=checkpoint.value):
        typer.echo(folder)
