"""What an evaluation found, and how it is written and read: one CSV row a case, one JSON summary, and curves."""

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
    "assd_mm": "mean surface distance (mm)",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "volume_error_ml": "volume error (ml)",
    "volume_error_percent": "volume error (%)",
    "absolute_volume_error_ml": "absolute volume error (ml)",
    "lesion_precision": "lesion precision",
    "lesion_recall": "lesion recall",
    "lesion_f1": "lesion F1",
    "panoptic_quality": "panoptic quality",
    "auc": "AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
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
        settings: what the scores depend on: labels, tolerance, bootstrap samples, seed.
        groups: case id → number of the patient, where patients are known: cases of one share it.
        curves: of a classifier, see :mod:`medi3d.evaluate.curves`.
    """

    kind: str
    rows: tuple[Row, ...]
    scores: Mapping[str, Mapping[str, Interval]]
    cases: int
    missing: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: PathLike) -> tuple[Path, Path]:
        """Write ``cases.csv``, ``summary.json`` and, of a classifier, ``curves.json`` into a folder, made if missing.

        Returns:
            The paths of the first two. Undefined values are empty in the CSV and ``null`` in the JSON.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.curves:
            write_json(folder / "curves.json", self.curves, indent=None)
        return self._write_cases(folder / "cases.csv"), self._write_summary(folder / "summary.json")

    def _write_cases(self, path: Path) -> Path:
        with atomic.new_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows({key: _csv_value(value) for key, value in row.items()} for row in self.rows)
        return path

    def _write_summary(self, path: Path) -> Path:
        summary = {"medi3d": __version__, **asdict(self)}
        del summary["rows"], summary["curves"]
        write_json(path, summary)
        return path


def number_groups(cases: Sequence[str], groups: Mapping[str, str] | None) -> dict[str, int]:
    """Number the patients of some cases from 1 on, so that nothing names them; empty where none is known."""
    if not groups:
        return {}
    numbers: dict[str, int] = {}
    return {case: numbers.setdefault(groups.get(case, case), len(numbers) + 1) for case in cases}


def read_evaluation(folder: PathLike) -> Evaluation:
    """Read what :meth:`Evaluation.write` has written; of its curves, nothing.

    Raises:
        InputError: a file is missing or is not one, or an older medi3d wrote it.
    """
    summary_path, cases_path = Path(folder) / "summary.json", Path(folder) / "cases.csv"
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        with cases_path.open(newline="", encoding="utf-8") as stream:
            rows = tuple(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{folder}: not an evaluation with its cases.csv and summary.json: {error}") from None
    if not isinstance(summary, dict) or "groups" not in summary or not rows:
        raise InputError(
            f"{summary_path}: written by an older medi3d, or by something else; run `medi3d evaluate` again"
        )
    return Evaluation(
        kind=summary["kind"],
        rows=rows,
        scores={
            name: {metric: _read_interval(entry) for metric, entry in metrics.items()}
            for name, metrics in summary["scores"].items()
        },
        cases=summary["cases"],
        missing=tuple(summary["missing"]),
        unmatched=tuple(summary["unmatched"]),
        problems=tuple(summary["problems"]),
        settings=summary["settings"],
        groups=summary["groups"],
    )


def _read_interval(entry: Mapping[str, float | None]) -> Interval:
    value, low, high = (math.nan if entry[key] is None else float(entry[key] or 0) for key in ("value", "low", "high"))
    return Interval(value, low, high, int(entry["cases"] or 0))


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


def write_json(path: Path, content: object, *, indent: int | None = 2) -> None:
    """Write JSON, whole or not at all; undefined numbers become ``null``."""
    text = json.dumps(_json_value(content), indent=indent, allow_nan=False) + "\n"
    atomic.write_bytes(path, text.encode())


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
