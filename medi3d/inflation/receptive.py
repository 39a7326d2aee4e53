"""The depth receptive field of a 3D network, measured: which input slices the middle of its outputs depends on.

A gradient of NaN is sent back from the middle slice of an output. NaN survives what a number does not: weights of zero
(so the fields of fresh ``center`` kernels are those that training can fill) and products too small for float32.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medi3d.inflation.running import evaluating, iterate_tensors

DEPTHS = (64, 256, 1024)
"""Depths of the volumes that are tried, until the fields end inside."""


@dataclass(frozen=True)
class DepthField:
    """The input slices that one output's middle slice depends on.

    Args:
        first: the first of them.
        last: the last of them.
        depth: slices of the volume that was tried.
        is_whole: whether the output's first slice depends on the input's last one, as with attention and
            squeeze-excitation: the field is the whole volume, or at least twice the depth that was tried.
    """

    first: int
    last: int
    depth: int
    is_whole: bool = False

    @property
    def slices(self) -> int:
        """How many slices lie between the first and the last, both counted."""
        return self.last - self.first + 1

    @property
    def is_inside(self) -> bool:
        """Whether the field ends within the volume that was tried, so that ``slices`` is its whole size."""
        return self.first > 0 and self.last < self.depth - 1

    def __str__(self) -> str:
        if self.is_whole:
            return "whole volume"
        return f"{self.slices} slices" if self.is_inside else f"≥ {self.slices} slices"


def measure_depth_fields(
    model: nn.Module, *, in_channels: int = 1, plane: tuple[int, int] = (32, 32), max_voxels: int = 2**20
) -> list[DepthField]:
    """Measure the depth receptive field of each output of a network that takes volumes.

    Args:
        model: takes (B, C, D, H, W), gives tensors (B, C', D', H', W') or (B, K), one or several.
        in_channels: C.
        plane: (H, W) of the volumes to try; small, as depth is what matters.
        max_voxels: no deeper volume is tried than has this many voxels a channel; the least deep is always tried.

    Returns:
        One field an output, in the order in which the network gives them.

    Example:
        >>> from medi3d.inflation import inflate
        >>> net = inflate(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 5, padding=2)))
        >>> measure_depth_fields(net, plane=(8, 8))[0].slices
        7
    """
    fields: list[DepthField] = []
    with evaluating(model):
        for depth in DEPTHS:
            if fields and (_is_settled(fields) or depth * plane[0] * plane[1] > max_voxels):
                break
            fields = _measure(model, (1, in_channels, depth, *plane), fields)
    return fields


def _is_settled(fields: list[DepthField]) -> bool:
    """Whether deeper volumes would show nothing new.

    Stages after one that sees the whole volume see it too, and the first stage of a local network sees less than twice
    the least depth. Attention over deeper volumes than needed would cost much memory.
    """
    return all(field.is_inside for field in fields) or (len(fields) > 1 and fields[0].is_whole)


def _measure(model: nn.Module, shape: tuple[int, ...], known: list[DepthField]) -> list[DepthField]:
    """Measure the fields that did not end inside a less deep volume."""
    volume = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fields = []
    for number, output in enumerate(iterate_tensors(model(volume))):
        if known and known[number].is_inside:
            fields.append(known[number])
            continue
        middle = _find_reached(output, volume, output.shape[2] // 2 if output.ndim == 5 else 0)
        field = DepthField(int(middle[0]), int(middle[-1]), shape[2])
        if not field.is_inside:
            ends = _find_reached(output, volume, 0)
            field = dataclasses.replace(field, is_whole=int(ends[-1]) == shape[2] - 1)
        fields.append(field)
    return fields


def _find_reached(output: Tensor, volume: Tensor, depth: int) -> Tensor:
    """Return the slices of a volume that an output depends on at one depth; (B, K) outputs have no depth."""
    seed = torch.zeros_like(output)
    (seed[:, :, depth] if output.ndim == 5 else seed).fill_(torch.nan)
    (gradient,) = torch.autograd.grad(output, volume, seed, retain_graph=True)
    return gradient.isnan().any(dim=(0, 1, 3, 4)).nonzero().flatten()
