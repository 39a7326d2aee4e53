"""How scores and differences of scores are printed."""

from __future__ import annotations

import math
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from medi3d.evaluate import METRIC_TITLES, Comparison, Difference, Evaluation

_IN_FILES_ONLY = {
    "iou",
    "precision",
    "recall",
    "volume_error_percent",
    "absolute_volume_error_ml",
    "lesion_precision",
    "lesion_recall",
    "panoptic_quality",
}
"""Metrics that the files hold and a terminal does not show, so that a label stays within a glance."""

_MOST_DIFFERENT = 5


def print_result(result: Evaluation, written: tuple[Path, ...]) -> None:
    """Print the scores, where they are written, and what could not be scored."""
    table = Table("", "metric", "value", "95 % interval", "cases")
    for name, metrics in result.scores.items():
        for metric, interval in metrics.items():
            if metric not in _IN_FILES_ONLY:
                bounds = f"{interval.low:.3f} – {interval.high:.3f}"
                table.add_row(name, METRIC_TITLES[metric], f"{interval.value:.3f}", bounds, str(interval.cases))
                name = ""  # the name stands in its first row only
        table.add_section()
    console = Console()
    console.print(table)
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)
    for problem in result.problems:
        typer.echo(problem, err=True)
    _print_cases("references without a prediction", result.missing)
    _print_cases("predictions without a reference", result.unmatched)


def print_comparison(comparison: Comparison) -> None:
    """Print the differences, and the cases that differ most."""
    table = Table("", "metric", "A", "B", "A - B, 95 % interval", "p")
    for name, metrics in comparison.scores.items():
        for metric, difference in metrics.items():
            if metric not in _IN_FILES_ONLY:
                table.add_row(name, METRIC_TITLES[metric], *_cells(difference))
                name = ""
        table.add_section()
    console = Console()
    console.print(table)
    patients = f" of {comparison.patients} patients, drawn together" if comparison.patients else ""
    console.print(f"{comparison.cases} cases{patients}; p: signed-rank test, of an AUC DeLong's", highlight=False)
    cases = Table("case", f"A: {comparison.value}", "B", "A - B", title="Cases that differ most")
    for case, (first, second) in list(comparison.differing.items())[:_MOST_DIFFERENT]:
        cases.add_row(case, f"{first:.3f}", f"{second:.3f}", f"{first - second:+.3f}")
    console.print(cases)
    _print_cases("cases in A only", comparison.only_first)
    _print_cases("cases in B only", comparison.only_second)


def _cells(difference: Difference) -> tuple[str, ...]:
    interval = difference.difference
    p_value = "" if math.isnan(difference.p_value) else f"{difference.p_value:.2g}"
    bounds = f"{interval.value:+.3f} ({interval.low:+.3f} – {interval.high:+.3f})"
    return f"{difference.first:.3f}", f"{difference.second:.3f}", bounds, p_value


def _print_cases(title: str, names: tuple[str, ...]) -> None:
    if names:
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        typer.echo(f"{len(names)} {title}: {listed}", err=True)
