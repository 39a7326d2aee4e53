"""One self-contained HTML page about runs: how well they do, the cases to look at, the data, how they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from medi3d.io import PreparedStore, atomic
from medi3d.report.data_facts import channel_table, label_table, set_facts
from medi3d.report.gallery import LoadCase, describe_gallery
from medi3d.report.render import render
from medi3d.report.run_table import describe_runs
from medi3d.report.scoreboard import describe_evaluation, lead_sentence
from medi3d.report.scores import Scores, read_scores
from medi3d.report.training_facts import describe_training
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import find_runs


@dataclass(frozen=True)
class Material:
    """What a page is made of beside the run folders.

    Args:
        evaluations: folders of what ``medi3d evaluate`` wrote: of label maps, of classes, or of both.
        store: the prepared data that the runs were trained on, where it is at hand.
        load_case: gives the images of a case, or ``None`` where they are not at hand.
        held_out: whether no run was trained on the cases that it is scored on here.
        cases: ids of the cases to be shown; empty: the worst, the median and the best.
        viewer: whether the page holds the interactive viewer.
        notes: what a reader of the scores should know.
    """

    evaluations: Sequence[Path] = ()
    store: PreparedStore | None = None
    load_case: LoadCase = lambda case_id: None
    held_out: bool = True
    cases: tuple[str, ...] = ()
    viewer: bool = True
    notes: tuple[str, ...] = ()


def write_report(paths: Sequence[Path], output: Path, material: Material) -> Path:
    """Write the page.

    Args:
        paths: runs of one task, or folders of folds.
        output: the HTML file.
        material: scores, data and images.

    Returns:
        ``output``.

    Raises:
        InputError: a folder holds no run, or an evaluation lacks a file.
        MissingDependencyError: the viewer is asked for, and NiiVue is not installed.
    """
    runs = [RunFolder(path) for path in find_runs(paths)]
    task = runs[0].load_config()
    scores = [read_scores(folder) for folder in material.evaluations]
    evaluations = [describe_evaluation(one) for one in scores]
    if evaluations:
        evaluations[0]["notes"] += material.notes
    gallery, viewer = (None, None)
    if scores:
        gallery, viewer = describe_gallery(
            scores[0], task, material.load_case, wanted=material.cases, with_viewer=material.viewer
        )
    values = {
        "title": _title(paths, task.name),
        "kind": task.kind,
        "description": task.description,
        "lead": _lead(scores, held_out=material.held_out),
        "contents": _contents(evaluations, gallery),
        "evaluations": evaluations,
        "gallery": gallery,
        "viewer": viewer,
        "data": _describe_data(material.store),
        "training": describe_training(runs, _run_names(runs)),
        "runs": describe_runs(runs, _run_names(runs), scores if material.held_out else ()),
        "date": datetime.now(timezone.utc).strftime("%-d %B %Y"),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(output, render("report.html", **values).encode("utf-8"))
    return output


def _title(paths: Sequence[Path], task: str) -> str:
    return f"{task}: {', '.join(path.resolve().name for path in paths)}"


def _run_names(runs: Sequence[RunFolder]) -> list[str]:
    """Call runs by their folders' names, and by those of the folders above too where two are the same."""
    names = [run.path.resolve().name for run in runs]
    if len(set(names)) == len(names):
        return names
    return [f"{run.path.resolve().parent.name}/{name}" for run, name in zip(runs, names, strict=True)]


def _lead(scores: Sequence[Scores], *, held_out: bool) -> str:
    if not scores:
        return "These runs have not been scored yet; the page tells how they were trained."
    return " ".join(lead_sentence(one, held_out=held_out) for one in scores)


def _contents(evaluations: Sequence[Mapping[str, Any]], gallery: object) -> list[tuple[str, str]]:
    rows = [(part["anchor"], part["title"]) for part in evaluations]
    rows += [("pictures", "Cases to look at")] if gallery else []
    rows += [(f"{part['anchor']}-cases", part["cases"]["title"]) for part in evaluations if part["cases"]]
    return [*rows, ("data", "The data"), ("training", "How it was trained")]


def _describe_data(store: PreparedStore | None) -> dict[str, Any] | None:
    if store is None:
        return None
    fingerprint = store.fingerprint
    tables = [
        {"title": "Labels", **label_table(fingerprint)},
        {"title": "Intensities, medians over the cases", **channel_table(fingerprint)},
    ]
    source = store.task_values["data"].get("source", "")
    lead = "What the network was trained on and scored with, as it came from the scanner and as it was prepared."
    return {
        "lead": f"{lead} Source: {source}." if source else lead,
        "facts": set_facts(fingerprint),
        "tables": [table for table in tables if table["rows"]],
    }
