"""A task's loss: terms on every resolution's logits, and cross-entropy on a second head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from medi3d.config import TaskConfig
from medi3d.models.outputs import Outputs
from medi3d.train.losses.processes import sum_over_processes
from medi3d.train.losses.scores import Scores
from medi3d.train.losses.terms import CrossEntropy, Term
from medi3d.train.losses.truth import Labels, Mixed, Regions, Truth

Batch: TypeAlias = Mapping[str, Any]
"""``label`` (B, D, H, W) and ``target`` (B,), int64; with mixup also ``share``, ``mixed_label``, ``mixed_target``."""

Share: TypeAlias = Callable[[float], float]
"""Progress in [0, 1] → weight of a term."""


class Loss:
    """Loss of a task.

    Args:
        task: labels, regions, classes.
        terms: each with its weight over the course of training.
    """

    def __init__(self, task: TaskConfig, terms: Sequence[tuple[Share, Term]]) -> None:
        self.task = task
        self.terms = terms
        self.class_term = CrossEntropy(smoothing=task.train.label_smoothing)

    def __call__(self, outputs: Tensor | Outputs, batch: Batch, *, progress: float) -> Tensor:
        """Return the loss over the batch of all processes, a float32 scalar.

        Args:
            outputs: what the network gave.
            batch: the truth.
            progress: share of the schedule that is done, in [0, 1].
        """
        if isinstance(outputs, Tensor):
            outputs = Outputs((outputs,))
        independent = bool(self.task.data.regions)
        sums: list[Tensor] = []
        values: list[tuple[float, Term]] = []
        for share, logits in zip(level_weights(len(outputs.logits)), outputs.logits, strict=True):
            scores, truth = Scores(logits, independent=independent), self._truth(batch, logits.shape)
            weighed = [(share * weight(progress), term) for weight, term in self.terms]
            values += [(weight, term) for weight, term in weighed if weight]
            sums += [term.sums(scores, truth) for weight, term in weighed if weight]
        if outputs.classes is not None:
            classes = outputs.classes
            sums.append(self.class_term.sums(Scores(classes, independent=False), _targets(batch, classes.shape[1])))
            values.append((self.task.train.classes_weight, self.class_term))
        summed = sum_over_processes(torch.cat([part.flatten() for part in sums])).split([part.numel() for part in sums])
        parts = [
            weight * term.value(whole.view_as(part))
            for (weight, term), whole, part in zip(values, summed, sums, strict=True)
        ]
        return torch.stack(parts).sum()

    def _truth(self, batch: Batch, shape: torch.Size) -> Truth:
        if self.task.kind == "classification":
            return _targets(batch, shape[1])
        return _mix(batch, "label", lambda label: self._labels(_shrink(label, shape[2:]), shape[1]))

    def _labels(self, label: Tensor, outputs: int) -> Truth:
        ignored = self.task.data.ignore_label
        known = None if ignored is None else label != ignored
        label = label if known is None else torch.where(known, label, 0)
        if not self.task.data.regions:
            return Labels(label, known, outputs)
        table = torch.zeros(outputs, self.task.num_classes, dtype=torch.bool)
        for row, members in enumerate(self.task.data.regions.values()):
            table[row, list(members)] = True
        return Regions(table.to(label.device)[:, label].transpose(0, 1), known)


def level_weights(levels: int) -> list[float]:
    """Return weights that halve from one level to the next coarser and sum to 1, as nnU-Net's.

    Examples:
        >>> level_weights(2)
        [0.6666666666666666, 0.3333333333333333]
    """
    shares = [0.5**level for level in range(levels)]
    return [share / sum(shares) for share in shares]


def _targets(batch: Batch, outputs: int) -> Truth:
    return _mix(batch, "target", lambda target: Labels(target, None, outputs))


def _mix(batch: Batch, key: str, make: Callable[[Tensor], Truth]) -> Truth:
    if f"mixed_{key}" not in batch:
        return make(batch[key])
    share = float(batch["share"])
    return Mixed([(share, make(batch[key])), (1 - share, make(batch[f"mixed_{key}"]))])


def _shrink(label: Tensor, size: torch.Size) -> Tensor:
    """Return the label map at a coarser size."""
    if label.shape[1:] == size:
        return label
    shrunk = torch.nn.functional.interpolate(label[:, None].float(), size=size, mode="nearest-exact")
    return shrunk[:, 0].to(label.dtype)
