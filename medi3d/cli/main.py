"""The command ``medi3d``: its list of commands, and how a user's mistake is shown.

A mistake is one line on standard error: exit code 2 for a wrong command or configuration, 1 for a run that failed.
A command's module is imported when it is asked for, so that none waits for what another one needs.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_command

from medi3d._version import __version__
from medi3d.cli.spacing import SpacingCommand
from medi3d.errors import ConfigError, Medi3dError
from medi3d.registry import unknown_name_message

_MODULES = {
    "demo": "demo",
    "preprocess": "preprocess",
    "plan": "plan",
    "train": "train",
    "pretrain": "pretrain",
    "predict": "predict",
    "postprocess": "postprocess",
    "evaluate": "evaluate",
    "report": "report",
    "compare": "compare",
    "export": "export",
    "benchmark": "benchmark",
    "tasks": "tasks",
    "models": "inspect",
    "inspect": "inspect",
    "doctor": "doctor",
}
"""Command → the module of :mod:`medi3d.cli` that holds the function of that name."""


class _Commands(TyperGroup):
    """The commands, each made from its function when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, in the order of a run."""
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command.

        Raises:
            ConfigError: there is none of that name.
        """
        if cmd_name not in _MODULES:
            raise ConfigError(unknown_name_message("command", cmd_name, _MODULES))
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        function = getattr(import_module(f"medi3d.cli.{_MODULES[cmd_name]}"), cmd_name)
        single.command(cmd_name, cls=SpacingCommand)(function)
        command = get_command(single)
        entries: list[Any] = [command, *command.params]
        for entry in entries:
            if getattr(entry, "help", None):  # arguments of click itself have none
                entry.help = escape(entry.help)
        return command


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Every 2D ImageNet-pretrained network, as an exact 3D network for CT and MRI.",
)


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
