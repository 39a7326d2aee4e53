"""An evaluation as a page shows it: headline, tables, charts, what the numbers mean, and the table of cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medi3d.report import charts
from medi3d.report.privacy import without_paths
from medi3d.report.scores import Interval, Scores
from medi3d.report.words import METRICS, describe_metric, format_value

HEADLINE = {"segmentation": "dice", "classification": "auc"}
"""The metric that a page begins with."""

_BETTER = {"higher": "Higher is better.", "lower": "Lower is better.", "zero": "Near 0 is better.", "": ""}
_MOST_CHARTED = 24
"""Labels beyond which a chart with a row for each is left out."""


def describe_evaluation(scores: Scores) -> dict[str, Any]:
    """Return what ``report.html`` shows of an evaluation."""
    segmentation = scores.kind == "segmentation"
    metrics = list(dict.fromkeys(metric for entry in scores.scores.values() for metric in entry))
    main = _main_metrics(scores, metrics)
    more = [metric for metric in metrics if metric not in main]
    single = len(scores.scores) == 1
    return {
        "anchor": "regions" if segmentation else "classes",
        "title": "How well it draws" if segmentation else "How well it tells the classes apart",
        "tiles": _tiles(scores),
        "notes": _notes(scores),
        "table": None if single else metric_table(scores, main),
        "list": metric_list(scores, main) if single else None,
        "more": metric_table(scores, more) if more else None,
        "unit_drawn": "the cases (those of one patient together)",
        "samples": scores.settings.get("bootstrap", "many"),
        "glossary": [
            {"title": describe_metric(name).title, "meaning": _meaning(name, scores), "better": _better(name)}
            for name in main
            if name in METRICS and not single
        ],
        "charts": _segmentation_charts(scores) if segmentation else _classification_charts(scores),
        "problems": [without_paths(problem) for problem in scores.problems],
        "cases": case_table(scores) if scores.rows else None,
    }


def lead_sentence(scores: Scores, *, held_out: bool) -> str:
    """Say in one sentence what came out."""
    metric = HEADLINE[scores.kind]
    which = f"Scored on {scores.cases} cases{' held out from training' if held_out else ''}"
    name, interval = headline(scores)
    if interval.value is None:
        return f"{which}: {describe_metric(metric).title} is not defined on them."
    cell = interval_cell(metric, interval)
    between = f"95 % interval {cell['low']} to {cell['high']}" if cell["low"] else "no interval"
    if scores.kind == "classification":
        right = f"{100 * interval.value:.0f} % of the time (AUC {cell['value']}, {between})"
        if name.startswith("all "):
            return f"{which}: of two cases of different classes, it tells which is which {right}."
        return f"{which}: of a case that is {name} and one that is not, it gives the first the higher score {right}."
    worst, lowest = next(iter(scores.goodness.items()))
    return (
        f"{which}: the regions that it draws overlap the reference with a Dice of {cell['value']} on average "
        f"({between}); the worst case, {worst}, reaches {format_value(metric, lowest)}."
    )


def headline(scores: Scores) -> tuple[str, Interval]:
    """Return what the headline is about, and its value."""
    name = headline_name(scores.scores)
    return name, scores.scores[name].get(HEADLINE[scores.kind], Interval(None, None, None, scores.cases))


def headline_name(scores: Mapping[str, Mapping[str, Interval]]) -> str:
    """Return what a page begins with: the mean over all labels or classes, where there is one."""
    means = [name for name in scores if name.startswith("all ")]
    return means[0] if means else next(iter(scores))


def metric_table(scores: Scores, metrics: Sequence[str]) -> dict[str, Any]:
    """Return a table with a row a label, region or class, and a column a metric."""
    return {
        "corner": "",
        "heads": [{"title": describe_metric(name).title, "note": describe_metric(name).unit} for name in metrics],
        "rows": [
            {"name": segment, "cells": [interval_cell(name, entry.get(name)) for name in metrics]}
            for segment, entry in scores.scores.items()
        ],
    }


def metric_list(scores: Scores, metrics: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of the one thing that is scored, a row each, with what they mean."""
    name, entry = next(iter(scores.scores.items()))
    rows = [
        {
            "title": describe_metric(metric).title,
            "unit": describe_metric(metric).unit,
            "cell": interval_cell(metric, entry.get(metric)),
            "meaning": f"{_meaning(metric, scores)} {_better(metric)}",
        }
        for metric in metrics
    ]
    return {"name": name, "rows": rows}


def interval_cell(metric: str, interval: Interval | None) -> dict[str, str]:
    """Return the texts of a value and of the ends of its interval."""
    if interval is None:
        return {"value": "–", "low": "", "high": ""}
    known = interval.low is not None and interval.high is not None
    low, high = (format_value(metric, end) if known else "" for end in (interval.low, interval.high))
    return {"value": format_value(metric, interval.value), "low": low, "high": high}


def case_table(scores: Scores) -> dict[str, Any]:
    """Return the sortable table: a row a case and label, or a row a case of a classification."""
    columns = _case_columns(scores)
    labels = list(dict.fromkeys(str(row.get("label", "")) for row in scores.rows))
    words = {"case_id": "Case", "label": "Label", "target": "True class", "predicted": "Predicted class"}
    classes = [] if scores.kind == "segmentation" else [name for name in columns if name not in words]
    heads = []
    for name in columns:
        if name in words:
            heads.append({"title": words[name], "unit": "", "number": False})
        elif name in classes:
            heads.append({"title": f"Probability of {name}", "unit": "", "number": True})
        else:
            heads.append({"title": describe_metric(name).title, "unit": describe_metric(name).unit, "number": True})
    rows = [
        {
            "label": row.get("label", ""),
            "wrong": "target" in row and row["target"] != row["predicted"],
            "cells": [_case_cell(name, row[name], name in words) for name in columns],
        }
        for row in _worst_first(scores)
    ]
    number = len({row["case_id"] for row in scores.rows})
    return {"title": f"All {number} cases", "heads": heads, "rows": rows, "labels": labels}


