"""Whether two classifiers differ in AUC on the same cases (DeLong et al. 1988, Biometrics 44).

Each case has a placement: the share of the other class's cases that it is on the right side of. The variance of a
difference of AUCs is that of the placements' differences. Cases of one patient are summed first (Obuchowski 1997,
Biometrics 53); with one case a patient that is DeLong's estimate. Placements come from midranks (Sun and Xu 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata

from medi3d.types import Array, FloatArray


@dataclass(frozen=True)
class AucTest:
    """A difference of two AUCs.

    Args:
        difference: the first AUC minus the second.
        standard_error: of the difference; NaN with fewer than two patients in either class.
        p_value: two-sided, of no difference; NaN where the standard error is, or is 0 beside a difference.
    """

    difference: float
    standard_error: float
    p_value: float


def compare_auc(
    positive: Array, first: FloatArray, second: FloatArray, *, groups: Sequence[str] | None = None
) -> AucTest:
    """Compare the AUC of two scores of the same cases.

    Args:
        positive: ``(N,)``, true for a positive case; both classes occur.
        first: ``(N,)`` scores, higher is more positive.
        second: other scores of the same cases.
        groups: patient of each case; ``None``: one each.

    Example:
        >>> scores = np.array([0.1, 0.4, 0.35, 0.8])
        >>> compare_auc(np.array([False, False, True, True]), scores, scores).p_value
        1.0
    """
    positive = np.asarray(positive, dtype=bool)
    placements = _placements(positive, np.asarray(first)) - _placements(positive, np.asarray(second))
    difference = float(placements[positive].mean())
    patients = np.arange(len(positive)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    variance = _clustered_variance(positive, placements - difference, patients)
    error = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
    if error > 0:
        return AucTest(difference, error, float(2 * ndtr(-abs(difference) / error)))
    return AucTest(difference, error, 1.0 if error == 0 and difference == 0 else math.nan)


def _placements(positive: Array, scores: FloatArray) -> FloatArray:
    """Return the share of the other class that each case is on the right side of, ties counting half, ``(N,)``."""
    ranks = rankdata(scores)
    placements: FloatArray = np.empty(len(scores))
    for own, count, sign in ((positive, np.count_nonzero(~positive), 1), (~positive, np.count_nonzero(positive), -1)):
        below = (ranks[own] - rankdata(scores[own])) / count
        placements[own] = below if sign == 1 else 1 - below
    return placements


def _clustered_variance(positive: Array, deviations: FloatArray, patients: Array) -> float:
    """Return the variance of the mean placement (Obuchowski 1997)."""
    count = int(patients.max()) + 1
    sums, sizes, scales = [], [], []
    for own in (positive, ~positive):
        members = np.bincount(patients[own], minlength=count)
        with_any = np.count_nonzero(members)
        if with_any < 2:
            return math.nan
        sums.append(np.bincount(patients[own], weights=deviations[own], minlength=count))
        sizes.append(np.count_nonzero(own))
        scales.append(with_any / (with_any - 1))
    within = sum(scale * (s @ s) / size**2 for s, size, scale in zip(sums, sizes, scales, strict=True))
    return float(within + 2 * count / (count - 1) * (sums[0] @ sums[1]) / (sizes[0] * sizes[1]))
