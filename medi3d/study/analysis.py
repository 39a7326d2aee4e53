"""What the cells of a comparison say: each arm against the first one, number of training cases by number of cases.

Two things vary: which cases were drawn for training (and the network's own chance), which is the seed, and which cases
an arm is scored on. A score is the mean over seeds. Its interval is a two-stage bootstrap (Davison and Hinkley 1997,
section 3.8): seeds are drawn, and within each seed whole patients, the same ones for both arms of a difference. The
p-value is that of the paired t-test over seeds, whose differences are what repeats; those of one table are adjusted
for their number after Holm 1979 (Scandinavian Journal of Statistics 6).

All seeds draw from one data set. Intervals and p-values are about that data set's patients, and nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from medi3d.errors import InputError
from medi3d.evaluate import Interval, classification_statistics, mean_of
from medi3d.evaluate.statistics import Statistic
from medi3d.io import atomic
from medi3d.study.run import CellResult
from medi3d.types import FloatArray

_SAMPLES = 2000

Curve = tuple[tuple[int, float], ...]
"""(step, score) of each validation."""


@dataclass(frozen=True)
class Contrast:
    """One arm at one number of training cases.

    Args:
        init: the arm.
        cases: number of training cases; ``None`` is all.
        score: mean over seeds, with its interval; ``cases`` of an interval counts seeds.
        difference: score minus that of the first arm over the seeds that both have; ``None`` for the first arm.
        p_value: of that difference, paired t-test over seeds; NaN with one seed.
        p_adjusted: the same after Holm, over all contrasts of the table.
    """

    init: str
    cases: int | None
    score: Interval
    difference: Interval | None = None
    p_value: float = float("nan")
    p_adjusted: float = float("nan")


def contrast_arms(results: Sequence[CellResult], *, samples: int = _SAMPLES, seed: int = 0) -> list[Contrast]:
    """Compare every arm with the first one that ``results`` hold, at each number of training cases.

    Args:
        results: of the cells of one comparison; cells that are missing are left out, and differences are of seeds
            that both arms have.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One entry an arm and number of cases, fewest cases first.
    """
    inits = list(dict.fromkeys(result.cell.init for result in results))
    fractions = sorted({result.cell.cases for result in results}, key=lambda cases: (cases is None, cases or 0))
    contrasts = []
    for cases in fractions:
        own = {
            init: {r.cell.seed: r for r in results if r.cell.init == init and r.cell.cases == cases} for init in inits
        }
        contrasts += [
            _contrast(init, cases, own[init], own[inits[0]] if init != inits[0] else {}, samples, seed)
            for init in inits
            if own[init]
        ]
    return _adjust(contrasts)


def _contrast(
    init: str,
    cases: int | None,
    own: Mapping[int, CellResult],
    first: Mapping[int, CellResult],
    samples: int,
    seed: int,
) -> Contrast:
    score = _two_stage([own[s].score for s in own], [_draw(own[s], None, samples, s) for s in own], seed)
    shared = [s for s in own if s in first]
    if not shared:
        return Contrast(init, cases, score)
    gaps = [own[s].score - first[s].score for s in shared]
    difference = _two_stage(gaps, [_draw(own[s], first[s], samples, s) for s in shared], seed)
    p_value = float(stats.ttest_1samp(gaps, 0.0).pvalue) if len(gaps) > 1 and np.ptp(gaps) > 0 else float("nan")
    return Contrast(init, cases, score, difference, p_value)


def _two_stage(values: Sequence[float], draws: Sequence[FloatArray], seed: int) -> Interval:
    """Draw seeds, and for each drawn one a draw of its patients; ``draws`` are ``(samples,)`` for each seed."""
    table = np.stack(draws)
    count, samples = table.shape
    rng = np.random.default_rng(seed)
    chosen = rng.integers(count, size=(samples, count))
    which = rng.integers(samples, size=(samples, count))
    low, high = np.percentile(table[chosen, which].mean(axis=1), [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high), count)


def _draw(result: CellResult, minus: CellResult | None, samples: int, seed: int) -> FloatArray:
    """Return a cell's score, or its difference to another's, under draws of its patients, ``(samples,)``.

    Draws under which it is undefined (one class only) are left out, and others stand in for them.
    """
    patients = np.unique([str(row["patient"]) for row in result.cases], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    count = int(patients.max()) + 1
    drawn = rng.integers(count, size=(samples, count))
    weights = np.stack([np.bincount(row, minlength=count) for row in drawn])[:, patients].astype(np.float64)
    score = _statistic(result.cases)(weights)
    if minus is not None:
        order = {row["case_id"]: row for row in minus.cases}
        score = score - _statistic([order[row["case_id"]] for row in result.cases])(weights)
    known = score[np.isfinite(score)]
    if not len(known):
        raise InputError(f"{result.cell.name}: its score is not defined: the held-out cases are all of one class")
    return np.resize(known, samples)


def _statistic(cases: Sequence[Mapping[str, Any]]) -> Statistic:
    """Return what a cell is scored by, of its cases: mean Dice, or AUC where they have targets."""
    values = np.array([row["value"] for row in cases], dtype=np.float64)
    if "target" not in cases[0]:
        return mean_of(values)
    targets = np.array([row["target"] for row in cases])
    return classification_statistics(targets, np.stack([1 - values, values], axis=1))["auc"]


def _adjust(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Adjust the p-values after Holm."""
    known = sorted((c.p_value, number) for number, c in enumerate(contrasts) if np.isfinite(c.p_value))
    adjusted: dict[int, float] = {}
    highest = 0.0
    for rank, (p_value, number) in enumerate(known):
        highest = max(highest, min(1.0, p_value * (len(known) - rank)))
        adjusted[number] = highest
    return [
        Contrast(c.init, c.cases, c.score, c.difference, c.p_value, adjusted.get(number, float("nan")))
        for number, c in enumerate(contrasts)
    ]


def learning_curves(results: Sequence[CellResult]) -> dict[str, dict[str, list[Curve]]]:
    """Return title → init → each seed's curve, for the fewest and the most training cases."""
    sizes = {result.cell.cases: result.train_cases for result in results}  # of "all", seeds differ by a few cases
    found: dict[str, dict[str, list[Curve]]] = {}
    for cases in sorted(sizes, key=sizes.__getitem__)[:: max(len(sizes) - 1, 1)]:
        panel = found.setdefault(f"{sizes[cases]} training cases", {})
        for result in results:
            if result.cell.cases == cases and result.curve:
                panel.setdefault(result.cell.init, []).append(result.curve)
    return found


def write_contrasts(contrasts: Sequence[Contrast], path: Path) -> Path:
    """Write the table as CSV; what is not defined is empty."""
    header = ("init", "cases", "seeds", "score", "low", "high", "difference", "difference_low", "difference_high", "p")
    with atomic.new_file(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*header, "p_holm"))
        for c in contrasts:
            gap = c.difference
            numbers = [c.score.value, c.score.low, c.score.high]
            numbers += [float("nan")] * 3 if gap is None else [gap.value, gap.low, gap.high]
            cells = ["" if np.isnan(x) else f"{x:.5g}" for x in (*numbers, c.p_value, c.p_adjusted)]
            writer.writerow((c.init, c.cases or "all", c.score.cases, *cells))
    return path
