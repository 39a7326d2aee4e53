"""The two laws that an inflated network obeys, measured: exact on equal slices, and depth mixes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medi3d.types import IntTriple

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exactness:
    """How well a network obeys the laws of inflation.

    Args:
        relative_error: on a volume of equal slices, the largest difference between the 3D network at any output depth
            and the 2D network on the slice, over the largest magnitude of that output; float32.
        mixing: the part of two neighbouring slices' effect that only both together have (second mixed difference over
            first differences, float64). Zero, to rounding, where slices do not meet, as with fresh ``center`` kernels
            in a network without pools, and in a network that is linear.
    """

    relative_error: float
    mixing: float

    @property
    def is_exact(self) -> bool:
        """Whether the error is within 1e-4."""
        return self.relative_error <= TOLERANCE

    @property
    def mixes(self) -> bool:
        """Whether the effect of two slices together is more than rounding."""
        return self.mixing > 1e-9


def measure_exactness(
    model2d: nn.Module, model3d: nn.Module, *, in_channels: int = 3, shape: IntTriple = (32, 64, 48), seed: int = 0
) -> Exactness:
    """Compare an inflated network with the 2D network that it came from, both in evaluation mode.

    Args:
        model2d: the network that takes (B, C, H, W).
        model3d: its inflated form.
        in_channels: C.
        shape: (D, H, W) of the volumes to try. To show mixing, D / 2 must be a multiple of the size of the patches
            that a network cuts, because the two slices at the middle are compared.
        seed: of the random intensities.

    Example:
        >>> from medi3d.inflation import inflate
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        >>> measure_exactness(net, inflate(net), shape=(5, 6, 7)).is_exact
        True
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), _evaluating(model2d), _evaluating(model3d):
        slices = torch.randn(2, in_channels, *shape[1:], generator=generator)
        volume = slices[:, :, None].expand(-1, -1, shape[0], -1, -1)
        error = _relative_error(list(_tensors(model3d(volume))), list(_tensors(model2d(slices))))
        mixing = _mixing(copy.deepcopy(model3d).double(), torch.randn(1, in_channels, *shape, generator=generator))
    return Exactness(error, mixing)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def _relative_error(outputs3d: list[Tensor], outputs2d: list[Tensor]) -> float:
    errors = []
    for volume, plane in zip(outputs3d, outputs2d, strict=True):
        expected = plane[:, :, None] if plane.ndim == 4 else plane
        errors.append(float((volume - expected).abs().max() / expected.abs().max().clamp_min(1e-30)))
    return max(errors)


def _mixing(model: nn.Module, volume: Tensor) -> float:
    volume = volume.double()
    middle = volume.shape[2] // 2
    left, right, both = volume.clone(), volume.clone(), volume.clone()
    for changed, depths in ((left, [middle - 1]), (right, [middle]), (both, [middle - 1, middle])):
        changed[:, :, depths] += 1.0
    mixings = []
    for f, f_left, f_right, f_both in zip(*(_tensors(model(x)) for x in (volume, left, right, both)), strict=True):
        first = max(float((f_left - f).abs().max()), float((f_right - f).abs().max()))
        second = float((f_both - f_left - f_right + f).abs().max())
        mixings.append(second / first if first > 0 else 0.0)
    return max(mixings)
