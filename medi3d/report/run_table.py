"""The runs of a page side by side: what each was trained on, how its held-out cases went, how long it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medi3d.report.data_facts import make_row, make_table
from medi3d.report.scores import Scores
from medi3d.report.training_facts import measure_effort
from medi3d.report.words import format_value
from medi3d.runs.folder import RunFolder

_GOODNESS = {"segmentation": "mean Dice", "classification": "mean probability of the true class"}


def describe_runs(runs: Sequence[RunFolder], names: Sequence[str], scores: Sequence[Scores]) -> dict[str, Any] | None:
    """Return a table with a row a run, as ``parts.matrix`` shows it, and what a reader should know of it.

    Args:
        runs: of one task.
        names: how the page calls them.
        scores: of their held-out cases; empty where others were scored, or none.

    Returns:
        ``None`` for a single run.
    """
    if len(runs) < 2:
        return None
    held_out = [frozenset(run.load_split().validation) for run in runs]
    goodness = [one.goodness for one in scores]
    rows = []
    for run, name, cases in zip(runs, names, held_out, strict=True):
        found = [text for one in goodness for text in _score_texts(one, cases)]
        time, _, device = (text or "–" for text in measure_effort([run]).texts)
        rows.append(make_row(name, [str(len(run.load_split().train)), str(len(cases)), *found, time, device]))
    heads = [head for one in scores for head in (_GOODNESS[one.kind], "worst case")]
    table = make_table("run", ["trained on", "held out", *heads, "time", "device"], rows)
    shared = sum(map(len, held_out)) > len(frozenset().union(*held_out))
    note = "A case that several runs held out is predicted by the mean of these runs." if shared and scores else ""
    return table | {"note": note}


def _score_texts(goodness: Mapping[str, float], cases: frozenset[str]) -> tuple[str, str]:
    """Write the mean over a run's held-out cases, and the worst of them; ``goodness`` has the worst case first."""
    own = [(case, value) for case, value in goodness.items() if case in cases]
    if not own:
        return "–", "–"
    mean = sum(value for _, value in own) / len(own)
    case, worst = own[0]
    return format_value("dice", mean), f"{format_value('dice', worst)} ({case})"
