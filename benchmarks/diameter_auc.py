"""AUC of the nodule's diameter alone beside the model's, on the same cases, with intervals clustered by patient.

python benchmarks/diameter_auc.py nodules.csv predictions.csv
"""

from __future__ import annotations

import csv
import sys

import numpy as np
from sklearn.metrics import roc_auc_score


def main(table: str, predictions: str) -> None:
    with open(table, newline="") as stream:  # noqa: PTH123
        rows = {row["case_id"]: row for row in csv.DictReader(stream) if row["label"]}
    with open(predictions, newline="") as stream:  # noqa: PTH123
        model = {row["case_id"]: float(row["malignant"]) for row in csv.DictReader(stream)}
    names = [name for name in rows if name in model]
    truth = np.array([rows[name]["label"] == "malignant" for name in names])
    scores = {
        "model": np.array([model[name] for name in names]),
        "diameter alone": np.array([float(rows[name]["diameter_mm"]) for name in names]),
    }
    groups = np.array([rows[name]["patient_id"] for name in names])
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng = np.random.default_rng(0)
    samples = [np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for _ in range(2000)]
    resampled = {}
    for name, score in scores.items():
        resampled[name] = np.array([roc_auc_score(truth[sample], score[sample]) for sample in samples])
        low, high = np.percentile(resampled[name], [2.5, 97.5])
        print(f"{name:16} AUC {roc_auc_score(truth, score):.3f} ({low:.3f} - {high:.3f}), {len(names)} nodules")
    low, high = np.percentile(resampled["model"] - resampled["diameter alone"], [2.5, 97.5])
    print(f"{'paired difference':16} {low:+.3f} to {high:+.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
