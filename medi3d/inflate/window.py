"""What a layer does along depth: which slices a window of it covers, and how the volume is extended at its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

DepthPadding: TypeAlias = Literal["replicate", "zeros"]


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

    def padding(self, depth: int) -> tuple[int, int]:
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


class _ReplicateDepth(torch.autograd.Function):
    """Repeat the end slices. The backward pass adds to those only, where that of cat adds three volumes."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, before: int, after: int) -> Tensor:
        ctx.padding = before, after
        return torch.cat([volume[:, :, :1]] * before + [volume] + [volume[:, :, -1:]] * after, dim=2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        before, after = ctx.padding
        end = grad.shape[2] - after
        inner = grad[:, :, before:end].clone(memory_format=torch.channels_last_3d)
        if before:
            inner[:, :, 0] += grad[:, :, :before].sum(2)
        if after:
            inner[:, :, -1] += grad[:, :, end:].sum(2)
        return inner, None, None


def pad_depth(volume: Tensor, before: int, after: int, mode: DepthPadding) -> Tensor:
    """Extend a volume (B, C, D, H, W) along depth by its end slices, or by zeros."""
    if before == after == 0:
        return volume
    if mode == "zeros":
        return F.pad(volume, (0, 0, 0, 0, before, after))
    return _ReplicateDepth.apply(volume, before, after)  # type: ignore[no-any-return]
