"""What keeps a pretrained encoder from being spoilt: frozen at first, norm statistics that do not follow batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.models.multitask import find_encoders
from medi3d.train.batch_norm import BatchNormCalls, Moments

STATISTICS_PATCHES = 64
"""Patches over which running statistics are measured; each adds thousands of positions to every norm."""


class FineTuning:
    """The encoder's part in training.

    While it is frozen (``train.freeze``), its weights take no gradient and it answers as in prediction: no dropout,
    norms by their running statistics. With ``train.norm_statistics`` ``frozen`` or ``reestimate`` its norms go on to do
    so when its weights are trained.

    Args:
        model: the network, or the networks of several tasks; without an ``encoder`` there is nothing to do.
        task: the task; of several, what they share.
    """

    def __init__(self, model: nn.Module, task: TaskConfig) -> None:
        self.model, self.task = model, task
        self.encoders = find_encoders(model)
        own = {id(parameter): parameter for encoder in self.encoders for parameter in encoder.parameters()}
        self._trained = [parameter for parameter in own.values() if parameter.requires_grad]
        self.frozen = False

    def update(self, progress: float) -> None:
        """Freeze or unfreeze the encoder as the schedule says."""
        frozen = bool(self.encoders) and progress < self.task.train.freeze
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
        for encoder in self.encoders:
            if self.frozen:
                encoder.eval()
            if self.task.train.norm_statistics != "update":
                for norm in find_norms(encoder):
                    norm.eval()

    def find_updated_norms(self) -> list[nn.Module]:
        """Return the layers that normalise by their batch while the encoder is trained."""
        fixed = self.encoders if self.task.train.norm_statistics != "update" else []
        kept = {id(norm) for encoder in fixed for norm in find_norms(encoder)}
        return [norm for norm in find_norms(self.model) if id(norm) not in kept]

    def rate_factor(self, progress: float) -> float:
        """Return the factor of the encoder's learning rate: it warms up again when it is no longer frozen."""
        config = self.task.train
        if not config.freeze or not config.warmup:
            return 1.0
        return min(max((progress - config.freeze) / config.warmup, 0.0), 1.0)


@torch.no_grad()
def reestimate(network: nn.Module, batches: Iterator[dict[str, Any]], *, batch_size: int, processes: int) -> int:
    """Measure the running statistics of a network's encoder's norms on training patches.

    Args:
        network: of one task.
        batches: of this process.
        batch_size: patches in each.
        processes: how many there are.

    Returns:
        How many norms were measured.
    """
    moments = Moments()
    for encoder in find_encoders(network):
        with _answering_as_in_training(encoder), BatchNormCalls(moments.measure):
            for _ in range(math.ceil(STATISTICS_PATCHES / (batch_size * processes))):
                encoder(next(batches)["image"])
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
