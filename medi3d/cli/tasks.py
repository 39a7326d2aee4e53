"""``medi3d tasks``: the built-in tasks."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from medi3d.config import list_tasks, load_task


def tasks() -> None:
    """List the built-in tasks; one's own is a YAML file whose path is given to --task."""
    table = Table("task", "kind", "channels", "labels or classes", "description")
    for name, description in list_tasks().items():
        task = load_task(name)
        outputs = task.data.classes if task.kind == "classification" else task.data.labels.values()
        table.add_row(name, task.kind, ", ".join(task.data.channels), ", ".join(outputs), description)
    Console().print(table)
