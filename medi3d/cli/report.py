"""``medi3d report``: one page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    evaluation: Annotated[Path | None, typer.Option(help="Folder that `medi3d evaluate` wrote.")] = None,
    output: Annotated[Path | None, typer.Option(help="The HTML file [RUN/report.html].")] = None,
) -> None:
    """Write one self-contained HTML page: configuration, origin, learning curves, metrics with intervals."""
    from medi3d.report import write_report

    typer.echo(write_report(run, output or run / "report.html", evaluation=evaluation))