def _case_columns(scores: Scores) -> list[str]:
    """Choose the columns: of a classification all, of a segmentation those that the first table has, and volumes."""
    columns = list(scores.rows[0])
    if scores.kind == "classification":
        return columns
    shown = {"case_id", "label", "prediction_ml", "reference_ml", *_main_metrics(scores, columns)}
    if "lesion_f1" in shown:
        shown |= {"prediction_lesions", "reference_lesions", "matched_lesions"}
    return [name for name in columns if name in shown]


def case_scores(scores: Scores, case_id: str) -> str:
    """Say how a case went, for the line under its picture."""
    rows = [row for row in scores.rows if row["case_id"] == case_id]
    if scores.kind == "segmentation":
        return "Dice " + ", ".join(f"{row['label']} {format_value('dice', _number(row['dice']))}" for row in rows)
    row = rows[0]
    probability = _number(row[str(row["predicted"])])
    sure = "" if probability is None else f" ({100 * probability:.0f} %)"
    return f"truth {row['target']}, predicted {row['predicted']}{sure}"


def _worst_first(scores: Scores) -> list[Mapping[str, str | float | None]]:
    place = {case: index for index, case in enumerate(scores.goodness)}
    return sorted(scores.rows, key=lambda row: place.get(str(row["case_id"]), len(place)))


def _case_cell(name: str, value: str | float | None, is_word: bool) -> dict[str, Any]:
    if is_word:
        return {"text": value, "sort": None, "kind": "predicted" if name == "predicted" else ""}
    if isinstance(value, str):
        return {"text": value, "sort": None, "kind": ""}
    return {"text": format_value(name, value), "sort": "" if value is None else f"{value:.6g}", "kind": "number"}


def _number(value: str | float | None) -> float | None:
    return value if isinstance(value, float) else None


def _tiles(scores: Scores) -> list[dict[str, str]]:
    name, _ = headline(scores)
    main = _main_metrics(scores, list(scores.scores[name]))
    tiles = [{"name": "Cases", "value": str(scores.cases), "unit": "", "note": _case_note(scores)}]
    for metric, interval in scores.scores[name].items():
        words = describe_metric(metric)
        if metric in main and interval.value is not None and len(tiles) < 5:
            cell = interval_cell(metric, interval)
            note = f"{cell['low']} to {cell['high']}" if cell["low"] else "no interval"
            tiles.append({"name": words.title, "value": cell["value"], "unit": words.unit, "note": note})
    return tiles


def _case_note(scores: Scores) -> str:
    if scores.kind == "segmentation":
        return "each scored against its reference"
    counts: dict[str, int] = {}
    for row in scores.rows:
        counts[str(row["target"])] = counts.get(str(row["target"]), 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _notes(scores: Scores) -> list[str]:
    name, _ = headline(scores)
    notes = [f"The boxes hold the values of {name}, each with its 95 % interval."]
    if scores.missing:
        notes.append(f"{len(scores.missing)} cases have a reference but no prediction; they are not in the figures.")
    if scores.cases < 30:
        notes.append(f"{scores.cases} cases are few: the intervals are wide, and rare failures may not be among them.")
    return notes


def _meaning(name: str, scores: Scores) -> str:
    text = describe_metric(name).meaning
    tolerance = scores.settings.get("tolerance_mm")
    if name == "surface_dice" and isinstance(tolerance, int | float):
        text = text.replace("the tolerance of each other", f"{tolerance:g} mm of each other")
    return text


def _main_metrics(scores: Scores, metrics: Sequence[str]) -> list[str]:
    """Choose what stands in the first table: of lesions only where some case has none, or several."""
    counts = {row.get("reference_lesions", 1.0) for row in scores.rows}
    several = counts != {1.0}
    main = [name for name in metrics if describe_metric(name).main and (several or not name.startswith("lesion_"))]
    return main or list(metrics)


def _better(name: str) -> str:
    return _BETTER[describe_metric(name).better]


def _chart(svg: str, title: str, caption: str, *, wide: bool = False) -> dict[str, Any]:
    return {"svg": Markup(svg), "title": title, "caption": caption, "wide": wide}


def _segmentation_charts(scores: Scores) -> list[dict[str, Any]]:
    if len({row["label"] for row in scores.rows}) > _MOST_CHARTED:
        return []
    caption = "A point is a case; the bar is the mean with its 95 % interval."
    return [_chart(charts.draw_case_scores(scores, "dice"), "Dice of each case", caption, wide=True)]


def _classification_charts(scores: Scores) -> list[dict[str, Any]]:
    rows = (
        ("roc", charts.draw_roc, "ROC curve", "What share of the class is found at what price in false alarms."),
        (
            "calibration", charts.draw_calibration, "Calibration",
            "Whether it is so as often as the probability says; the larger the point, the more cases.",
        ),
        (
            "decision", charts.draw_decision, "Decision curve",
            "What acting on its probabilities gains, in true cases found per case, over acting on all or on none.",
        ),
    )  # fmt: skip
    found = []
    for key, draw, title, caption in rows:
        curves = {name: entry[key] for name, entry in scores.curves.items() if entry.get(key)}
        if curves:
            found.append(_chart(draw(curves), title, caption))
    return found
