"""Losses by name: a row maps a task's configuration to weighted terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medi3d.config import TaskConfig
from medi3d.registry import Registry
from medi3d.train.losses.loss import Loss, Share
from medi3d.train.losses.terms import CrossEntropy, Overlap, Term

Terms = Sequence[tuple[Share, Term]]

LOSSES: Registry[Callable[[TaskConfig], Terms]] = Registry("loss")


def create_loss(task: TaskConfig) -> Loss:
    """Create the loss that ``train.loss`` names."""
    return Loss(task, LOSSES[task.train.loss](task))


@LOSSES.register("cross_entropy")
def _cross_entropy(task: TaskConfig) -> Terms:
    return [(_always, _entropy(task))]


@LOSSES.register("focal")
def _focal(task: TaskConfig) -> Terms:
    return [(_always, _entropy(task, gamma=task.train.focal_gamma))]


@LOSSES.register("dice_ce")
def _dice_ce(task: TaskConfig) -> Terms:
    """Dice over the foreground labels of the whole batch, plus cross-entropy (Isensee et al. 2021, nnU-Net)."""
    return [(_always, _overlap(task)), (_always, _entropy(task))]


@LOSSES.register("dice_focal")
def _dice_focal(task: TaskConfig) -> Terms:
    return [(_always, _overlap(task)), (_always, _entropy(task, gamma=task.train.focal_gamma))]


@LOSSES.register("tversky")
def _tversky(task: TaskConfig) -> Terms:
    return [(_always, _overlap(task, beta=task.train.tversky_beta)), (_always, _entropy(task))]


def _always(progress: float) -> float:
    return 1.0


def _overlap(task: TaskConfig, *, beta: float = 0.5) -> Term:
    return Overlap(beta=beta, first=0 if task.data.regions else 1)


def _entropy(task: TaskConfig, *, gamma: float = 0.0) -> Term:
    return CrossEntropy(
        gamma=gamma,
        smoothing=task.train.label_smoothing,
        weights=task.train.class_weights,
        independent=bool(task.data.regions),
    )
