"""Runs and evaluations as other rooms write them, made by hand so that no network is trained or asked."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medi3d.config import TaskConfig
from medi3d.data.splits import Split
from medi3d.io.prepared import PreparedStore
from medi3d.report import Material, write_report
from medi3d.report.montage import CaseImages
from medi3d.runs.folder import RunFolder
from medi3d.volume import LabelMap, Volume

HOSTILE = '"><script>alert(1)</script>'
"""What a page must show as it is, and never run."""


def write_evaluation(folder: Path, rows: list[dict[str, Any]], scores: dict[str, Any], **more: Any) -> Path:
    """Write what ``medi3d evaluate`` writes; ``scores`` holds (value, low, high, cases)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    summary: dict[str, Any] = {
        "kind": "segmentation",
        "scores": {name: {metric: _interval(entry) for metric, entry in m.items()} for name, m in scores.items()},
        "cases": len({row["case_id"] for row in rows}),
        "missing": [], "unmatched": [], "problems": [],
        "settings": {"tolerance_mm": 1.5, "bootstrap": 200, "seed": 0, "level": 0.95},
    } | more  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def _interval(entry: Any) -> dict[str, Any]:
    return dict(zip(("value", "low", "high", "cases"), entry, strict=True))


def write_run(folder: Path, task: TaskConfig, prepared: Path) -> RunFolder:
    """Write a run that has trained, without its weights."""
    run = RunFolder(folder)
    ids = [case.case_id for case in PreparedStore(prepared).cases()]
    run.create(task, Split(tuple(ids[3:]), tuple(ids[:3])), prepared=prepared, fold=0)
    for step in (2, 4):
        run.append_metrics({"step": step, "seconds": 30.0 * step, "loss": 1 / step, "score": 0.2 * step})
    return run


def make_segmentation_run(tiny: Path, task: TaskConfig, folder: Path) -> RunFolder:
    task = replace(task, description=f"Balls {HOSTILE}", model=replace(task.model, weights="/home/jane_doe/weights.pt"))
    return write_run(folder / "runs" / "tiny" / "first", task, tiny / "prepared" / task.name)


def make_label_evaluation(folder: Path) -> Path:
    """Dice of three cases and two labels; the first case is the worst, and has no surface to measure."""
    dice = {"case_0": (0.25, 0.35), "case_1": (0.9, 0.7), "case_2": (0.5, 0.6)}
    rows = [
        {
            "case_id": case, "label": label, "dice": value, "hd95_mm": "" if case == "case_0" else 2 + value,
            "prediction_ml": 10 * value, "reference_ml": 7.5, "reference_lesions": 1,
        }
        for case, values in dice.items()
        for label, value in zip(("bright", "dark"), values, strict=True)
    ]  # fmt: skip
    scores = {
        "bright": {"dice": (0.55, 0.25, 0.9, 3), "hd95_mm": (2.7, None, None, 2)},
        "dark": {"dice": (0.55, 0.35, 0.7, 3), "hd95_mm": (2.65, 2.6, 2.7, 2)},
        "all labels": {"dice": (0.55, 0.3, 0.8, 3), "hd95_mm": (2.675, 2.65, 2.7, 2)},
    }
    problem = f"case_9: /data/jane_doe/case_9.nii.gz is damaged {HOSTILE}"
    return write_evaluation(folder / "labels", rows, scores, problems=[problem])


@pytest.fixture
def segmentation_run(tiny: Path, segmentation_task: TaskConfig, tmp_path: Path) -> RunFolder:
    return make_segmentation_run(tiny, segmentation_task, tmp_path)


@pytest.fixture
def label_evaluation(tmp_path: Path) -> Path:
    return make_label_evaluation(tmp_path)


@pytest.fixture(scope="module")
def report_file(tiny: Path, segmentation_task: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything in it; not to be written into."""
    pytest.importorskip("ipyniivue", reason="the viewer's NiiVue: pip install 'medi3d[report]'")
    folder = tmp_path_factory.mktemp("report")
    store = tiny / "prepared" / "tiny_segmentation"
    run = make_segmentation_run(tiny, segmentation_task, folder)
    material = Material(
        evaluations=(make_label_evaluation(folder),),
        store=PreparedStore(store),
        load_case=lambda name: shown_case(store, name),
    )
    return write_report([run.path], folder / "report.html", material)


@pytest.fixture
def class_evaluation(tmp_path: Path) -> Path:
    rows = [
        {"case_id": "case_a", "target": "dark", "predicted": "bright", "bright": 0.8, "dark": 0.2},
        {"case_id": "case_b", "target": "dark", "predicted": "dark", "bright": 0.1, "dark": 0.9},
        {"case_id": "case_c", "target": "bright", "predicted": "bright", "bright": 0.6, "dark": 0.4},
    ]
    scores = {"dark": {"auc": (0.5, 0.1, 0.9, 3), "brier": (0.27, 0.1, 0.5, 3)}}
    folder = write_evaluation(tmp_path / "classes", rows, scores, kind="classification")
    curves = {
        "roc": [[0, 0], [0, 0.5], [1, 0.5], [1, 1]],
        "calibration": [[0.2, 1.0, 1], [0.4, 0.0, 1], [0.9, 1.0, 1]],
        "decision": [[0.1, 0.6, 0.63], [0.5, 0.3, 0.3], [0.9, 0.1, -2.0]],
    }
    (folder / "curves.json").write_text(json.dumps({"classes": {"dark": curves}}), encoding="utf-8")
    return folder


def shown_case(store: Path, case_id: str) -> CaseImages | None:
    """Return a prepared case whose prediction is its truth, moved by a voxel."""
    found = {case.case_id: case for case in PreparedStore(store).cases()}
    if case_id not in found:
        return None
    case = found[case_id]
    affine, stored = case.record.prepared.affine, case.label()
    assert stored is not None
    truth = np.asarray(stored[:])
    return CaseImages(
        case_id,
        Volume(np.asarray(case.image()[:]), affine),
        prediction=LabelMap(np.roll(truth, 1, axis=2), affine),
        reference=LabelMap(truth, affine),
    )
