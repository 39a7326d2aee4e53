"""What a batch prediction did, and the report file that says so (``medi3d predict --report FILE.json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medi3d._version import __version__
from medi3d.infer.postprocess import voxel_ml
from medi3d.infer.predictor import Predictor
from medi3d.io import atomic
from medi3d.volume import Grid, LabelMap


@dataclass
class PredictionSummary:
    """What a batch prediction did.

    Attributes:
        output: the folder of label maps, or the CSV file of probabilities.
        entries: case id → what the report says about it, in the order of the cases.
    """

    output: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def predicted(self) -> list[str]:
        """The cases whose outputs are there, those included that were kept."""
        return [case_id for case_id, entry in self.entries.items() if entry["status"] != "failed"]

    @property
    def kept(self) -> list[str]:
        """The cases whose outputs were there already, made by the same models of the same input and settings."""
        return [case_id for case_id, entry in self.entries.items() if entry["status"] == "kept"]

    @property
    def problems(self) -> dict[str, str]:
        """Case id → what is wrong with it."""
        return {case_id: entry["error"] for case_id, entry in self.entries.items() if entry["status"] == "failed"}

    @property
    def warnings(self) -> dict[str, list[str]]:
        """Case id → what sets it apart from the cases that the runs were trained on."""
        return {case_id: entry["warnings"] for case_id, entry in self.entries.items() if entry.get("warnings")}


def describe_failure(case_id: str, message: str) -> dict[str, Any]:
    """Return the entry of a case that could not be predicted."""
    return {"case_id": case_id, "status": "failed", "error": message, "warnings": []}


def describe_grid(grid: Grid) -> dict[str, Any]:
    """Return shape, spacing and orientation, of the axes ``(D, H, W)``."""
    return {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm), "orientation": grid.orientation}


def measure_volumes(label: LabelMap, names: Mapping[int, str]) -> dict[str, float]:
    """Return the volume of each label in millilitres: name → volume, 0 where it is absent.

    Example:
        >>> label = LabelMap(np.ones((1, 2, 5, 10), np.uint8), np.diag([2.0, 1.0, 1.0, 1.0]))
        >>> measure_volumes(label, {1: "liver", 2: "tumour"})
        {'liver': 0.2, 'tumour': 0.0}
    """
    counts = np.bincount(label.array.ravel(), minlength=max(names, default=0) + 1)
    of_one = voxel_ml(label.grid)
    return {name: round(float(counts[value]) * of_one, 6) for value, name in names.items()}


def write_report(path: Path, predictor: Predictor, summary: PredictionSummary) -> None:
    """Write what was predicted, by which models and with what result, as JSON.

    Args:
        path: the file, written whole or not at all.
        predictor: the runs that predicted.
        summary: what came of it. Messages name files, whose names may name patients: where the task says so
            (``data.hash_case_ids``), they are left out.
    """
    hide = predictor.task.data.hash_case_ids
    entries = [
        entry | {"error": "see the output of `medi3d predict`"} if hide and entry["status"] == "failed" else entry
        for entry in summary.entries.values()
    ]
    content = {
        "medi3d": __version__,
        "task": predictor.task.name,
        "models": [
            {"run": str(one.run), "checkpoint_sha256": one.checkpoint_sha256, "plan_sha256": one.plan_sha256}
            for one in predictor.models
        ],
        "cases": entries,
    }
    with atomic.name_the_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
