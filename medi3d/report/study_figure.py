"""The figure of a comparison of initialisations: score against the number of training cases, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from medi3d.types import PathLike


@dataclass(frozen=True)
class ArmPoints:
    """One arm's line.

    Args:
        cases: numbers of training cases, ``(N,)``.
        score: mean score at each.
        low: lower ends of the intervals.
        high: upper ends.
    """

    cases: Sequence[int]
    score: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


Curves = Mapping[str, Sequence[Sequence[tuple[int, float]]]]
"""Arm → for each seed the (step, score) pairs of its validations."""


def draw_study(
    arms: Mapping[str, ArmPoints], curves: Mapping[str, Curves], path: PathLike, *, metric: str, title: str
) -> Path:
    """Draw a panel of score against training cases, and one of learning curves for each of ``curves``.

    Args:
        arms: arm → its line.
        curves: panel title → curves; an arm's line is the mean over its seeds, those of single seeds are faint. Curves
            of one point are no curves: there is no panel of them.
        path: of the figure; its suffix tells the format.
        metric: title of the scores' axis.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    curves = {name: of_arm for name, of_arm in curves.items() if any(len(seed) > 1 for seed in chain(*of_arm.values()))}
    figure = Figure(figsize=(4.6 * (1 + len(curves)), 4.2), layout="constrained")
    panels = figure.subplots(1, 1 + len(curves), squeeze=False)[0]
    colors = {arm: f"C{number}" for number, arm in enumerate(arms)}
    spread = np.linspace(-0.04, 0.04, max(len(arms), 2))  # intervals side by side, not over one another
    for offset, (arm, line) in zip(spread, arms.items(), strict=False):
        x = np.asarray(line.cases) * 2.0**offset
        score = np.asarray(line.score)
        errors = np.abs(np.stack([score - np.asarray(line.low), np.asarray(line.high) - score]))
        panels[0].errorbar(x, score, errors, color=colors[arm], marker="o", markersize=4, capsize=2, label=arm)
    ticks = sorted({n for line in arms.values() for n in line.cases})
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks(ticks, [str(n) for n in ticks], minor=False)
    panels[0].set(xlabel="training cases", ylabel=f"{metric}, held-out cases", title="End of training")
    panels[0].legend(fontsize="small")
    for panel, (name, of_arm) in zip(panels[1:], curves.items(), strict=True):
        for arm, seeds in of_arm.items():
            for seed in seeds:
                panel.plot(*zip(*seed, strict=True), color=colors[arm], alpha=0.25, linewidth=0.8)
            steps = [step for step, _ in seeds[0]]
            whole = [seed for seed in seeds if [step for step, _ in seed] == steps]
            means = np.mean([[score for _, score in seed] for seed in whole], axis=0)
            panel.plot(steps, means, color=colors[arm], marker=".", label=arm)
        panel.set(xlabel="steps", title=name)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)
    return Path(path)
