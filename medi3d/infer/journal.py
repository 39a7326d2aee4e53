"""What has been predicted into a folder: by which it is told what need not be predicted again.

``<output>/.medi3d/predictions.jsonl`` gets a line when a case's files are on the disk: the hash of all that they depend
on (the models' files, the settings, the bytes of the input), the hash of each file, and what the report says about
them. A line that was cut by a kill, or whose files are not those that were written, counts for nothing. One process at
a time writes into a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medi3d.io import atomic
from medi3d.seal import hash_file

_FOLDER = ".medi3d"
PROBABILITIES = "probabilities"
"""Folder beside the label maps for volumes of probabilities."""


@dataclass(frozen=True)
class Line:
    """What is known of one predicted case.

    Args:
        case_id: its name.
        key: hash of all that its files depend on.
        files: name in the output folder → SHA-256.
        entry: what the report says about it.
        classes: probabilities of a task with classes.
    """

    case_id: str
    key: str
    entry: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    classes: list[float] | None = None


class Journal:
    """The lines of an output folder.

    Args:
        output: the folder; :func:`open_journal` locks it.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._file = output / _FOLDER / "predictions.jsonl"
        self._lines = {line.case_id: line for line in _read_lines(self._file)}
        content = "".join(json.dumps(asdict(line)) + "\n" for line in self._lines.values())
        atomic.write_bytes(self._file, content.encode())

    def find(self, case_id: str, key: str) -> Line | None:
        """Return a case's line where its files depend on the same and are as they were written."""
        line = self._lines.get(case_id)
        if line is None or line.key != key:
            return None
        paths = {self._output / name: digest for name, digest in line.files.items()}
        return line if all(path.is_file() and hash_file(path) == digest for path, digest in paths.items()) else None

    def add(self, line: Line) -> None:
        """Note a case whose files are on the disk.

        Raises:
            Medi3dError: the disk is full or fails.
        """
        with atomic.name_the_disk(self._output), self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(line)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._lines[line.case_id] = line


@contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """Make an output folder, keep other processes from predicting into it, and clear what a killed one left half-done.

    Raises:
        InputError: another process predicts into it.
        Medi3dError: the folder cannot be written.
    """
    with atomic.name_the_disk(output.parent):
        (output / _FOLDER).mkdir(parents=True, exist_ok=True)
    with atomic.lock(output / _FOLDER) as locked:
        if locked:
            for folder in (output, output / _FOLDER, output / PROBABILITIES):
                atomic.remove_leftovers(folder)
        yield Journal(output)


def _read_lines(file: Path) -> Iterator[Line]:
    if not file.is_file():
        return
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values: Mapping[str, Any] = json.loads(text)
            yield Line(**values)
        except (ValueError, TypeError):  # cut by a kill
            continue
