"""One self-contained HTML page about a prepared data set: what it holds, what is odd about it, a picture of each case.

It reads the prepared store and what :mod:`medi3d.preprocess` wrote into it. It shows case ids and no paths.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medi3d.io import atomic
from medi3d.io.prepared import PreparedCase, PreparedStore
from medi3d.report.thumbnails import draw_thumbnail, label_colour

MOST_PICTURES = 500
"""Cases with a picture, worst first; a page with more is slow to open."""

PAGE = "quality.html"

_SEVERITIES = {3: "most likely wrong", 2: "suspicious", 1: "unusual", 0: "nothing found"}
_PATHS = re.compile(
    r"""(?x) (?<![^\s'"(])                                        # where a word begins:
    (?: (?: [/~] | \.{1,2}[/\\] | [A-Za-z]:\\ ) [^\s'":,;)]*     # it starts like a path,
    | [^\s'":,;)]* [/\\] [^\s'":,;)]* [/\\] [^\s'":,;)]*          # or has two slashes,
    | [^\s'":,;)]* \.(?:nii|gz|nrrd|nhdr|mha|mhd|raw|hdr|img|dcm|csv|json) (?![^\s'":,;)]) )  # or ends like a file
    """
)
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 small {{ font-weight: normal; color: #777; }} h2 {{ margin-top: 2rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .15rem .9rem .15rem 0; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top; }} th {{ font-weight: 600; color: #555; }}
.facts {{ display: flex; flex-wrap: wrap; gap: 0 3rem; }} .facts h2 {{ margin: 1rem 0 .3rem; font-size: 1.1rem; }}
.colour {{ display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .4rem; }}
.cases {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: .8rem; }}
.case {{ border: 1px solid #ddd; border-left: .4rem solid #ccc; border-radius: .3rem; padding: .5rem .7rem; }}
.s3 {{ border-left-color: #c62828; }} .s2 {{ border-left-color: #ef8f00; }} .s1 {{ border-left-color: #fbd34d; }}
.case img {{ display: block; width: 100%; max-height: 13rem; object-fit: contain; object-position: left;
background: #000; margin: .3rem 0; }}
.case p {{ margin: .2rem 0; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }}
.case span {{ color: #777; font-size: 13px; }}
</style></head><body><h1>{title} <small>quality of the prepared cases</small></h1>
<div class="facts">{facts}</div>
<h2>Cases, worst first</h2>
<div class="cases">{cases}</div>
{left}</body></html>
"""


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
    quality = opened.quality
    by_id = {case.case_id: case for case in opened.cases()}
    first = [found for found in quality["cases"] if found["case_id"] in by_id]
    named = {found["case_id"] for found in first}
    rest = [{"case_id": case_id, "severity": 0, "findings": []} for case_id in sorted(by_id) if case_id not in named]
    shown = [*first, *rest][:MOST_PICTURES]
    fingerprint, values = opened.fingerprint, opened.task_values
    facts = [
        _fact("Data set", _rows(_describe_set(fingerprint, first))),
        _fact("Intensities of the raw cases, medians over the set", _channel_table(fingerprint)),
        _fact("Labels of the raw cases", _label_table(fingerprint)),
        _fact("About the whole set", "".join(f"<p>{escape(note)}</p>" for note in quality["notes"])),
        _fact("Settings", _rows(_settings(values["preprocess"]))),
        _fact("Cases that could not be prepared", _rows([(name, without_paths(text)) for name, text in problems])),
    ]
    left = f"<p>{len(by_id) - len(shown)} more cases are not shown.</p>" if len(by_id) > len(shown) else ""
    page = _TEMPLATE.format(
        title=escape(str(values["name"])), facts="\n".join(facts), cases=_cases(shown, by_id), left=left
    )
    path = Path(store) / PAGE
    atomic.write_bytes(path, page.encode("utf-8"))
    return path


def without_paths(message: str) -> str:
    """Leave out where on the disk files lie, and how they are called: that may tell who the patient is.

    Example:
        >>> without_paths("/data/Jane Doe/ct.nii.gz: the file is empty")
        'the file is empty'
        >>> without_paths("channel T1: /data/a.nii and b.nii disagree")
        'channel T1: … and … disagree'
    """
    head, separator, tail = message.partition(": ")
    if separator and ("/" in head or "\\" in head or _PATHS.search(head)):
        message = tail
    return _PATHS.sub("…", message)


# --- tables


def _describe_set(fingerprint: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    orientations = fingerprint["native_orientations"].items()
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(orientations, key=lambda item: -item[1]))
    classes = ", ".join(f"{name} ({count})" for name, count in fingerprint["class_counts"].items())
    severities = [f"{sum(case['severity'] == s for case in found)} {_SEVERITIES[s]}" for s in (3, 2, 1)]
    rows = [
        ("cases", f"{fingerprint['cases']}, of {fingerprint['groups']} patients"),
        ("findings", ", ".join(severities)),
        ("native spacing (D, H, W), mm", _triples(fingerprint["native_spacing_mm"], 2)),
        ("native shape (D, H, W)", _triples(fingerprint["native_shape"], 0)),
        ("field of view (D, H, W), mm", _triples(fingerprint["field_of_view_mm"], 0)),
        ("native orientation", listed),
        ("prepared shape (D, H, W)", _triples(fingerprint["prepared_shape"], 0)),
        ("classes", classes),
    ]
    return [row for row in rows if row[1]]


def _triples(spread: Mapping[str, Any], digits: int) -> str:
    """Say the median and, where they differ, the extremes of a triple."""
    texts = {
        key: " × ".join(f"{value:.{digits}f}" for value in spread.get(key, [])) for key in ("median", "min", "max")
    }
    same = texts["min"] == texts["max"]
    return texts["median"] if same else f"{texts['median']} ({texts['min']} to {texts['max']})"


def _channel_table(fingerprint: Mapping[str, Any]) -> str:
    percentiles = fingerprint["intensity_percentiles"]
    rows = [["channel", *(f"{percentile:g} %" for percentile in percentiles), "mean", "standard deviation"]]
    for name, values in fingerprint["channels"].items():
        medians = [*values["percentiles"]["median"], values["mean"]["median"], values["std"]["median"]]
        rows.append([name, *(f"{value:.4g}" for value in medians)])
    return _table(rows)


def _label_table(fingerprint: Mapping[str, Any]) -> str:
    rows = [["label", "cases", "median ml", "smallest", "largest"]]
    for name, values in fingerprint["labels"].items():
        volumes = values["volume_ml"]
        numbers = [f"{volumes[key]:.3g}" if volumes else "–" for key in ("median", "min", "max")]
        rows.append([name, str(values["cases"]), *numbers])
    colours = [
        f'<span class="colour" style="background: rgb{label_colour(value)}"></span>' for value in range(len(rows))
    ]
    return _table(rows, ["", *colours[1:]]) if len(rows) > 1 else ""


def _settings(preprocess: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, json.dumps(value, ensure_ascii=False).strip('"')) for key, value in preprocess.items()]


def _fact(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}</section>" if content else ""


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _table(rows: Sequence[Sequence[str]], marks: Sequence[str] | None = None) -> str:
    """Return a table whose first row is its head; ``marks`` is HTML that stands before a row's first cell."""
    lines: list[str] = []
    for row, mark in zip(rows, marks or [""] * len(rows), strict=True):
        kind = "td" if lines else "th"
        cells = f"</{kind}><{kind}>".join(map(escape, row))
        lines.append(f"<tr><{kind}>{mark}{cells}</{kind}></tr>")
    return f"<table>{''.join(lines)}</table>"


# --- cases


def _cases(shown: Sequence[Mapping[str, Any]], by_id: Mapping[str, PreparedCase]) -> str:
    return "".join(_case(found, by_id[found["case_id"]]) for found in shown)


def _case(found: Mapping[str, Any], case: PreparedCase) -> str:
    picture = base64.b64encode(draw_thumbnail(case)).decode("ascii")
    shape = " × ".join(map(str, case.shape))
    spacing = " × ".join(f"{value:g}" for value in case.record.prepared.spacing_mm)
    messages = [f"<p><b>{escape(f['kind'])}</b>: {escape(f['message'])}</p>" for f in found["findings"]]
    return (
        f'<div class="case s{int(found["severity"])}"><b>{escape(case.case_id)}</b> '
        f"<span>{shape} voxels of {spacing} mm</span>"
        f'<img alt="slices of {escape(case.case_id)}" src="data:image/png;base64,{picture}">{"".join(messages)}</div>\n'
    )
