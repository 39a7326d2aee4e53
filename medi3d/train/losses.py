"""Losses by name: a row maps a task's configuration to a function of logits and truth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: Registry[Callable[[TaskConfig], Loss]] = Registry("loss")


@LOSSES.register("cross_entropy")
def _cross_entropy(task: TaskConfig) -> Loss:
    loss = nn.CrossEntropyLoss(weight=_weights(task))

    def cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
        value: Tensor = loss.to(logits.device)(logits, truth)
        return value

    return cross_entropy


@LOSSES.register("dice_ce")
def _dice_ce(task: TaskConfig) -> Loss:
    """Dice over the foreground labels of the whole batch, plus cross-entropy (Isensee et al. 2021, nnU-Net)."""
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True, weight=_weights(task))

    def dice_ce(logits: Tensor, label: Tensor) -> Tensor:
        value: Tensor = loss.to(logits.device)(logits, label[:, None])
        return value

    return dice_ce


def _weights(task: TaskConfig) -> Tensor | None:
    return torch.tensor(task.train.class_weights) if task.train.class_weights else None


def create_loss(task: TaskConfig) -> Loss:
    """Return a task's loss: ``(logits, truth) → scalar``, where truth is ``(B, D, H, W)`` or ``(B,)`` int64."""
    return LOSSES[task.train.loss](task)
