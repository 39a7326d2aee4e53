"""Paired difference of two evaluations of the same cases: mean Dice of the first minus the second, with its interval.

python benchmarks/paired_dice.py A/evaluation/cases.csv B/evaluation/cases.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from medi3d.evaluate import bootstrap_difference, mean_of


def mean_dice_of_cases(path: str) -> dict[str, float]:
    with Path(path).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted({row["case_id"] for row in rows})
    return {name: np.mean([float(row["dice"]) for row in rows if row["case_id"] == name]) for name in names}


def main(first: str, second: str) -> None:
    a, b = mean_dice_of_cases(first), mean_dice_of_cases(second)
    names = sorted(a.keys() & b.keys())
    difference = bootstrap_difference(mean_of([a[n] for n in names]), mean_of([b[n] for n in names]), len(names))
    print(f"difference {difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}), {len(names)} cases")


if __name__ == "__main__":
    main(*sys.argv[1:])
