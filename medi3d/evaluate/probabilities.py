"""How good class probabilities are: ranking (AUC, average precision), decisions, Brier score, calibration error.

Each function returns a :data:`~medi3d.evaluate.statistics.Statistic`, so that a bootstrap of thousands of samples is a
few matrix operations. With two classes the ranking and calibration metrics are those of the last class (the positive
one); with more they are the mean over the classes, each against the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medi3d.errors import InputError
from medi3d.evaluate.statistics import Statistic, divide, mean_of, mean_over
from medi3d.types import Array, FloatArray


def classification_statistics(targets: Array, probabilities: FloatArray) -> dict[str, Statistic]:
    """Return the statistics of a classification.

    Args:
        targets: ``(N,)`` class indices.
        probabilities: ``(N, K)`` of the classes, in [0, 1], each row summing to 1.

    Returns:
        Metric name → statistic.

    Raises:
        InputError: the shapes do not fit, or a target is no class index.

    Examples:
        >>> statistics = classification_statistics(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]))
        >>> statistics["auc"](np.ones((1, 3))).item()
        1.0
    """
    targets, probabilities = np.asarray(targets), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or probabilities.shape[1] < 2:
        raise InputError(f"expected N targets and (N, K) probabilities; got {targets.shape} and {probabilities.shape}")
    if not np.isin(targets, np.arange(probabilities.shape[1])).all():
        raise InputError(f"targets must be class indices 0 to {probabilities.shape[1] - 1}; got {np.unique(targets)}")
    one_hot = np.eye(probabilities.shape[1])[targets]
    decided = np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
    return {
        "auc": _over_classes(auc_of, one_hot, probabilities),
        "average_precision": _over_classes(average_precision_of, one_hot, probabilities),
        "accuracy": mean_of((probabilities.argmax(axis=1) == targets).astype(np.float64)),
        # Of the class that is given the highest probability: of two, at 0.5.
        "sensitivity": _over_classes(_share_of, decided, one_hot),
        "specificity": _over_classes(_share_of, 1 - decided, 1 - one_hot),
        "sensitivity_at_95_specificity": _over_classes(sensitivity_of, one_hot, probabilities),
        # Half the squared distance, so that two classes give the (p - y)² of Brier 1950 and the range is [0, 1].
        "brier": mean_of(brier_of(one_hot, probabilities)),
        "calibration_error": _over_classes(calibration_error_of, one_hot, probabilities),
    }


def brier_of(one_hot: FloatArray, probabilities: FloatArray) -> FloatArray:
    """Return the Brier score of each case, ``(N,)``, of two ``(N, K)``."""
    scores: FloatArray = 0.5 * ((probabilities - one_hot) ** 2).sum(axis=1)
    return scores


def auc_of(positive: FloatArray, scores: FloatArray) -> Statistic:
    """Return the area under the ROC curve as a statistic; ties count half.

    Args:
        positive: ``(N,)`` 1 for a positive case, 0 for a negative one.
        scores: ``(N,)``, higher is more positive.
    """
    weigh = _weigh_by_score(positive, scores)

    def auc(weights: FloatArray) -> FloatArray:
        true, false = weigh(weights)
        below = np.cumsum(false, axis=1) - 0.5 * false
        return divide((true * below).sum(axis=1), true.sum(axis=1) * false.sum(axis=1))

    return auc


def average_precision_of(positive: FloatArray, scores: FloatArray) -> Statistic:
    """Return the average precision as a statistic: the precision at each threshold, weighted by the recall it adds.

    The curve is not interpolated (as in scikit-learn). NaN without a positive case.
    """
    weigh = _weigh_by_score(positive, scores)

    def average_precision(weights: FloatArray) -> FloatArray:
        true, false = (np.flip(array, axis=1) for array in weigh(weights))
        caught = np.cumsum(true, axis=1)
        precision = caught / np.maximum(caught + np.cumsum(false, axis=1), 1e-300)
        return divide((true * precision).sum(axis=1), caught[:, -1])

    return average_precision


def _share_of(decided: FloatArray, those: FloatArray) -> Statistic:
    """Return which share of ``those`` cases, ``(N,)`` of 0 and 1, was decided so."""
    return mean_of(np.where(those > 0, decided, np.nan))


def sensitivity_of(positive: FloatArray, scores: FloatArray, *, specificity: float = 0.95) -> Statistic:
    """Return the highest sensitivity of any threshold whose specificity is at least ``specificity``.

    The thresholds are those that the scores give; the ROC curve is not interpolated.
    """
    weigh = _weigh_by_score(positive, scores)

    def sensitivity(weights: FloatArray) -> FloatArray:
        true, false = weigh(weights)
        total = false.sum(axis=1, keepdims=True)
        # Called positive: every score at least as high as the threshold.
        allowed = np.cumsum(false, axis=1) - false >= (specificity - 1e-12) * total
        caught = np.cumsum(true[:, ::-1], axis=1)[:, ::-1]
        best = np.where(allowed, caught, 0.0).max(axis=1)
        return np.where(total[:, 0] > 0, divide(best, true.sum(axis=1)), np.nan)

    return sensitivity


def calibration_error_of(positive: FloatArray, scores: FloatArray, *, bins: int = 10) -> Statistic:
    """Return the expected calibration error of one class's probability (class-wise: Nixon 2019, arXiv:1904.01685).

    The probabilities fall into ``bins`` bins of equal width; the error is the mean gap between a bin's mean probability
    and its share of positives, weighted by the bin's cases.
    """
    index = bin_of(scores, bins)
    gaps = np.eye(bins)[index] * (np.asarray(scores) - positive)[:, None]  # (N, bins)

    def calibration_error(weights: FloatArray) -> FloatArray:
        return divide(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))

    return calibration_error


def bin_of(scores: FloatArray, bins: int) -> Array:
    """Return which of ``bins`` bins of equal width over [0, 1] each probability falls into."""
    bin_numbers: Array = np.minimum((np.asarray(scores) * bins).astype(int), bins - 1)
    return bin_numbers


def _over_classes(
    statistic_of: Callable[[FloatArray, FloatArray], Statistic], one_hot: FloatArray, probabilities: FloatArray
) -> Statistic:
    """Take the last class of two, or the mean over more, leaving out those for which it is undefined."""
    return mean_over([statistic_of(one_hot[:, k], probabilities[:, k]) for k in scored_classes(one_hot.shape[1])])


def scored_classes(count: int) -> range:
    """Return which of ``count`` classes are scored against the rest: of two, the last one alone."""
    return range(1, 2) if count == 2 else range(count)


def _weigh_by_score(positive: FloatArray, scores: FloatArray) -> Callable[[FloatArray], tuple[FloatArray, FloatArray]]:
    """Return a function from weights ``(S, N)`` to the weights of positives and negatives at each distinct score.

    Both are ``(S, U)``, scores ascending.
    """
    order = np.argsort(scores, kind="stable")
    ascending = np.asarray(scores)[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
    is_positive = np.asarray(positive, dtype=np.float64)[order]

    def weigh(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        ordered = weights[:, order]
        true = np.add.reduceat(ordered * is_positive, starts, axis=1)
        return true, np.add.reduceat(ordered * (1 - is_positive), starts, axis=1)

    return weigh
