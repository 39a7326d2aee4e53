"""What ``medi3d preprocess`` shows at its end: what was prepared, what the data is like, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medi3d.config import TaskConfig
from medi3d.preprocess import Summary

_MOST_ODD = 10
_SEVERITY = {1: "unusual", 2: "suspicious", 3: "likely wrong"}


def show_summary(summary: Summary, task: TaskConfig, store: Path, console: Console) -> None:
    """Print what became of the cases, one line a problem."""
    table = Table("task", "prepared", "unchanged", "problems")
    table.add_column("store", overflow="fold")
    counts = (len(summary.prepared), len(summary.skipped), len(summary.problems))
    table.add_row(task.name, *map(str, counts), str(store))
    console.print(table)
    for problem in summary.problems:
        _print_line(console, f"problem: {problem.case_id}: {problem.message}")
    if summary.left_out:
        console.print(f"{summary.left_out} rows without a label left out")
    if summary.stale:
        _print_line(
            console,
            f"{len(summary.stale)} prepared cases are no longer among the usable raw cases and are not used any more "
            f"(first: {summary.stale[0]}); delete them from {store / 'cases'} to free the space",
        )


def show_data(fingerprint: Mapping[str, Any], quality: Mapping[str, Any], console: Console) -> None:
    """Print the median, least and greatest of what was measured over the cases, and the cases that stand out."""
    table = Table("over the cases", "median", "least", "greatest")
    for name, spread in _rows(fingerprint):
        table.add_row(name, *(_numbers(spread[key]) for key in ("median", "min", "max")))
    console.print(table)
    for note in quality["notes"]:
        _print_line(console, f"note: {note}")
    odd = quality["cases"]
    for case in odd[:_MOST_ODD]:
        findings = "; ".join(finding["message"] for finding in case["findings"])
        _print_line(console, f"{_SEVERITY[case['severity']]}: {case['case_id']}: {findings}")
    if len(odd) > _MOST_ODD:
        console.print(f"and {len(odd) - _MOST_ODD} more cases that are odd in some way")


def _rows(fingerprint: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    rows = [
        ("native spacing D H W, mm", fingerprint["native_spacing_mm"]),
        ("native shape D H W", fingerprint["native_shape"]),
        ("prepared shape D H W", fingerprint["prepared_shape"]),
    ]
    rows += [(f"{name}: mean", channel["mean"]) for name, channel in fingerprint["channels"].items()]
    rows += [
        (f"{name} in {label['cases']} cases, ml", label["volume_ml"])
        for name, label in fingerprint["labels"].items()
        if label["cases"]
    ]
    return rows


def _numbers(values: float | Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in (values if isinstance(values, Sequence) else [values]))


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
