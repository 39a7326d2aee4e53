"""A task's loss: terms on the logits of every resolution, and cross-entropy on a second head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.models.outputs import Outputs
from medi3d.train.losses.comparison import Comparison, LabelComparison, RegionComparison, Scores
from medi3d.train.losses.processes import sum_over_processes
from medi3d.train.losses.terms import CrossEntropy, Term
from medi3d.train.losses.truth import sample_labels

Batch: TypeAlias = Mapping[str, Any]
"""``label`` (B, D, H, W) and ``target`` (B,), int64; with mixup also ``share``, ``mixed_label``, ``mixed_target``."""

Weight: TypeAlias = Callable[[float], float]
"""Progress in [0, 1] → weight of a term."""


class Loss:
    """Loss of a task.

    Args:
        task: its labels, regions and classes.
        terms: each with its weight over the course of training.
    """

    def __init__(self, task: TaskConfig, terms: Sequence[tuple[Weight, Term]]) -> None:
        self.task = task
        self.terms = terms
        self.class_term = CrossEntropy(smoothing=task.train.label_smoothing)
        self.membership = torch.tensor(task.region_matrix, dtype=torch.bool)  # (labels, regions)

    def __call__(self, outputs: Tensor | Outputs, batch: Batch, *, progress: float) -> Tensor:
        """Return the loss over the batches of all processes, a float32 scalar.

        Args:
            outputs: what the network gave.
            batch: the truth.
            progress: share of the schedule that is done, in [0, 1].

        Raises:
            InputError: the batch has no truth for one of the outputs.
        """
        weighed: list[tuple[float, Term]] = []
        sums: list[Tensor] = []
        for share, logits, truth, terms in self._heads(outputs, progress):
            parts = self._compare(logits, truth, batch)
            for weight, term in terms:
                weighed.append((share * weight, term))
                sums.append(torch.stack([part * term.sums(comparison) for part, comparison in parts]).sum(0))
        lengths = [part.numel() for part in sums]
        everywhere = sum_over_processes(torch.cat([part.flatten() for part in sums])).split_with_sizes(lengths)
        loss = torch.zeros((), dtype=torch.float64, device=everywhere[0].device)
        for (weight, term), whole, part in zip(weighed, everywhere, sums, strict=True):
            loss = loss + weight * term.value(whole.view_as(part))
        return loss.float()

    def _heads(
        self, outputs: Tensor | Outputs, progress: float
    ) -> list[tuple[float, Tensor, str, list[tuple[float, Term]]]]:
        """Return each head's share, its logits, the batch's key of its truth, and its terms with their weights."""
        levels, classes = ((outputs,), None) if isinstance(outputs, Tensor) else outputs
        terms = [(weight(progress), term) for weight, term in self.terms]
        terms = [(weight, term) for weight, term in terms if weight]
        truth = "label" if self.task.kind == "segmentation" else "target"
        shares = weigh_levels(len(levels))
        heads = [(share, logits, truth, terms) for share, logits in zip(shares, levels, strict=True)]
        if classes is not None:
            heads.append((self.task.train.classes_weight, classes, "target", [(1.0, self.class_term)]))
        return heads

    def _compare(self, logits: Tensor, truth: str, batch: Batch) -> list[tuple[float, Comparison]]:
        """Return the shares of the truths that a batch is mixed of, and the comparison with each."""
        if truth not in batch:
            raise InputError(f"the batch has no {truth!r} to compare outputs of shape {tuple(logits.shape)} with")
        independent = truth == "label" and bool(self.task.data.regions)
        scores = Scores(logits, independent=independent)
        mixed = [(1.0, batch[truth])]
        if f"mixed_{truth}" in batch:
            share = float(batch["share"])
            mixed = [(share, batch[truth]), (1 - share, batch[f"mixed_{truth}"])]
        if truth == "target":
            return [(share, _with_classes(scores, target)) for share, target in mixed]
        size = logits.shape[2:]
        sampled = [(share, sample_labels(label, size)) for share, label in mixed]
        return [(share / len(maps), self._with_labels(scores, label)) for share, maps in sampled for label in maps]

    def _with_labels(self, scores: Scores, label: Tensor) -> Comparison:
        ignored = self.task.data.ignore_label
        known = None if ignored is None else label != ignored
        if known is not None:
            label = torch.where(known, label, 0)
        if not scores.independent:
            return LabelComparison(scores, label, known)
        regions = self.membership.to(label.device)[label].movedim(-1, 1)  # (B, D, H, W, K) → (B, K, D, H, W)
        return RegionComparison(scores, regions, known)


def weigh_levels(levels: int) -> list[float]:
    """Return weights that halve from one level to the next coarser and sum to 1, as nnU-Net's.

    Examples:
        >>> [round(weight, 3) for weight in weigh_levels(3)]
        [0.571, 0.286, 0.143]
    """
    halves = [0.5**level for level in range(levels)]
    return [half / sum(halves) for half in halves]


def _with_classes(scores: Scores, target: Tensor) -> Comparison:
    """Compare with classes; a negative one is not known."""
    known = target >= 0
    return LabelComparison(scores, target.clamp(min=0), known)
