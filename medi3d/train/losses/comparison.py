"""Logits beside their truth: the sums over positions that losses are functions of.

There are two kinds of sums over positions: over those that are an output's own by the truth, and over all that
somebody has annotated. No one-hot map of the labels is made for them. All sums are linear in the truth, so that a
truth mixed of two (mixup) has the sums of both in their shares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Elementwise: TypeAlias = Callable[[Tensor], Tensor]
"""A function of logarithms of probabilities, of any shape."""


class Scores:
    """Logits (B, K, …) as probabilities, computed once.

    Args:
        logits: of any precision.
        independent: whether each output is a yes or no by itself (sigmoid), or all exclude each other (softmax).
    """

    def __init__(self, logits: Tensor, *, independent: bool) -> None:
        self.logits = logits.float()
        self.independent = independent

    @property
    def log_yes(self) -> Tensor:
        """log p."""
        return self._both[0]

    @property
    def yes(self) -> Tensor:
        """p."""
        return self._both[1]

    @cached_property
    def log_no(self) -> Tensor:
        """log (1 − p), of independent outputs."""
        return F.logsigmoid(-self.logits)

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        if self.independent:
            return F.logsigmoid(self.logits), torch.sigmoid(self.logits)
        log_yes, yes = _SoftmaxWithLog.apply(self.logits)
        return log_yes, yes


class _SoftmaxWithLog(torch.autograd.Function):
    """(B, K, …) → log p and p; gradients of both go back in one step, a third of the time of one after the other."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        yes = F.softmax(logits, 1)
        ctx.save_for_backward(yes)
        return F.log_softmax(logits, 1), yes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        (yes,) = ctx.saved_tensors
        of_log, of_yes = grads
        if of_yes is not None:
            through = of_yes * yes  # ∂p / ∂ log p = p
            of_log = through if of_log is None else through.add_(of_log)
        if of_log is None:
            return None
        of_logits: Tensor = of_log - yes * of_log.sum(1, keepdim=True)
        return of_logits


class Comparison(ABC):
    """Scores and one truth; sums are float64, (K,), where K is the number of outputs.

    Args:
        scores: (B, K, …).
        known: (B, …) bool, which positions are annotated; ``None`` where all are.
    """

    def __init__(self, scores: Scores, known: Tensor | None) -> None:
        self.scores = scores
        self.known = known

    @abstractmethod
    def within(self, function: Elementwise) -> Tensor:
        """Sum a function of log p over each output's own positions."""

    @abstractmethod
    def counts(self) -> Tensor:
        """Count each output's own positions."""

    @abstractmethod
    def inside(self) -> Tensor:
        """Return which positions are each output's own, (B, K, …) bool; of positions not annotated it means nothing."""

    def over(self, values: Tensor) -> Tensor:
        """Sum values (B, K, …) over all annotated positions."""
        if self.known is not None:
            values = torch.where(self.known[:, None], values, 0)
        return values.sum([0, *range(2, values.ndim)]).double()

    def total(self) -> Tensor:
        """Count the annotated positions, for each output the same."""
        shape = self.scores.logits.shape
        count = shape.numel() // shape[1] if self.known is None else self.known.sum()
        return torch.zeros(shape[1], dtype=torch.float64, device=self.scores.logits.device) + count


class LabelComparison(Comparison):
    """One label a position: (B, …) int64 in [0, K); where nothing is known, any of them."""

    def __init__(self, scores: Scores, label: Tensor, known: Tensor | None) -> None:
        super().__init__(scores, known)
        self.label = label
        self.outputs = scores.logits.shape[1]

    def within(self, function: Elementwise) -> Tensor:
        """Sum a function of log p over each output's own positions."""
        sums: Tensor = _SumByLabel.apply(function(self._own), self._labels, self._masks)
        return sums.double()

    def counts(self) -> Tensor:
        """Count each output's own positions."""
        return torch.stack([mask.count_nonzero() for mask in self._masks]).double()

    def inside(self) -> Tensor:
        """Return which positions are each output's own, (B, K, …) bool."""
        return torch.stack([self.label == output for output in range(self.outputs)], dim=1)

    @cached_property
    def _own(self) -> Tensor:
        """log p of the true label at each annotated position, (N,)."""
        own = self.scores.log_yes.gather(1, self.label[:, None])[:, 0]
        return own.flatten() if self.known is None else own[self.known]

    @cached_property
    def _labels(self) -> Tensor:
        """That label."""
        return self.label.flatten() if self.known is None else self.label[self.known]

    @cached_property
    def _masks(self) -> tuple[Tensor, ...]:
        """Where that label is each output's own, (N,) bool."""
        return tuple(self._labels == output for output in range(self.outputs))


class _SumByLabel(torch.autograd.Function):
    """Values (N,) → sums (K,) within masks that share all places out: faster than adding by index."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, labels: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
        ctx.save_for_backward(labels)
        return torch.stack([torch.where(mask, values, 0).sum() for mask in masks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class RegionComparison(Comparison):
    """Any number of regions at a position: ``regions`` (B, K, …) bool."""

    def __init__(self, scores: Scores, regions: Tensor, known: Tensor | None) -> None:
        super().__init__(scores, known)
        self.regions = regions

    @cached_property
    def _own(self) -> Tensor:
        return self.regions if self.known is None else self.regions & self.known[:, None]

    def within(self, function: Elementwise) -> Tensor:
        """Sum a function of log p over each output's own positions."""
        return _sum_where(self._own, function(self.scores.log_yes))

    def without(self, function: Elementwise) -> Tensor:
        """Sum a function of log (1 − p) over the annotated positions that are not an output's own."""
        others = ~self.regions if self.known is None else ~self.regions & self.known[:, None]
        return _sum_where(others, function(self.scores.log_no))

    def counts(self) -> Tensor:
        """Count each output's own positions."""
        return self._own.sum([0, *range(2, self._own.ndim)]).double()

    def inside(self) -> Tensor:
        """Return which positions are each output's own, (B, K, …) bool."""
        return self.regions


def _sum_where(chosen: Tensor, values: Tensor) -> Tensor:
    return torch.where(chosen, values, 0).sum([0, *range(2, values.ndim)]).double()
