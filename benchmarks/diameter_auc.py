"""AUC of the nodule's diameter alone, and of its mask's shape, beside the model's; patients are drawn together.

    python benchmarks/diameter_auc.py nodules.csv RUNS/out_of_fold/predictions.csv

The shape is what needs no intensity: volume, surface, roundness, elongation, flatness, largest extent and the axes of
the ellipsoid of equal moments, in a logistic regression trained on the folds of the model's own runs (RUNS/fold0 …).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medi3d.evaluate import bootstrap_difference, bootstrap_interval
from medi3d.evaluate.probabilities import auc_of
from medi3d.runs.folder import RunFolder
from medi3d.types import Array


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}


def describe_shape(mask: Path) -> list[float]:
    """Return descriptors of a mask's only label; sizes as logarithms."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.ComputeFeretDiameterOn()
    shape.Execute(sitk.ReadImage(str(mask), sitk.sitkUInt8))
    sizes = [shape.GetPhysicalSize(1), shape.GetPerimeter(1), shape.GetFeretDiameter(1)]
    sizes += sorted(shape.GetEquivalentEllipsoidDiameter(1))
    forms = [shape.GetRoundness(1), shape.GetElongation(1), shape.GetFlatness(1)]
    return [*np.log(np.maximum(sizes, 0.1)), *(form if np.isfinite(form) else 0.0 for form in forms)]


def score_shape(names: list[str], features: Array, truth: Array, folds: list[Path]) -> Array:
    """Return each case's probability by a regression on the cases of other folds."""
    scores = np.full(len(names), np.nan)
    for fold in folds:
        split = RunFolder(fold).load_split()
        train, held_out = np.isin(names, split.train), np.isin(names, split.validation)
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features[train], truth[train])
        scores[held_out] = model.predict_proba(features[held_out])[:, 1]
    if lost := int(np.isnan(scores).sum()):
        sys.exit(f"{lost} nodules were held out by none of {len(folds)} runs, fold* beside the predictions' folder")
    return scores


def main(table: Path, predictions: Path) -> None:
    rows, model = read_rows(table), read_rows(predictions)
    names = [name for name, row in rows.items() if row["label"] and name in model]
    truth = np.array([rows[name]["label"] == "malignant" for name in names], float)
    patients = [rows[name]["patient_id"] for name in names]
    features = np.array([describe_shape(table.parent / rows[name]["mask"]) for name in names])
    by_model = auc_of(truth, np.array([model[name]["malignant"] for name in names], float))
    others = {
        "diameter alone": np.array([rows[name]["diameter_mm"] for name in names], float),
        "shape of the mask": score_shape(names, features, truth, sorted(predictions.parents[1].glob("fold*"))),
    }
    results = {"model": bootstrap_interval(by_model, len(names), groups=patients)}
    for name, scores in others.items():
        other = auc_of(truth, scores)
        results[name] = bootstrap_interval(other, len(names), groups=patients)
        results[f"model - {name}"] = bootstrap_difference(by_model, other, len(names), groups=patients)
    for name, interval in results.items():
        print(
            f"{name:26} AUC {interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f}), {len(names)} nodules"
        )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
