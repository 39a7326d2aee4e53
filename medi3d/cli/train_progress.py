"""How training shows itself: a bar for each fold on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from math import isfinite
from statistics import mean, stdev
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from medi3d.planning import Plan
    from medi3d.train.cross_validation import FoldOutcome
    from medi3d.train.loop import TrainEvent

_LINE_EVERY_S = 60


class TrainProgress:
    """Shows events of one run, or of several folds.

    Args:
        console: standard error; where it is no terminal, lines are written in place of bars.
        quiet: shows nothing, as all processes of a run but the first do.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._rows: dict[str, TaskID] = {}
        self._shown: dict[str, tuple[float, float | None]] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:3.0f}%  {task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,  # so that a mistake found now is one line, without an empty bar above it
        )

    @contextmanager
    def shown(self) -> Iterator[TrainProgress]:
        """Show bars while the block runs."""
        if self._quiet or not self._console.is_terminal:
            yield self
        else:
            with self._bars:
                yield self

    def update(self, name: str, event: TrainEvent) -> None:
        """Show what a run tells.

        Args:
            name: of its row.
            event: what it tells.
        """
        if self._quiet:
            return
        if self._console.is_terminal:
            if name not in self._rows:
                self._rows[name] = self._bars.add_task(name, total=1.0, facts="")
            self._bars.update(self._rows[name], completed=event.progress, facts=describe_event(event))
        elif self._is_due(name, event):
            self._console.print(_as_line(name, event), highlight=False, soft_wrap=True)

    def _is_due(self, name: str, event: TrainEvent) -> bool:
        """Tell whether a line is due: at the first step, at each validation and the end, and once a minute."""
        last, score = self._shown.get(name, (-1e9, None))
        due = time.monotonic() - last >= _LINE_EVERY_S or event.score != score or event.progress >= 1
        if due:
            self._shown[name] = time.monotonic(), event.score
        return due


def describe_event(event: TrainEvent) -> str:
    """Say where a run is, on one line."""
    score, best = ("-" if value is None else f"{value:.3f}" for value in (event.score, event.best))
    return (
        f"step {event.step}  loss {event.loss:.3f}  score {score}  best {best}  "
        f"{event.patches_per_second:.3g} patches/s  waiting {event.waiting:.0%}  {event.memory_gb:.1f} GB"
    )


def _as_line(name: str, event: TrainEvent) -> str:
    eta = "-" if event.eta_s is None else str(timedelta(seconds=round(event.eta_s)))
    elapsed = timedelta(seconds=round(event.seconds))
    return f"{name}  {event.progress:4.0%}  {describe_event(event)}  {elapsed} ETA {eta}"


def print_plan(plan: Plan, console: Console) -> None:
    """Print every key that a plan is about: its value, and why."""
    table = Table("key", "value", "why")
    for key, value in plan.values.items():
        shown = " × ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        table.add_row(key, shown, plan.reasons[key])
    console.print(table)


def print_folds(outcomes: Sequence[FoldOutcome], console: Console, *, measure: str) -> None:
    """Print how each fold ended, and the mean over the finished ones with its standard deviation."""
    table = Table("fold", "state", "steps", "time", f"{measure}, last", "best")
    for outcome in outcomes:
        result = outcome.result
        if result is None:
            table.add_row(str(outcome.fold), outcome.state, "-", "-", "-", "-")
            continue
        elapsed = str(timedelta(seconds=round(result.seconds)))
        scores = (f"{value:.4f}" if isfinite(value) else "-" for value in (result.last_score, result.best_score))
        table.add_row(str(outcome.fold), outcome.state, str(result.steps), elapsed, *scores)
    done = [outcome.result for outcome in outcomes if outcome.result is not None and outcome.state == "finished"]
    columns = ([result.last_score for result in done], [result.best_score for result in done])
    if len(done) > 1:
        table.add_section()
        table.add_row("mean ± sd", "", "", "", *(f"{mean(column):.4f} ± {stdev(column):.4f}" for column in columns))
    console.print(table)
