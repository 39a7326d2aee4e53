"""What a layer does along depth: which slices a window of it covers, and how the volume is extended at its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

DepthPadding: TypeAlias = Literal["replicate", "zeros"]
Margins: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class DepthWindow:
    """A sliding window along depth, with the settings that a 2D layer has in plane.

    Args:
        size: number of taps.
        stride: slices from one window to the next.
        dilation: slices from one tap to the next.
        before: slices added before the first one.
        after: slices added after the last one.
        same: TensorFlow's dynamic padding, output depth ⌈D/stride⌉, instead of ``before`` and ``after``.
        ceil_mode: let the last window hang over the end, as pools do.
    """

    size: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    same: bool = False
    ceil_mode: bool = False

    @property
    def extent(self) -> int:
        """Slices from the first tap to the last, both counted."""
        return self.dilation * (self.size - 1) + 1

    def padding(self, depth: int) -> Margins:
        """Return how many slices to add before and after a volume of ``depth`` slices; at least one window fits then.

        Example:
            >>> DepthWindow(3, stride=2, same=True).padding(6)
            (0, 1)
        """
        before, after = self.before, self.after
        if self.same:
            total = max((-(-depth // self.stride) - 1) * self.stride + self.extent - depth, 0)
            before, after = total // 2, total - total // 2
        elif self.ceil_mode:
            after += self._overhang(depth)
        missing = max(self.extent - depth - before - after, 0)
        return before + missing // 2, after + missing - missing // 2

    def _overhang(self, depth: int) -> int:
        padded = depth + self.before + self.after
        windows = -(-(padded - self.extent) // self.stride) + 1
        if (windows - 1) * self.stride >= depth + self.before:  # PyTorch drops a window that starts in the padding
            windows -= 1
        return max((windows - 1) * self.stride + self.extent - padded, 0)


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


def pad_volume(
    volume: Tensor,
    depth: Margins,
    mode: DepthPadding = "replicate",
    *,
    height: Margins = (0, 0),
    width: Margins = (0, 0),
) -> Tensor:
    """Extend a volume (B, C, D, H, W) along depth by its end slices or by zeros, and in plane by zeros.

    Args:
        volume: (B, C, D, H, W).
        depth: how many slices to add (before, after).
        mode: what the added slices hold.
        height: how many rows of zeros to add (before, after).
        width: how many columns of zeros to add (before, after).
    """
    if not any((*depth, *height, *width)):
        return volume
    if mode == "zeros":
        return F.pad(volume, (*width, *height, *depth))
    padded: Tensor = _Replicate.apply(volume, depth, height, width)
    return padded
