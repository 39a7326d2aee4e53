"""``medi3d tasks``: the built-in tasks."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from medi3d.config import list_tasks, load_task


def tasks() -> None:
    """List the built-in tasks; one's own is a YAML file whose path is given to --task."""
    table = Table("task", "kind", "what it is")
    for name, description in list_tasks().items():
        table.add_row(name, load_task(name).kind, description)
    Console().print(table)
