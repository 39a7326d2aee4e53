"""Learning rates as functions of progress, and progress as a function of steps or of wall-clock time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from medi3d.registry import Registry

Curve = Callable[[float], float]

CURVES: Registry[Curve] = Registry("schedule")
"""Progress in [0, 1] after the warm-up → factor of the learning rate."""

CURVES.add("constant", lambda progress: 1.0)
CURVES.add("cosine", lambda progress: 0.5 * (1 + math.cos(math.pi * progress)))
CURVES.add("poly", lambda progress: (1 - progress) ** 0.9)


def rate_factor(schedule: str, progress: float, *, warmup: float) -> float:
    """Return the factor of the learning rate at ``progress``.

    Args:
        schedule: a row of :data:`CURVES`.
        progress: share of the run that is done, in [0, 1].
        warmup: share over which the factor rises linearly.

    Examples:
        >>> rate_factor("cosine", 0.05, warmup=0.1), rate_factor("constant", 0.5, warmup=0.1)
        (0.5, 1.0)
    """
    if progress < warmup:
        return progress / warmup
    return CURVES[schedule]((progress - warmup) / max(1 - warmup, 1e-9))


@dataclass
class Pace:
    """How far a run is: by steps, or by wall clock where there is a budget.

    The validation that ends the run belongs to the budget, so its length (that of the longest so far) is held back.
    """

    steps: int
    budget_s: float | None
    validation_s: float = 0.0
    progress: float = 0.0

    def update(self, step: int, elapsed_s: float) -> float:
        """Return the progress in [0, 1] after ``step`` steps and ``elapsed_s`` seconds; it never goes back."""
        available = math.inf if self.budget_s is None else max(self.budget_s - self.validation_s, 1e-9)
        now = step / self.steps if self.budget_s is None else elapsed_s / available
        self.progress = min(max(self.progress, now), 1.0)
        return self.progress
