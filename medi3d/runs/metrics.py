"""``metrics.csv``: a table that grows by lines while a run is trained, and that no kill leaves in disorder.

Only lines that end are rows: one that a kill cut short does not count, and :meth:`MetricsTable.trim` removes it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medi3d.io import atomic

METRIC_COLUMNS = (
    *("step", "seconds", "learning_rate", "loss", "score"),
    *("patches_per_second", "waiting", "memory_gb", "cpu_seconds"),
)
"""The columns that a table begins with; a row that brings others adds them on the right."""


class MetricsTable:
    """A CSV file with one row a record, the first column of which is ``step``.

    Args:
        path: of the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; a column without a value stays empty.

        Raises:
            Medi3dError: the disk is full or fails.
        """
        if self._columns is None:
            self._columns = self._read()[0]
        columns = [*(self._columns or METRIC_COLUMNS)]
        columns += [name for name in row if name not in columns]
        if columns != self._columns:
            self._write(columns, self._read()[1])
        with atomic.name_the_disk(self.path.parent), self.path.open("ab", buffering=0) as stream:
            stream.write(_format_rows(columns, [row]))
            # or a checkpoint could reach the disk before the rows of the steps that it has done
            os.fsync(stream.fileno())

    def trim(self, step: int) -> None:
        """Drop the rows after ``step``, and whatever a kill or a power cut has left that is no row."""
        if self.path.exists():
            columns, rows = self._read()
            self._write(columns or list(METRIC_COLUMNS), [row for row in rows if int(row["step"]) <= step])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Return the columns and the whole rows, up to the first line that is none."""
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content[: content.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()
        columns, *records = list(csv.reader(lines)) or [[]]
        rows: list[dict[str, str]] = []
        for record in records:
            if len(record) != len(columns) or not record[0].isdecimal():
                break
            rows.append(dict(zip(columns, record, strict=True)))
        return columns, rows

    def _write(self, columns: list[str], rows: Sequence[Mapping[str, Any]]) -> None:
        header = dict(zip(columns, columns, strict=True))
        atomic.write_bytes(self.path, _format_rows(columns, [header, *rows]))
        self._columns = columns


def _format_rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
