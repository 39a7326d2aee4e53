"""How prediction shows itself: a bar with the time that is left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 30.0


class PredictProgress:
    """Shows which case is at hand, how many are done, and how long the others will take.

    Args:
        console: standard error; where it is no terminal, lines are written in place of a bar.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._row = self._bar.add_task("predict", total=None)
        self._start = self._last = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[PredictProgress]:
        """Show the bar while the block runs."""
        if self._console.is_terminal:
            with self._bar:
                yield self
        else:
            yield self

    def start_case(self, case_id: str, number: int, total: int) -> None:
        """Show that a case begins.

        Args:
            case_id: which one.
            number: how many were begun before.
            total: how many there are.
        """
        now = time.monotonic()
        if number == 0:  # of a batch; a watched folder has many
            self._start = self._last = now
            self._bar.reset(self._row, total=total)
        if self._console.is_terminal:
            self._bar.update(self._row, description=case_id, completed=number, total=total)
        elif now - self._last >= _LINE_EVERY_S:
            self._last = now
            left = (now - self._start) / number * (total - number)
            elapsed, eta = (timedelta(seconds=round(seconds)) for seconds in (now - self._start, left))
            line = f"{number} of {total} cases in {elapsed}, ETA {eta}"
            self._console.print(line, highlight=False, soft_wrap=True)
