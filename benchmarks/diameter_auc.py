"""AUC of the nodule's diameter alone beside the model's, on the same cases, patients drawn together.

python benchmarks/diameter_auc.py nodules.csv predictions.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from medi3d.evaluate import bootstrap_difference, bootstrap_interval
from medi3d.evaluate.probabilities import auc_of


def read_rows(path: str) -> dict[str, dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}


def main(table: str, predictions: str) -> None:
    rows, model = read_rows(table), read_rows(predictions)
    names = [name for name, row in rows.items() if row["label"] and name in model]
    truth = np.array([rows[name]["label"] == "malignant" for name in names], float)
    patients = [rows[name]["patient_id"] for name in names]

    by_model, by_diameter = (
        auc_of(truth, np.array(score, float))
        for score in ([model[name]["malignant"] for name in names], [rows[name]["diameter_mm"] for name in names])
    )
    results = {
        "model": bootstrap_interval(by_model, len(names), groups=patients),
        "diameter alone": bootstrap_interval(by_diameter, len(names), groups=patients),
        "difference, paired": bootstrap_difference(by_model, by_diameter, len(names), groups=patients),
    }
    for name, interval in results.items():
        print(
            f"{name:20} AUC {interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f}), {len(names)} nodules"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
