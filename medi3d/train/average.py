"""A moving average of the weights, which is validated and predicts in place of the weights that are trained.

Polyak & Juditsky 1992 (doi:10.1137/0330046) for averaging, Tarvainen & Valpola 2017 (arXiv:1703.01780) for the
exponential form. The decay warms up, min(decay, (1 + t) / (10 + t)) at step t, so that the random start is soon
forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of a network, on its device.

    Buffers of floating point are averaged as the weights are: the running statistics of batch norms follow weights that
    change, and with batches of two patches they are noisy by themselves. Other buffers are copied.

    Args:
        model: the network that is trained.
        decay: the share of the average that stays at each step, once it has warmed up.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self._values = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps, from 1."""
        weight = 1 - warmed_decay(self.decay, step)
        averaged: tuple[list[Tensor], list[Tensor]] = [], []
        for name, tensor in _tensors(self.model).items():
            value = self._values[name]
            if value.is_floating_point():
                averaged[0].append(value)
                averaged[1].append(tensor.detach())
            else:
                value.copy_(tensor)
        torch._foreach_lerp_(*averaged, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the average while the block runs; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the average of a checkpoint, by the names of the network's tensors."""
        with self.applied():
            self.model.load_state_dict(state)

    def _swap(self) -> None:
        for name, tensor in _tensors(self.model).items():
            tensor.data, self._values[name] = self._values[name], tensor.data


def warmed_decay(decay: float, step: int) -> float:
    """Return the decay at a step.

    Examples:
        >>> warmed_decay(0.999, 8), warmed_decay(0.999, 10**6)
        (0.5, 0.999)
    """
    return min(decay, (1 + step) / (10 + step))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
