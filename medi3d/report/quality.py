"""One self-contained HTML page about a prepared data set: what it holds, what is odd about it, a picture of each case.

It reads the prepared store and what :mod:`medi3d.preprocess` wrote into it. It shows case ids and no paths.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medi3d.io import atomic
from medi3d.io.prepared import PreparedCase, PreparedStore
from medi3d.report.data_facts import channel_table, label_table, set_facts
from medi3d.report.privacy import without_paths
from medi3d.report.render import render
from medi3d.report.thumbnails import draw_thumbnail, label_colour

MOST_PICTURES = 500
"""Cases with a picture, worst first; a page with more is slow to open."""

PAGE = "quality.html"

_SEVERITIES = {3: "most likely wrong", 2: "suspicious", 1: "unusual"}


def write_quality(store: Path, *, problems: Sequence[tuple[str, str]]) -> Path:
    """Write ``quality.html`` into a finished prepared store.

    Args:
        store: the store's folder; its ``quality.json`` holds the findings of :mod:`medi3d.preprocess.quality.findings`.
        problems: (case id, message) of the cases that could not be prepared; paths are left out of the messages.

    Returns:
        The page's path.

    Raises:
        InputError: the store is not finished, or its files are damaged.
    """
    opened = PreparedStore(store)
    quality, fingerprint, values = opened.quality, opened.fingerprint, opened.task_values
    by_id = {case.case_id: case for case in opened.cases()}
    first = [found for found in quality["cases"] if found["case_id"] in by_id]
    named = {found["case_id"] for found in first}
    rest = [{"case_id": case_id, "severity": 0, "findings": []} for case_id in sorted(by_id) if case_id not in named]
    shown = [*first, *rest][:MOST_PICTURES]
    page = render(
        "quality.html",
        title=str(values["name"]),
        facts=[*set_facts(fingerprint), ("findings", _count_findings(first))],
        channels=channel_table(fingerprint),
        labels=label_table(fingerprint),
        legend=_legend(fingerprint),
        notes=quality["notes"],
        settings=[
            (key, json.dumps(value, ensure_ascii=False).strip('"')) for key, value in values["preprocess"].items()
        ],
        problems=[(name, without_paths(text)) for name, text in problems],
        cases=[_describe_case(found, by_id[found["case_id"]]) for found in shown],
        left=len(by_id) - len(shown),
    )
    path = Path(store) / PAGE
    atomic.write_bytes(path, page.encode("utf-8"))
    return path


def _count_findings(found: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{sum(case['severity'] == severity for case in found)} {word}" for severity, word in _SEVERITIES.items()
    )


def _legend(fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"name": name, "colour": f"rgb{label_colour(value)}"}
        for value, name in enumerate(fingerprint["labels"], start=1)
    ]


def _describe_case(found: Mapping[str, Any], case: PreparedCase) -> dict[str, Any]:
    return {
        "id": case.case_id,
        "severity": int(found["severity"]),
        "findings": found["findings"],
        "shape": " × ".join(map(str, case.shape)),
        "spacing": " × ".join(f"{value:g}" for value in case.record.prepared.spacing_mm),
        "picture": base64.b64encode(draw_thumbnail(case)).decode("ascii"),
    }
