"""How a volume is extended at its ends, so that a layer with stride s gives ⌈D / s⌉ slices whatever its window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from medi3d.inflation.hidden import is_compiling

DepthPadding: TypeAlias = Literal["replicate", "zeros"]
Margins: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class DepthLayer:
    """A sliding window along depth: what a layer does there.

    Args:
        size: number of taps.
        stride: slices from one window to the next.
        dilation: slices from one tap to the next.
    """

    size: int
    stride: int = 1
    dilation: int = 1

    @property
    def extent(self) -> int:
        """Slices from the first tap to the last, both counted."""
        return self.dilation * (self.size - 1) + 1

    def margins(self, depth: int, before: int = 0) -> Margins:
        """Return how many slices to add before and after a volume, so that ⌈depth / stride⌉ windows fit.

        Args:
            depth: slices of the volume.
            before: slices that the layer's own padding puts in front; with none, both ends get half, as TensorFlow's
                ``same`` padding does.

        Example:
            >>> DepthLayer(3, stride=2).margins(6), DepthLayer(7, stride=2).margins(6, before=3)
            ((0, 1), (3, 2))
        """
        windows = -(-depth // self.stride)
        total = max((windows - 1) * self.stride + self.extent - depth, 0)
        before = min(before, total) if before else total // 2
        return before, total - before


class _Replicate(torch.autograd.Function):
    """Repeat the end slices and put zeros around each, in one copy; the backward pass is one copy too."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, depth: Margins, height: Margins, width: Margins) -> Tensor:
        ctx.inside = tuple(slice(m[0], m[0] + n) for m, n in zip((depth, height, width), volume.shape[2:], strict=True))
        d, h, w = ctx.inside
        sizes = [sum(m) + n for m, n in zip((depth, height, width), volume.shape[2:], strict=True)]
        padded = volume.new_empty(volume.shape[0], *sizes, volume.shape[1]).permute(0, 4, 1, 2, 3)  # channels last
        for rows in (slice(0, h.start), slice(h.stop, None)):
            padded[:, :, :, rows] = 0
        for columns in (slice(0, w.start), slice(w.stop, None)):
            padded[:, :, :, :, columns] = 0
        inner = padded[:, :, :, h, w]
        inner[:, :, d] = volume
        inner[:, :, : d.start] = volume[:, :, :1]
        inner[:, :, d.stop :] = volume[:, :, -1:]
        return padded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d, h, w = ctx.inside
        inner = grads[0][:, :, :, h, w]
        total = inner[:, :, d].clone(memory_format=torch.channels_last_3d)
        if d.start:
            total[:, :, 0] += inner[:, :, : d.start].sum(2)
        if d.stop < inner.shape[2]:
            total[:, :, -1] += inner[:, :, d.stop :].sum(2)
        return total, None, None, None


def extend(
    volume: Tensor,
    depth: Margins,
    mode: str = "replicate",
    *,
    height: Margins = (0, 0),
    width: Margins = (0, 0),
) -> Tensor:
    """Extend a volume (B, C, D, H, W) along depth by its end slices or by zeros, and in plane by zeros.

    Args:
        volume: (B, C, D, H, W), no axis hidden.
        depth: how many slices to add (before, after).
        mode: what they hold: ``"replicate"`` or ``"zeros"``.
        height: how many rows of zeros to add (before, after).
        width: how many columns of zeros to add (before, after).
    """
    if not any((*depth, *height, *width)):
        return volume
    if mode == "zeros":
        return F.pad(volume, (*width, *height, *depth))
    if is_compiling():
        before = volume[:, :, :1].expand(-1, -1, depth[0], -1, -1)
        after = volume[:, :, -1:].expand(-1, -1, depth[1], -1, -1)
        return F.pad(torch.cat([before, volume, after], dim=2), (*width, *height))
    padded: Tensor = _Replicate.apply(volume, depth, height, width)
    return padded


def take_taps(volume: Tensor, layer: DepthLayer, axis: int = 2) -> list[Tensor]:
    """Return, for each tap of a window along ``axis``, the slices that it sees: views of one for each window."""
    last = (volume.shape[axis] - layer.extent) // layer.stride * layer.stride
    starts = range(0, layer.extent, layer.dilation)
    return [volume.movedim(axis, 0)[start : start + last + 1 : layer.stride].movedim(0, axis) for start in starts]
