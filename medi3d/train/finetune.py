"""What keeps a pretrained encoder from being spoilt: frozen at first, norm statistics that do not follow batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.train.batch_norm import BatchNormCalls, Moments

STATISTICS_PATCHES = 64
"""Patches over which running statistics are measured; each adds thousands of positions to every norm."""


class FineTuning:
    """The encoder's part in training.

    While it is frozen (``train.freeze``), its weights take no gradient and it answers as in prediction: no dropout,
    norms by their running statistics. With ``train.norm_statistics`` ``frozen`` or ``reestimate`` its norms go on to do
    so when its weights are trained.

    Args:
        model: the network; without an ``encoder`` there is nothing to do.
        task: the task.
    """

    def __init__(self, model: nn.Module, task: TaskConfig) -> None:
        self.model, self.task = model, task
        self.encoder: nn.Module | None = getattr(model, "encoder", None)
        own = [] if self.encoder is None else list(self.encoder.parameters())
        self._trained = [parameter for parameter in own if parameter.requires_grad]
        self.frozen = False

    def update(self, progress: float) -> None:
        """Freeze or unfreeze the encoder as the schedule says."""
        frozen = self.encoder is not None and progress < self.task.train.freeze
        if frozen == self.frozen:
            return
        self.frozen = frozen
        for parameter in self._trained:
            parameter.requires_grad_(not frozen)
            parameter.grad = None
        self.set_modes()

    def set_modes(self) -> None:
        """Put the network into training mode, and what is frozen of it into that of prediction."""
        self.model.train()
        if self.encoder is None:
            return
        if self.frozen:
            self.encoder.eval()
        if self.task.train.norm_statistics != "update":
            for norm in find_norms(self.encoder):
                norm.eval()

    def find_updated_norms(self) -> list[nn.Module]:
        """Return the layers that normalise by their batch while the encoder is trained."""
        fixed = self.encoder is not None and self.task.train.norm_statistics != "update"
        kept = {id(norm) for norm in find_norms(self.encoder)} if self.encoder is not None and fixed else set()
        return [norm for norm in find_norms(self.model) if id(norm) not in kept]

    def rate_factor(self, progress: float) -> float:
        """Return the factor of the encoder's learning rate: it warms up again when it is no longer frozen."""
        config = self.task.train
        if not config.freeze or not config.warmup:
            return 1.0
        return min(max((progress - config.freeze) / config.warmup, 0.0), 1.0)

    @torch.no_grad()
    def reestimate(self, batches: Iterator[dict[str, Any]], *, batch_size: int, processes: int) -> int:
        """Measure the running statistics of the encoder's norms on training patches.

        Args:
            batches: of this process.
            batch_size: patches in each.
            processes: how many there are.

        Returns:
            How many norms were measured.
        """
        if self.encoder is None:
            return 0
        moments = Moments()
        with _answering_as_in_training(self.encoder), BatchNormCalls(moments.measure):
            for _ in range(math.ceil(STATISTICS_PATCHES / (batch_size * processes))):
                self.encoder(next(batches)["image"])
        return moments.write(processes=processes)


def find_norms(module: nn.Module) -> list[nn.Module]:
    """Return the layers that keep running statistics."""
    return [layer for layer in module.modules() if isinstance(getattr(layer, "running_var", None), Tensor)]


@contextmanager
def _answering_as_in_training(encoder: nn.Module) -> Iterator[None]:
    """Let the norms normalise by their batch, and nothing else act as in training: no dropout."""
    modes = [(layer, layer.training) for layer in encoder.modules()]
    encoder.eval()
    for norm in find_norms(encoder):
        norm.training = True
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
