"""Which numbers of a set stand out: robustly, and without crying wolf where all are nearly the same.

The spread is the largest of three: of the median absolute deviation, of the middle 80 % (so that a group of a tenth of
the cases is no outlier), and of a floor that says which differences are of no interest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEWEST_CASES = 8
"""Smaller sets have no outliers: there is too little to compare with."""

LIMIT = 5.0
"""Robust standard deviations beyond which a number stands out."""

_MAD_TO_STD = 1.4826
_MIDDLE_TO_STD = 2.563
"""Width of the middle 80 % of a normal distribution in standard deviations."""


@dataclass(frozen=True)
class Finding:
    """Something odd about one case.

    Args:
        case_id: the case.
        kind: what it is about, in a word or two.
        severity: 3 is most likely an error, 2 suspicious, 1 unusual.
        message: what was found and what was expected.
    """

    case_id: str
    kind: str
    severity: int
    message: str


def robust_spread(values: npt.ArrayLike, floor: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return median and spread over the first axis, ``(n, ...)``, NaN left out.

    Example:
        >>> median, spread = robust_spread([1.0, 1.0, 1.0, 9.0], floor=0.1)
        >>> float(median)
        1.0
    """
    table = np.asarray(values, dtype=np.float64)
    median = np.nanmedian(table, axis=0)
    deviation = _MAD_TO_STD * np.nanmedian(np.abs(table - median), axis=0)
    low, high = np.nanpercentile(table, (10.0, 90.0), axis=0)
    return median, np.maximum(np.maximum(deviation, (high - low) / _MIDDLE_TO_STD), floor)


def standing_out(values: npt.ArrayLike, floor: float) -> npt.NDArray[np.bool_]:
    """Tell which entries of ``(n, ...)`` lie more than five spreads from the median of their column; NaN never does."""
    table = np.asarray(values, dtype=np.float64)
    if np.isfinite(table).any(axis=tuple(range(1, table.ndim))).sum() < FEWEST_CASES:
        return np.zeros(table.shape, dtype=bool)
    median, spread = robust_spread(table, floor)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(table - median) > LIMIT * spread)


def is_rare(flags: npt.ArrayLike, share: float = 0.1) -> bool:
    """Tell whether some of a large enough set, but at most ``share`` of it, are flagged."""
    flagged = np.asarray(flags, dtype=bool)
    return flagged.size >= FEWEST_CASES and 0 < int(np.count_nonzero(flagged)) <= max(share * flagged.size, 1)
