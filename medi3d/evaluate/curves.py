"""The curves of a classifier: ROC, calibration (reliability), and decision curve, one class against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from medi3d.evaluate.probabilities import bin_of, scored_classes
from medi3d.types import Array, FloatArray

Curve: TypeAlias = list[list[float]]
"""Points, each a list of numbers."""

CALIBRATION_BINS = 10
DECISION_THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))


def classification_curves(
    targets: Array, probabilities: FloatArray, classes: Sequence[str]
) -> dict[str, dict[str, dict[str, Curve]]]:
    """Return the curves of every class, of two classes those of the last.

    Args:
        targets: ``(N,)`` class indices.
        probabilities: ``(N, K)``.
        classes: K names.

    Returns:
        ``{"classes": {name: {"roc": …, "calibration": …, "decision": …}}}``, see the functions of these names.

    Example:
        >>> curves = classification_curves(np.array([0, 1]), np.array([[0.8, 0.2], [0.3, 0.7]]), ["no", "yes"])
        >>> curves["classes"]["yes"]["roc"]
        [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    found = {}
    for k in scored_classes(len(classes)):
        positive, scores = np.asarray(targets) == k, np.asarray(probabilities)[:, k]
        found[classes[k]] = {
            "roc": roc_curve(positive, scores),
            "calibration": calibration_curve(positive, scores),
            "decision": decision_curve(positive, scores),
        }
    return {"classes": found}


def roc_curve(positive: Array, scores: FloatArray) -> Curve:
    """Return ``[false positive rate, true positive rate]`` at each threshold, from (0, 0) to (1, 1).

    Points on a straight line between their neighbours are left out. Empty where one of the classes has no case.
    """
    ascending = np.unique(scores)
    # Cases at least as high as each distinct score, the highest first.
    caught = [
        len(group) - np.searchsorted(np.sort(group), ascending[::-1], side="left")
        for group in (scores[~positive], scores[positive])
    ]
    false, true = (np.concatenate([[0], counts]) for counts in caught)
    if not (false[-1] and true[-1]):
        return []
    turns = np.diff(false[:-1]) * np.diff(true[1:]) != np.diff(true[:-1]) * np.diff(false[1:])
    kept = np.concatenate([[True], turns, [True]])
    return _points(false[kept] / false[-1], true[kept] / true[-1])


def calibration_curve(positive: Array, scores: FloatArray) -> Curve:
    """Return ``[mean probability, share of positives, cases]`` of each bin of equal width that holds a case."""
    bins = bin_of(scores, CALIBRATION_BINS)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    some = count > 0
    predicted, observed = (
        np.bincount(bins, weights=values, minlength=CALIBRATION_BINS)[some] / count[some]
        for values in (scores, positive)
    )
    return _points(predicted, observed, count[some])


def decision_curve(positive: Array, scores: FloatArray) -> Curve:
    """Return ``[threshold, net benefit, net benefit of treating all]`` (Vickers and Elkin 2006, Med Decis Making 26).

    Treated is who has a probability of at least the threshold t; the net benefit is TP/N - FP/N · t/(1 - t). Treating
    none has a net benefit of 0.
    """
    thresholds = np.array(DECISION_THRESHOLDS)
    odds = thresholds / (1 - thresholds)
    treated = scores >= thresholds[:, None]  # (T, N)
    prevalence = positive.mean()
    benefit = (treated & positive).mean(axis=1) - (treated & ~positive).mean(axis=1) * odds
    return _points(thresholds, benefit, prevalence - (1 - prevalence) * odds)


def _points(*coordinates: Array) -> Curve:
    return [[float(value) for value in point] for point in zip(*coordinates, strict=True)]
