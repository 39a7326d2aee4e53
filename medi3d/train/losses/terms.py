"""Terms of losses. A term takes sums over positions of scores and truth, and is a function of these sums alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medi3d.train.losses.scores import Scores
from medi3d.train.losses.truth import Truth

_SMOOTH = 1e-5
"""Added to both sides of overlap ratios, as MONAI does: a label that nobody has and nobody predicts costs nothing."""


class Term(Protocol):
    """One part of a loss."""

    def sums(self, scores: Scores, truth: Truth) -> Tensor:
        """Return the sums over the positions of this process, (rows, K)."""

    def value(self, sums: Tensor) -> Tensor:
        """Return the term, of the sums over all processes."""


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

    def sums(self, scores: Scores, truth: Truth) -> Tensor:
        """TP, predicted, true: (3, K)."""
        return torch.stack([truth.within(scores.yes), truth.over(scores.yes), truth.counts()])

    def value(self, sums: Tensor) -> Tensor:
        hit, predicted, true = sums[:, self.first :]
        size = (1 - self.beta) * predicted + self.beta * true  # TP + α FP + β FN
        smooth = _SMOOTH / 2  # of MONAI's Dice, whose fraction is this one's doubled
        return (1 - (hit + smooth) / (size + smooth)).mean()


@dataclass(frozen=True)
class CrossEntropy(Term):
    """Weighted mean over positions of −(1 − p)^γ log p; γ = 0 is cross-entropy, else focal loss (Lin et al. 2017).

    arXiv:1708.02002, eq. 5. Independent outputs have the binary form, and their mean is taken.

    Args:
        gamma: γ.
        smoothing: share of the truth that is spread evenly over all answers (Szegedy et al. 2016, arXiv:1512.00567).
        weights: one an output, or none.
    """

    gamma: float = 0.0
    smoothing: float = 0.0
    weights: tuple[float, ...] = ()
    independent: bool = False

    def sums(self, scores: Scores, truth: Truth) -> Tensor:
        """Penalty, counts: (2, K)."""
        penalty = _focus(-scores.log_yes, scores, self.gamma)
        if not self.independent:
            total = (1 - self.smoothing) * truth.within(penalty)
            if self.smoothing:
                total = total + self.smoothing / penalty.shape[1] * truth.over(penalty)
            return torch.stack([total, truth.counts()])
        other = -scores.log_no if not self.gamma else -scores.log_no * scores.yes**self.gamma
        kept, spread = 1 - self.smoothing, self.smoothing / 2
        total = kept * (truth.within(penalty - other) + truth.over(other))
        if self.smoothing:
            total = total + spread * truth.over(penalty + other)
        return torch.stack([total, truth.total().expand_as(total)])

    def value(self, sums: Tensor) -> Tensor:
        weights = sums.new_tensor(self.weights) if self.weights else sums.new_ones(sums.shape[1])
        total, counted = (weights * sums).sum(1)
        return total / torch.where(counted > 0, counted, 1)


def _focus(penalty: Tensor, scores: Scores, gamma: float) -> Tensor:
    return penalty if not gamma else penalty * (1 - scores.yes) ** gamma
