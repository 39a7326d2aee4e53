"""Runs side by side: scores with intervals, paired differences to the first run, size, time, and what differs.

The differences are computed elsewhere (:mod:`medi3d.evaluate.comparison`) and handed in.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from medi3d.config import TaskConfig, dump_task
from medi3d.io import atomic
from medi3d.report.charts import draw_comparison, write_comparison
from medi3d.report.render import render
from medi3d.report.scoreboard import headline_name, interval_cell
from medi3d.report.scores import Interval
from medi3d.report.training_facts import Effort
from medi3d.report.words import describe_metric

_MOST_PANELS = 9


class Difference(NamedTuple):
    """A run's value less the first run's, on the cases of both; ``p_value`` is ``None`` where there is no test."""

    interval: Interval
    p_value: float | None


@dataclass(frozen=True)
class ComparedRun:
    """One run, or one cross-validation.

    Attributes:
        name: how the comparison calls it.
        task: its configuration.
        scores: label, region or class → metric → value with interval.
        parameters: of one network.
        effort: of training, of all folds together.
        differences: the same keys as ``scores``; empty for the first run and for one that shares no cases with it.
    """

    name: str
    task: TaskConfig
    scores: Mapping[str, Mapping[str, Interval]]
    parameters: int
    effort: Effort
    differences: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)


def main_rows(runs: Sequence[ComparedRun]) -> list[tuple[str, str]]:
    """Return what a short table holds: (label or class, metric), the main metrics of what a page begins with."""
    name = headline_name(runs[0].scores)
    metrics = [metric for metric in runs[0].scores[name] if describe_metric(metric).main]
    return [(name, metric) for metric in metrics or runs[0].scores[name]]


def row_title(segment: str, metric: str) -> str:
    """Name a row."""
    words = describe_metric(metric)
    return f"{words.title}{f' ({words.unit})' if words.unit else ''}, {segment}"


def value_text(run: ComparedRun, segment: str, metric: str) -> str:
    """Write a value with its interval."""
    return _joined(interval_cell(metric, run.scores.get(segment, {}).get(metric)))


def difference_text(run: ComparedRun, segment: str, metric: str) -> str:
    """Write a difference to the first run with its interval and p-value; empty where there is none."""
    difference = run.differences.get(segment, {}).get(metric)
    if difference is None or difference.interval.value is None:
        return ""
    sign = "+" if difference.interval.value > 0 else ""
    return f"{sign}{_joined(interval_cell(metric, difference.interval))}{_p_text(difference.p_value)}"


def size_texts(run: ComparedRun) -> dict[str, str]:
    """Write the number of parameters, and what training took and where."""
    time, processor_time, device = (text or "–" for text in run.effort.texts)
    return {
        "Parameters": f"{run.parameters / 1e6:.2f} M",
        "Trained": time,
        "Processor time": processor_time,
        "Device": device,
    }


def draw_figure(runs: Sequence[ComparedRun], path: Path) -> Path:
    """Write a figure over the runs: a panel a main metric, an interval a run.

    Raises:
        ConfigError: the name ends neither in ``.png`` nor in ``.svg``.
    """
    return write_comparison([run.name for run in runs], _panels(runs), path)


def write_table(runs: Sequence[ComparedRun], path: Path) -> Path:
    """Write every value of every run as CSV, a row each; undefined ones are empty."""
    rows = list(_rows(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.new_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_page(runs: Sequence[ComparedRun], path: Path) -> Path:
    """Write the comparison as one HTML page that fetches nothing."""
    segments = {segment: list(metrics) for segment, metrics in runs[0].scores.items()}
    tables = [
        {
            "title": segment,
            "rows": [
                {
                    "name": describe_metric(metric).title,
                    "unit": describe_metric(metric).unit,
                    "cells": [
                        {
                            **interval_cell(metric, run.scores.get(segment, {}).get(metric)),
                            "difference": difference_text(run, segment, metric),
                        }
                        for run in runs
                    ],
                }
                for metric in metrics
                if describe_metric(metric).main
            ],
        }
        for segment, metrics in segments.items()
    ]
    page = render(
        "comparison.html",
        title=f"{runs[0].task.name}: {len(runs)} runs",
        runs=[run.name for run in runs],
        figure=Markup(draw_comparison([run.name for run in runs], _panels(runs))),
        tables=[table for table in tables if table["rows"]],
        facts=[
            *((name, [size_texts(run)[name] for run in runs]) for name in size_texts(runs[0])),
            ("Cases scored", [str(_cases(run)) for run in runs]),
            *differing_settings(runs),
        ],
        date=datetime.now(timezone.utc).strftime("%-d %B %Y"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, page.encode("utf-8"))
    return path


def differing_settings(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """Return the keys of the configuration that the runs do not agree on, with each run's value."""
    flat = [dict(_flatten(dump_task(run.task))) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    found = [(key, [str(values.get(key, "–")) for values in flat]) for key in keys if not key.endswith("weights")]
    return [(key, texts) for key, texts in found if len(set(texts)) > 1]


def _panels(runs: Sequence[ComparedRun]) -> dict[str, list[Interval | None]]:
    return {
        row_title(segment, metric): [run.scores.get(segment, {}).get(metric) for run in runs]
        for segment, metric in main_rows(runs)[:_MOST_PANELS]
    }


def _rows(runs: Sequence[ComparedRun]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for segment, metrics in run.scores.items():
            for metric, interval in metrics.items():
                difference = run.differences.get(segment, {}).get(metric)
                other = difference.interval if difference is not None else Interval(None, None, None, 0)
                yield {
                    "run": run.name,
                    "scored": segment,
                    "metric": metric,
                    **{key: _exact(getattr(interval, key)) for key in ("value", "low", "high", "cases")},
                    **{f"difference_{key}": _exact(getattr(other, key)) for key in ("value", "low", "high")},
                    "p_value": _exact(difference.p_value) if difference is not None else "",
                    "shared_cases": other.cases or "",
                    "parameters": run.parameters,
                    "trained_minutes": _minutes(run.effort.seconds),
                    "processor_minutes": _minutes(run.effort.cpu_seconds),
                    "device": run.effort.device or "",
                }


def _p_text(p_value: float | None) -> str:
    if p_value is None:
        return ""
    return ", p < 0.001" if p_value < 0.001 else f", p = {p_value:.2g}"


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.4g}"


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _joined(cell: Mapping[str, str]) -> str:
    return f"{cell['value']} ({cell['low']} to {cell['high']})" if cell["low"] else cell["value"]


def _cases(run: ComparedRun) -> int:
    return max((interval.cases for metrics in run.scores.values() for interval in metrics.values()), default=0)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
