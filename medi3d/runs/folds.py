"""A folder of folds: ``runs/<task>/<name>/`` holds a run for each fold, ``fold0``, ``fold1``, …, and what came of them.

``cross_validation.json`` is what makes a folder one of folds: the task, the place of the prepared data, which folds
there are, how each ended, and the scores of all cases, each predicted by the run that held it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medi3d.errors import InputError
from medi3d.io import atomic
from medi3d.runs.folder import RunFolder


class FoldsFolder:
    """Paths and the record of a cross-validation.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_file = path / "cross_validation.json"
        self.out_of_fold = path / "out_of_fold"

    @property
    def exists(self) -> bool:
        """Whether a cross-validation has begun here."""
        return self.record_file.is_file()

    def fold(self, number: int) -> RunFolder:
        """Return the run of a fold."""
        return RunFolder(self.path / f"fold{number}")

    def check_free(self) -> None:
        """Check that a new cross-validation may be written here.

        Raises:
            InputError: the folder already holds one, or a run.
        """
        if self.exists or RunFolder(self.path).config_file.exists():
            raise InputError(f"{self.path}: already holds a run; give another --name, or --resume it")

    def read(self) -> dict[str, Any]:
        """Read the record.

        Raises:
            InputError: there is none, or it is damaged.
        """
        if not self.exists:
            raise InputError(f"{self.path}: no run here; `medi3d train` makes one, --fold all one for each fold")
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
            return {**record, "folds": {int(fold): entry for fold, entry in record["folds"].items()}}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.record_file}: not the record of a cross-validation ({error})") from None

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the record, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        atomic.write_bytes(self.record_file, text.encode())

    def runs(self) -> list[Path]:
        """List the runs of the folds that have begun, by fold."""
        folders = [self.fold(number) for number in sorted(self.read()["folds"])]
        return [folder.path for folder in folders if folder.config_file.is_file()]


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Replace each folder of folds with the runs in it; a run stays as it is.

    Raises:
        InputError: no fold of a folder has begun.
    """
    found: list[Path] = []
    for path in paths:
        runs = _runs_at(path)
        if not runs:
            raise InputError(f"{path}: no fold has begun; `medi3d train --resume {path}` goes on with it")
        found += runs
    return found


def _runs_at(path: Path) -> Sequence[Path]:
    folds = FoldsFolder(path)
    return folds.runs() if folds.exists else [path]
