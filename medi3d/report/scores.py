"""What an evaluation wrote, read back: ``summary.json``, ``cases.csv`` and, of classifiers, ``curves.json``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from medi3d.errors import InputError

SUMMARY, CASES, CURVES = "summary.json", "cases.csv", "curves.json"

_NAMES = ("case_id", "label", "target", "predicted")
"""Columns of ``cases.csv`` that hold words; all others hold numbers."""


class Interval(NamedTuple):
    """A value with its interval; what is undefined is ``None``."""

    value: float | None
    low: float | None
    high: float | None
    cases: int


@dataclass(frozen=True)
class Scores:
    """An evaluation.

    Attributes:
        kind: ``segmentation`` or ``classification``.
        scores: label, region, class, or a mean over them → metric → value.
        rows: of the per-case table; words as they stand, numbers as floats, ``None`` where a cell is empty.
        cases: number of cases scored.
        missing: references without a prediction.
        problems: what could not be scored.
        settings: what the scores depend on.
        curves: class → ``roc``, ``calibration``, ``decision`` → points.
    """

    kind: str
    scores: Mapping[str, Mapping[str, Interval]]
    rows: tuple[Mapping[str, str | float | None], ...]
    cases: int
    missing: tuple[str, ...]
    problems: tuple[str, ...]
    settings: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]

    @property
    def goodness(self) -> dict[str, float]:
        """Case → how well it went, 0 to 1, best last: the mean Dice, or the probability of the true class.

        Cases whose scores are all undefined are left out.
        """
        parts: dict[str, list[float]] = {}
        for row in self.rows:
            value = row["dice"] if self.kind == "segmentation" else row[str(row["target"])]
            if isinstance(value, float):
                parts.setdefault(str(row["case_id"]), []).append(value)
        means = {case: sum(values) / len(values) for case, values in parts.items()}
        return dict(sorted(means.items(), key=lambda item: (item[1], item[0])))


def read_scores(folder: Path) -> Scores:
    """Read the files of an evaluation.

    Raises:
        InputError: one is missing or damaged.
    """
    summary = _read_json(folder / SUMMARY)
    curves = _read_json(folder / CURVES)["classes"] if (folder / CURVES).is_file() else {}
    try:
        return Scores(
            kind=summary["kind"],
            scores={
                name: {
                    metric: Interval(entry["value"], entry["low"], entry["high"], entry["cases"])
                    for metric, entry in metrics.items()
                }
                for name, metrics in summary["scores"].items()
            },
            rows=tuple(_read_rows(folder / CASES)),
            cases=summary["cases"],
            missing=tuple(summary["missing"]),
            problems=tuple(summary["problems"]),
            settings=summary["settings"],
            curves=curves,
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / SUMMARY}: not what `medi3d evaluate` writes ({error}); evaluate again") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); `medi3d evaluate` writes it") from None


def _read_rows(path: Path) -> list[Mapping[str, str | float | None]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: _cell(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not readable ({error}); `medi3d evaluate` writes it") from None


def _cell(name: str, text: str) -> str | float | None:
    if name in _NAMES:
        return text
    try:
        value = float(text)
    except (TypeError, ValueError):
        return text or None
    return value if math.isfinite(value) else None
