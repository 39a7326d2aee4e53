"""The layers of a folded network that look along depth.

Only convolutions are replaced, because their weights change. What every other layer does along depth is a hook on the
2D layer, which stays as it is and keeps its names: before it (`TakeEvery`, `ReduceDepth`), after it (`PoolDepth`), or
around it (`PerVolume`, `Tall`). Hooks are objects that hold the shared `Stack`, so deepcopy and pickle keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medi3d.inflation.convolve import conv3d
from medi3d.inflation.fold import Stack, channels_last, split_first
from medi3d.inflation.profiles import inflate_kernel
from medi3d.inflation.window import DepthPadding, DepthWindow, Margins, pad_volume
from medi3d.types import IntTriple

Reduction: TypeAlias = Callable[[list[Tensor]], Tensor]


class FoldedConv(nn.Module):
    """A 2D convolution turned 3D, on folded slices: (B·D, I, H, W) → (B·D', O, H', W').

    Args:
        conv: the 2D convolution; its bias is shared, its weight becomes (O, I/groups, T, kH, kW).
        window: what the convolution does along depth.
        stack: how many volumes the slices belong to.
        init: name of the depth profile.
        depth_padding: what lies beyond the first and last slice. In plane the padding stays that of ``conv``.
    """

    def __init__(
        self, conv: nn.Conv2d, window: DepthWindow, stack: Stack, *, init: str, depth_padding: DepthPadding
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size: IntTriple = (window.size, conv.kernel_size[0], conv.kernel_size[1])
        self.stride: IntTriple = (window.stride, conv.stride[0], conv.stride[1])
        self.dilation: IntTriple = (window.dilation, conv.dilation[0], conv.dilation[1])
        self.padding = conv.padding
        self.padding_mode = conv.padding_mode
        self.window, self.stack, self.depth_padding = window, stack, depth_padding
        weight = inflate_kernel(conv.weight.detach(), window.size, init)
        # Channels-last like the volumes: a convolution would otherwise convert its weight and gradient at every step.
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
        self.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        self.bias = conv.bias
        self.training = conv.training

    def forward(self, slices: Tensor) -> Tensor:
        """Convolve folded slices (B·D, I, H, W)."""
        height, width = self._in_plane(slices, 0), self._in_plane(slices, 1)
        if self.padding_mode != "zeros":
            slices = F.pad(slices, (*width, *height), self.padding_mode)
            height = width = (0, 0)
        volume = self.stack.unfold(slices)  # (B·D, I, H, W) → (B, I, D, H, W)
        depth, plane = self.window.padding(volume.shape[2]), (height[0], width[0])
        if height[0] == height[1] and width[0] == width[1]:  # the convolution pads by itself, without a copy
            height = width = (0, 0)
        else:
            plane = (0, 0)
        volume = channels_last(pad_volume(volume, depth, self.depth_padding, height=height, width=width))
        output = conv3d(volume, self.weight, self.bias, self.stride, (0, *plane), self.dilation, self.groups)
        return self.stack.fold(channels_last(output))

    def _in_plane(self, slices: Tensor, axis: int) -> Margins:
        size, stride, dilation = self.kernel_size[1 + axis], self.stride[1 + axis], self.dilation[1 + axis]
        if self.window.same:
            return DepthWindow(size, stride, dilation, same=True).padding(slices.shape[2 + axis])
        return static_padding(self.padding, size, dilation, axis)

    def extra_repr(self) -> str:
        """Describe the layer as PyTorch's convolutions do."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={self.dilation}, groups={self.groups}, depth_padding={self.depth_padding}"
        )


def static_padding(padding: str | tuple[int, ...], size: int, dilation: int, axis: int) -> Margins:
    """Return PyTorch's padding (before, after) of one axis of a 2D convolution."""
    if padding == "valid":
        return 0, 0
    if isinstance(padding, str):  # "same"
        total = dilation * (size - 1)
        return total // 2, total - total // 2
    return padding[axis], padding[axis]


class TakeEvery:
    """Before a layer: keep every ``stride``-th slice, as a 1×1 convolution with a stride does in plane."""

    def __init__(self, stack: Stack, stride: int) -> None:
        self.stack, self.stride = stack, stride

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Subsample the first argument, slices (B·D, C, H, W), along depth."""
        volume = self.stack.unfold(args[0])[:, :, :: self.stride]
        return (self.stack.fold(volume), *args[1:])


class ReduceDepth:
    """Before an adaptive pool: reduce depth to one, so that the pool's windows span the whole of it."""

    def __init__(self, stack: Stack, reduction: str) -> None:
        self.stack, self.reduction = stack, reduction

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Turn slices (B·D, C, H, W) into (B, C, H, W)."""
        volume = self.stack.unfold(args[0])
        return (volume.mean(2) if self.reduction == "mean" else volume.amax(2), *args[1:])


class PoolDepth:
    """After a 2D pool: pool along depth too, as a box is separable. Ends are replicated; a maximum does not see it."""

    def __init__(self, stack: Stack, window: DepthWindow, reduction: str) -> None:
        self.stack, self.window, self.reduction = stack, window, reduction

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Pool slices (B·D, C, H, W) to (B·D', C, H, W)."""
        volume = self.stack.unfold(output)
        volume = pad_volume(volume, self.window.padding(volume.shape[2]))
        window = self.window
        last = (volume.shape[2] - window.extent) // window.stride * window.stride
        starts = range(0, window.extent, window.dilation)
        taps = [volume[:, :, start : start + last + 1 : window.stride] for start in starts]
        if self.reduction == "max":
            return self.stack.fold(reduce(torch.maximum, taps))
        return self.stack.fold(reduce(torch.add, taps) / window.size)


class PerVolume:
    """Around a layer that acts on the first axis only, as stochastic depth does: it sees (B, D, C, H, W)."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Split the first axis (B·D, …) → (B, D, …)."""
        return (split_first(args[0], self.stack.volumes), *args[1:])

    def leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Merge the first axes (B, D, …) → (B·D, …)."""
        return output.flatten(0, 1)


class Tall:
    """Around a layer that treats all positions alike: it sees (B, C, D·H, W), so that its statistics are a volume's.

    In channels-last memory this is a view. It fits squeeze-excitation, group and instance norms, pools to one value.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.depth = 1

    def enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Put the slices of a volume below each other: (B·D, C, H, W) → (B, C, D·H, W)."""
        volume = self.stack.unfold(args[0])
        self.depth = volume.shape[2]
        return (volume.flatten(2, 3), *args[1:])

    def leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Undo `enter`, unless the output holds one value for the whole volume."""
        if output.ndim != 4 or output.shape[2] != args[0].shape[2] or output.shape[3] != args[0].shape[3]:
            return output
        return self.stack.fold(output.view(*output.shape[:2], self.depth, -1, output.shape[3]))
