"""What an evaluation found, and how it is written: one CSV row a case, one JSON summary."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medi3d._version import __version__
from medi3d.errors import InputError
from medi3d.evaluate.statistics import Interval
from medi3d.io import atomic
from medi3d.types import PathLike

ALL_LABELS = "all labels"
"""The row of :attr:`Evaluation.scores` that averages a case's labels before it averages the cases."""

ALL_REGIONS = "all regions"
"""The same of a case's regions."""

METRIC_TITLES: Mapping[str, str] = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hd95_mm": "HD95 (mm)",
    "auc": "AUC",
    "accuracy": "accuracy",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
"""How tables and figures call each metric."""

Row = Mapping[str, str | float]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of predictions.

    Args:
        kind: ``"segmentation"`` or ``"classification"``.
        rows: of the per-case table; a segmentation has one row for each case and label or region.
        scores: what is scored (the name of a label or region, :data:`ALL_LABELS`, :data:`ALL_REGIONS`, or a class) →
            metric → value with its interval.
        cases: how many cases were scored.
        missing: the references that have no prediction.
        unmatched: the predictions that have no reference.
        problems: one line for each case that could not be scored.
        settings: what the scores depend on: tolerance, bootstrap samples, seed.
    """

    kind: str
    rows: tuple[Row, ...]
    scores: Mapping[str, Mapping[str, Interval]]
    cases: int
    missing: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)

    def write(self, folder: PathLike) -> tuple[Path, Path]:
        """Write ``cases.csv`` and ``summary.json`` into a folder, which is made where it is missing.

        Returns:
            The two paths. Undefined values are empty in the CSV and ``null`` in the JSON.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return self._write_cases(folder / "cases.csv"), self._write_summary(folder / "summary.json")

    def _write_cases(self, path: Path) -> Path:
        with atomic.new_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows({key: _csv_value(value) for key, value in row.items()} for row in self.rows)
        return path

    def _write_summary(self, path: Path) -> Path:
        summary = {"medi3d": __version__, **asdict(self)}
        del summary["rows"]
        text = json.dumps(_json_value(summary), indent=2, allow_nan=False) + "\n"
        atomic.write_bytes(path, text.encode())
        return path


def require_cases(scored: Sequence[object], *, missing: Sequence[str], problems: Sequence[str]) -> None:
    """Raise unless at least one case could be scored.

    Raises:
        InputError: nothing was scored; the message holds the first reason.
    """
    if scored:
        return
    reasons = list(problems[:1])
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        reasons.append(f"{len(missing)} references have no prediction of their name ({names})")
    raise InputError("no case could be evaluated: " + ("; ".join(reasons) or "there are no references"))


def _csv_value(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return str(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
