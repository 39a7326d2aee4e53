"""The truth that logits are compared with: label maps or classes, where they are known, in what shares.

A loss never looks at the truth itself but at two kinds of sums over positions, which the truth takes:
:meth:`Truth.within`, over the positions of each output's own label or region, and :meth:`Truth.over`, over all
annotated positions. Both are linear in the truth, so mixed truths (mixup) and truths of which only parts are annotated
need no code elsewhere, and no one-hot map of the labels is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Truth(ABC):
    """What the sums of a loss are taken over; K outputs, P annotated positions (fractions where truths are mixed)."""

    @abstractmethod
    def within(self, values: Tensor) -> Tensor:
        """Sum ``values`` (B, K, …) of each output over the positions that are its own: (K,)."""

    @abstractmethod
    def over(self, values: Tensor) -> Tensor:
        """Sum ``values`` (B, K, …) over all annotated positions: (K,)."""

    @abstractmethod
    def counts(self) -> Tensor:
        """Count the positions that are each output's own, float32: (K,)."""

    @abstractmethod
    def total(self) -> Tensor:
        """Count the annotated positions, float32: ()."""

    @abstractmethod
    def fields(self, make: Callable[[Truth], Tensor]) -> Tensor:
        """Return what ``make`` gives (B, K, …) for a single truth, in the shares of this one."""


@dataclass(frozen=True)
class Labels(Truth):
    """One label a position: outputs that exclude each other.

    Args:
        label: (B, …) int64 in [0, K).
        known: (B, …) bool, where somebody has annotated; ``None`` is everywhere. ``label`` is 0 elsewhere.
        outputs: K.
    """

    label: Tensor
    known: Tensor | None
    outputs: int

    def within(self, values: Tensor) -> Tensor:
        own = values.gather(1, self.label[:, None])[:, 0]
        if self.known is not None:
            own = own * self.known
        return own.new_zeros(self.outputs).index_add(0, self.label.flatten(), own.flatten())

    def over(self, values: Tensor) -> Tensor:
        return _sum_over(values, self.known)

    def counts(self) -> Tensor:
        label = self.label if self.known is None else self.label[self.known]
        return torch.bincount(label.flatten(), minlength=self.outputs).float()

    def total(self) -> Tensor:
        return _count(self.label, self.known)

    def fields(self, make: Callable[[Truth], Tensor]) -> Tensor:
        return make(self)


@dataclass(frozen=True)
class Regions(Truth):
    """Any number of regions at a position: outputs that are independent.

    Args:
        inside: (B, K, …) bool.
        known: as of :class:`Labels`.
    """

    inside: Tensor
    known: Tensor | None

    def within(self, values: Tensor) -> Tensor:
        inside = self.inside if self.known is None else self.inside & self.known[:, None]
        return _sum_outputs(torch.where(inside, values, 0))

    def over(self, values: Tensor) -> Tensor:
        return _sum_over(values, self.known)

    def counts(self) -> Tensor:
        inside = self.inside if self.known is None else self.inside & self.known[:, None]
        return _sum_outputs(inside).float()

    def total(self) -> Tensor:
        return _count(self.inside[:, 0], self.known)

    def fields(self, make: Callable[[Truth], Tensor]) -> Tensor:
        return make(self)


@dataclass(frozen=True)
class Mixed(Truth):
    """Truths in shares, as mixup mixes them (Zhang et al. 2018, arXiv:1710.09412)."""

    parts: Sequence[tuple[float, Truth]]

    def within(self, values: Tensor) -> Tensor:
        return self._mix(lambda truth: truth.within(values))

    def over(self, values: Tensor) -> Tensor:
        return self._mix(lambda truth: truth.over(values))

    def counts(self) -> Tensor:
        return self._mix(lambda truth: truth.counts())

    def total(self) -> Tensor:
        return self._mix(lambda truth: truth.total())

    def fields(self, make: Callable[[Truth], Tensor]) -> Tensor:
        return self._mix(lambda truth: truth.fields(make))

    def _mix(self, take: Callable[[Truth], Tensor]) -> Tensor:
        (share, first), *others = self.parts
        total = share * take(first)
        for other_share, other in others:
            total = total + other_share * take(other)
        return total


def _sum_outputs(values: Tensor) -> Tensor:
    return values.sum([0, *range(2, values.ndim)])


def _sum_over(values: Tensor, known: Tensor | None) -> Tensor:
    return _sum_outputs(values if known is None else torch.where(known[:, None], values, 0))


def _count(positions: Tensor, known: Tensor | None) -> Tensor:
    return torch.tensor(float(positions.numel()), device=positions.device) if known is None else known.sum().float()
