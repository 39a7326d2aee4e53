"""Terms of losses. A term takes sums over positions, linear in the truth, and is a function of these sums alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medi3d.train.losses.comparison import Comparison, Elementwise, RegionComparison

_SMOOTH = 1e-5
"""Added to both sides of Dice, as MONAI does: a label that nobody has and nobody predicts costs nothing."""


class Term(Protocol):
    """One part of a loss."""

    def sums(self, comparison: Comparison) -> Tensor:
        """Return sums over the positions of this process, (rows, K)."""

    def value(self, sums: Tensor) -> Tensor:
        """Return the term, a scalar, of the sums over all processes."""


@dataclass(frozen=True)
class Overlap(Term):
    """One minus the Tversky index of each label over the batch (Salehi et al. 2017, arXiv:1706.05721, eq. 4).

    With true positives TP, false positives FP and false negatives FN of the probabilities, the index is
    TP / (TP + α FP + β FN). α = β = 1/2 is soft Dice (Milletari et al. 2016, arXiv:1606.04797, without the squares).

    Args:
        beta: weight of missed positions; α is 1 − β.
        first: first output that counts; 1 leaves the background out.
    """

    beta: float = 0.5
    first: int = 1

    def sums(self, comparison: Comparison) -> Tensor:
        """TP, predicted, true: (3, K)."""
        predicted = comparison.over(comparison.scores.yes)
        return torch.stack([comparison.within(torch.exp), predicted, comparison.counts()])

    def value(self, sums: Tensor) -> Tensor:
        """One minus the mean index."""
        hit, predicted, true = sums[:, self.first :]
        size = (1 - self.beta) * predicted + self.beta * true  # TP + α FP + β FN
        smooth = _SMOOTH / 2  # Dice is this fraction with both sides doubled
        loss: Tensor = (1 - (hit + smooth) / (size + smooth)).mean()
        return loss


@dataclass(frozen=True)
class CrossEntropy(Term):
    """Mean over positions of −(1 − p)^γ log p; γ = 0 is cross-entropy, else focal loss.

    Lin et al. 2017, arXiv:1708.02002, eq. 4. The mean is weighted as PyTorch's: by the weight of the true label.
    Regions have the binary form, and their mean by weight is taken.

    Args:
        gamma: γ.
        smoothing: share of the truth that is spread evenly over all answers (Szegedy et al. 2016, arXiv:1512.00567,
            section 7).
        weights: one an output; none weighs all alike.
    """

    gamma: float = 0.0
    smoothing: float = 0.0
    weights: tuple[float, ...] = ()

    def sums(self, comparison: Comparison) -> Tensor:
        """Penalty, positions: (2, K)."""
        regions = isinstance(comparison, RegionComparison)
        penalty = (1 - self.smoothing) * comparison.within(self._penalize)
        if isinstance(comparison, RegionComparison):
            penalty = penalty + (1 - self.smoothing) * comparison.without(self._penalize)
        if self.smoothing:
            every = self._penalize(comparison.scores.log_yes)
            every = every + self._penalize(comparison.scores.log_no) if regions else every
            penalty = penalty + self.smoothing / (2 if regions else every.shape[1]) * comparison.over(every)
        return torch.stack([penalty, comparison.total() if regions else comparison.counts()])

    def value(self, sums: Tensor) -> Tensor:
        """Weighted mean; 0 where there is no position."""
        weights = sums.new_tensor(self.weights) if self.weights else sums.new_ones(sums.shape[1])
        penalty, positions = (sums * weights).sum(1)
        loss: Tensor = penalty / torch.where(positions > 0, positions, 1)
        return loss

    @property
    def _penalize(self) -> Elementwise:
        return torch.neg if not self.gamma else self._focus

    def _focus(self, log_probability: Tensor) -> Tensor:
        missing = (1 - log_probability.exp()).clamp(min=1e-7)  # at 0 a power below 1 has no gradient
        focused: Tensor = -log_probability * missing**self.gamma
        return focused
