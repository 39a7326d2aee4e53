"""One self-contained HTML page about a run: what was trained, on what, how it went, and how well it does."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from medi3d.errors import InputError
from medi3d.report.figures import draw_curves

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }}
td {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }}
img {{ max-width: 100%; }} pre {{ background: #f6f6f6; padding: 1rem; overflow: auto; font-size: 13px; }}
</style></head><body><h1>{title}</h1>
{sections}
</body></html>
"""


def write_report(run: Path, output: Path, *, evaluation: Path | None = None) -> Path:
    """Write the page.

    Args:
        run: run folder.
        output: the HTML file.
        evaluation: folder with the ``summary.json`` of an evaluation, whose scores are shown.

    Returns:
        ``output``.

    Raises:
        InputError: the run folder or the evaluation lacks a file that the page needs.
    """
    environment = json.loads(_read(run / "environment.json"))
    split = json.loads(_read(run / "split.json"))
    facts = {
        "fold": split["fold"],
        "training cases": len(split["train"]),
        "validation cases": len(split["validation"]),
        "seed": environment["seed"],
        "data fingerprint": environment["data_fingerprint"],
        "git commit": environment["git_commit"] or "not a checkout",
        **environment["versions"],
    }
    sections = ["<h2>Learning curves</h2>", _draw_inline(run / "metrics.csv")]
    if evaluation is not None:
        sections += ["<h2>Metrics</h2>", _metrics_table(json.loads(_read(evaluation / "summary.json")))]
    sections += ["<h2>Origin</h2>", _table([(name, str(value)) for name, value in facts.items()])]
    sections += ["<h2>Configuration</h2>", f"<pre>{escape(_read(run / 'config.yaml'))}</pre>"]
    title = escape(f"{run.parent.name}: {run.name}")
    output.write_text(_PAGE.format(title=title, sections="\n".join(sections)), encoding="utf-8")
    return output


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        raise InputError(f"{path}: missing; give a run folder and what `medi3d evaluate` wrote") from None


def _draw_inline(metrics: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        picture = draw_curves(metrics, Path(folder) / "curves.png").read_bytes()
    return f'<img alt="learning curves" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def _metrics_table(summary: dict[str, Any]) -> str:
    rows = [("", "metric", "value", "95 % interval", "cases")]
    for name, metrics in summary["scores"].items():
        for metric, interval in metrics.items():
            value, low, high = (
                "–" if interval[key] is None else f"{interval[key]:.3f}" for key in ("value", "low", "high")
            )
            rows.append((name, metric.replace("_", " "), value, f"{low} – {high}", str(interval["cases"])))
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"
