"""Losses by name: a row maps a task's configuration to weighted terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.registry import Registry
from medi3d.train.losses.boundary import Boundary
from medi3d.train.losses.loss import Loss, Weight
from medi3d.train.losses.terms import CrossEntropy, Overlap, Term

Terms = Sequence[tuple[Weight, Term]]

LOSSES: Registry[Callable[[TaskConfig], Terms]] = Registry("loss")


def create_loss(task: TaskConfig) -> Loss:
    """Create the loss that ``train.loss`` names.

    Raises:
        ConfigError: there is no such loss, or it compares shapes and the task has classes alone.
    """
    terms = LOSSES[task.train.loss](task)
    if task.kind == "classification" and not all(isinstance(term, CrossEntropy) for _, term in terms):
        raise ConfigError(
            f"train.loss: {task.train.loss} compares shapes, and {task.name} is classification; take cross_entropy or "
            "focal"
        )
    return Loss(task, terms)


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
    """Tversky in place of Dice. Cross-entropy stays: class weights and label smoothing act through it."""
    return [(_always, _overlap(task, beta=task.train.tversky_beta)), (_always, _entropy(task))]


@LOSSES.register("boundary")
def _boundary(task: TaskConfig) -> Terms:
    """The terms of ``dice_ce``, which the boundary loss takes over from as training goes on."""
    share = task.train.boundary_weight
    rest = [(lambda progress: 1 - share * progress, term) for _, term in _dice_ce(task)]
    return [*rest, (lambda progress: share * progress, Boundary(first=_first(task)))]


def _always(progress: float) -> float:
    return 1.0


def _first(task: TaskConfig) -> int:
    """Return the first output that overlaps are measured of: regions have no background."""
    return 0 if task.data.regions else 1


def _overlap(task: TaskConfig, *, beta: float = 0.5) -> Term:
    return Overlap(beta=beta, first=_first(task))


def _entropy(task: TaskConfig, *, gamma: float = 0.0) -> Term:
    return CrossEntropy(gamma=gamma, smoothing=task.train.label_smoothing, weights=task.train.class_weights)
