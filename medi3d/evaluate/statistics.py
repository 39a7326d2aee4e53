"""Bootstrap intervals over cases.

A bootstrap sample is a row of weights: how often each case was drawn. A statistic is a function from a ``(S, N)``
array of weights to S values, so that one matrix product takes the place of S loops, and a paired difference is the
difference of two statistics under the same weights. Cases of one group (patient) are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from medi3d.errors import InputError
from medi3d.types import FloatArray

Statistic: TypeAlias = Callable[[FloatArray], FloatArray]
"""Case weights ``(S, N)`` → values ``(S,)``; NaN where the statistic is undefined under a row of weights."""

_CHUNK = 2**22
"""Weights held in memory at once."""


@dataclass(frozen=True)
class Interval:
    """A value over all cases with its bootstrap interval.

    Args:
        value: the statistic over all cases.
        low: lower end of the interval.
        high: upper end.
        cases: how many cases the value rests on.
    """

    value: float
    low: float
    high: float
    cases: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(
    statistic: Statistic,
    cases: int,
    *,
    groups: Sequence[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return a statistic with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        statistic: see :data:`Statistic`.
        cases: number of cases N.
        groups: for each case the group it is drawn with; ``None`` draws single cases.
        samples: number of bootstrap samples.
        seed: of the draws.
        level: share of the samples inside the interval.

    Returns:
        The interval; samples under which the statistic is undefined (one class only) are left out of it.

    Raises:
        InputError: there are no cases, or ``groups`` is not one entry a case.

    Examples:
        >>> bootstrap_interval(mean_of([0.8, 0.9, 1.0]), 3).value
        0.9
    """
    return bootstrap_intervals([statistic], cases, groups=groups, samples=samples, seed=seed, level=level)[0]


def bootstrap_intervals(
    statistics: Sequence[Statistic],
    cases: int,
    *,
    groups: Sequence[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """Return several statistics, each with its :func:`bootstrap_interval`; they share the draws.

    Raises:
        InputError: as there.
    """
    if cases < 1 or (groups is not None and len(groups) != cases):
        given = "none" if groups is None else len(groups)
        raise InputError(
            f"a bootstrap needs at least one case and one group for each; got {cases} cases, groups: {given}"
        )
    values = [float(statistic(np.ones((1, cases)))[0]) for statistic in statistics]
    blocks = [
        [statistic(weights) for statistic in statistics] for weights in _draw_weights(cases, groups, samples, seed)
    ]
    draws = [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
    return [Interval(value, *_percentiles(drawn, level), cases) for value, drawn in zip(values, draws, strict=True)]


def _percentiles(draws: FloatArray, level: float) -> tuple[float, float]:
    draws = draws[np.isfinite(draws)]
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail]) if len(draws) else (np.nan, np.nan)
    return float(low), float(high)


def bootstrap_difference(
    first: Statistic,
    second: Statistic,
    cases: int,
    *,
    groups: Sequence[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return ``first - second`` with its interval, both taken on the same cases of every draw (paired).

    Args:
        first: a statistic of the cases.
        second: another one of the same cases.
        cases: number of cases N.
        groups: as in :func:`bootstrap_interval`.
        samples: number of bootstrap samples.
        seed: of the draws.

    Examples:
        >>> bootstrap_difference(mean_of([0.5, 1.0]), mean_of([0.25, 0.75]), 2).low
        0.25
    """
    return bootstrap_interval(
        lambda weights: first(weights) - second(weights), cases, groups=groups, samples=samples, seed=seed
    )


def mean_of(values: Sequence[float] | FloatArray, *, counts: Sequence[float] | FloatArray | None = None) -> Statistic:
    """Return the statistic "mean of ``values``", ``(N,)``; NaN values are left out.

    Args:
        values: one a case.
        counts: how many things of a case its value is the mean of, so that every thing counts alike; ``None``: one.

    Example:
        >>> mean_of([0.5, 1.0], counts=[2, 6])(np.ones((1, 2))).item()
        0.875
    """
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array) * (1.0 if counts is None else np.asarray(counts, dtype=np.float64))
    filled = np.where(np.isfinite(array), array, 0.0) * known

    def weighted_mean(weights: FloatArray) -> FloatArray:
        return divide(weights @ filled, weights @ known)

    return weighted_mean


def mean_over(statistics: Sequence[Statistic]) -> Statistic:
    """Return the mean of several statistics, of those that are defined under a row of weights."""

    def mean(weights: FloatArray) -> FloatArray:
        values = np.stack([statistic(weights) for statistic in statistics])
        known = np.isfinite(values)
        return divide(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))

    return mean


def divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide; NaN, without a warning, where the denominator is zero."""
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _draw_weights(cases: int, groups: Sequence[str] | None, samples: int, seed: int) -> Iterator[FloatArray]:
    """Yield ``(S, N)`` blocks of ``samples`` rows in all: how often each case is drawn, whole groups at a time."""
    rng = np.random.default_rng(seed)
    member_of = np.arange(cases) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(member_of.max()) + 1
    rows = max(1, _CHUNK // cases)
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield weights[:, member_of].astype(np.float64)
