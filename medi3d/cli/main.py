"""The command ``medi3d``: its list of commands, and how a user's mistake is shown.

A mistake is one line on standard error: exit code 2 for a wrong command or configuration, 1 for a run that failed.
"""

from __future__ import annotations

import logging
import sys

import typer

from medi3d._version import __version__
from medi3d.cli.demo import demo
from medi3d.cli.evaluate import evaluate
from medi3d.cli.export import export
from medi3d.cli.inspect import inspect, models
from medi3d.cli.predict import predict
from medi3d.cli.preprocess import preprocess
from medi3d.cli.report import report
from medi3d.cli.tasks import tasks
from medi3d.cli.train import train
from medi3d.errors import ConfigError, Medi3dError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Every 2D ImageNet-pretrained network, as an exact 3D network for CT and MRI.",
)
for command in (demo, preprocess, train, predict, evaluate, report, export, tasks, models, inspect):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"medi3d {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", help="Show what the library logs."),
) -> None:
    """Take the options that stand before the command."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


def run() -> None:
    """Run the command line and turn a user's mistake into one line and an exit code."""
    try:
        app()
    except Medi3dError as error:
        typer.echo(f"medi3d: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
