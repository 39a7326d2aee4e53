"""From the rows of a segmentation's cases to scores with intervals: each label and region, and means over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medi3d.evaluate.metrics import SEGMENT_METRICS
from medi3d.evaluate.result import ALL_LABELS, ALL_REGIONS, Row
from medi3d.evaluate.statistics import Interval, Statistic, bootstrap_intervals, divide, mean_of, mean_over
from medi3d.types import FloatArray

POOLED: Mapping[str, tuple[str, ...]] = {
    "lesion_precision": ("prediction_lesions",),
    "lesion_recall": ("reference_lesions",),
    "lesion_f1": ("prediction_lesions", "reference_lesions"),
    "panoptic_quality": ("prediction_lesions", "reference_lesions"),
}
"""Metrics of lesions → what a case's value is counted by: the lesions of all cases are pooled (as Kirillov et al. 2019
define panoptic quality), so that a case with thirty of them says more than one with one."""


@dataclass(frozen=True, eq=False)
class Summary:
    """One metric of one label or region, or of the mean over several.

    Args:
        name: of what is scored.
        metric: one of :data:`SEGMENT_METRICS`.
        statistic: of the weights of the cases.
        values: ``(N,)`` of the cases, the mean over what is scored; NaN where there is none.
    """

    name: str
    metric: str
    statistic: Statistic
    values: FloatArray


def summaries(rows: Sequence[Row], settings: Mapping[str, Any]) -> Iterator[Summary]:
    """Yield what can be said about the cases of a segmentation.

    Args:
        rows: of the per-case table, numbers or their text; those of a case run over what is scored.
        settings: of the evaluation; its ``labels`` and ``regions`` are averaged over.
    """
    names = list(dict.fromkeys(str(row["label"]) for row in rows))
    members = {name: [name] for name in names} | {ALL_LABELS: list(settings["labels"])}
    if settings["regions"]:
        members[ALL_REGIONS] = list(settings["regions"])
    columns = {key: _column(rows, key, len(names)) for key in rows[0] if key not in ("case_id", "label")}
    for name, chosen in members.items():
        at = [names.index(member) for member in chosen]
        for metric in SEGMENT_METRICS:
            values = columns[metric][:, at]
            known = np.isfinite(values)
            mean = divide(np.where(known, values, 0).sum(axis=1), known.sum(axis=1).astype(np.float64))
            if metric in POOLED:
                counts = np.sum([columns[count][:, at] for count in POOLED[metric]], axis=0)
                per_name = [mean_of(value, counts=count) for value, count in zip(values.T, counts.T, strict=True)]
                yield Summary(name, metric, mean_over(per_name), mean)
            else:
                yield Summary(name, metric, mean_of(mean), mean)


def summarize_segments(
    rows: Sequence[Row], settings: Mapping[str, Any], *, groups: Mapping[str, int], bootstrap: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """Return name of what is scored → metric → value over the cases with its interval."""
    cases = list(dict.fromkeys(str(row["case_id"]) for row in rows))
    drawn_with = [str(groups[case]) for case in cases] if groups else None
    found = list(summaries(rows, settings))
    intervals = bootstrap_intervals(
        [summary.statistic for summary in found], len(cases), groups=drawn_with, samples=bootstrap, seed=seed
    )
    scores: dict[str, dict[str, Interval]] = {}
    for summary, interval in zip(found, intervals, strict=True):
        known = int(np.isfinite(summary.values).sum())
        scores.setdefault(summary.name, {})[summary.metric] = replace(interval, cases=known)
    return scores


def _column(rows: Sequence[Row], key: str, names: int) -> FloatArray:
    """Return ``(cases, names)`` of one column; an empty cell is NaN."""
    values = [np.nan if row[key] == "" else float(row[key]) for row in rows]
    return np.array(values).reshape(-1, names)
