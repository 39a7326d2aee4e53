"""What the decoder is built of: convolution, instance norm and activation, in the memory layout that suits a CPU.

On a CPU every map stays in channels-last memory, (B, D, H, W, C): there oneDNN's 3D convolutions train almost twice as
fast as on (B, C, D, H, W), and trilinear enlargement four times (benchmarks/README.md, Training). PyTorch's instance
norm would leave that layout, so its batch norm is taken on one sample after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medi3d.inflation.convolution import channels_last

_SLOPE = 0.01


class ConvBlock(nn.Module):
    """A 3×3×3 convolution of one or two maps side by side, instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.adn = nn.Sequential(OrderedDict(N=nn.InstanceNorm3d(out_channels, affine=True)))

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps (B, C_i, D, H, W) with Σ C_i ``in_channels`` → (B, out_channels, D, H, W)."""
        norm = self.adn.N
        assert isinstance(norm, nn.InstanceNorm3d)
        return normalize_and_activate(_convolve_side_by_side(self.conv, maps), norm)


class PointConv(nn.Conv3d):
    """A 1×1×1 convolution, which on channels-last memory is one matrix product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) → (B, out_channels, D, H, W)."""
        if x.device.type != "cpu":
            return super().forward(x)
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


def _convolve_side_by_side(conv: nn.Conv3d, maps: tuple[Tensor, ...]) -> Tensor:
    """Convolve the concatenation of ``maps``.

    A map that takes no gradient, as the volume itself, is convolved by itself: it adds a channel to 16, and oneDNN
    works on blocks of 16.
    """
    if len(maps) == 2 and not maps[1].requires_grad and torch.is_grad_enabled():
        own = maps[0].shape[1]
        return F.conv3d(maps[0], conv.weight[:, :own], padding=1) + F.conv3d(maps[1], conv.weight[:, own:], padding=1)
    joined: Tensor = conv(maps[0] if len(maps) == 1 else torch.cat(maps, dim=1))
    return joined


def normalize_and_activate(x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
    """Instance norm (Ulyanov et al. 2016, arXiv:1607.08022) and leaky ReLU of (B, C, D, H, W)."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.leaky_relu(norm(x), _SLOPE, inplace=True)
    normalized: Tensor = _NormalizeAndActivate.apply(x, norm.weight, norm.bias, norm.eps)
    return normalized


class _NormalizeAndActivate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = channels_last(x)
        batch, channels, *size = x.shape
        output = x.new_empty(batch, *size, channels).movedim(-1, 1)
        mean, inverse = weight.new_empty(2, batch, channels)
        for n in range(batch):
            torch.ops.aten.native_batch_norm.out(
                *(x[n : n + 1], weight, bias, None, None, True, 0.0, eps),
                out=output[n : n + 1],
                save_mean=mean[n],
                save_invstd=inverse[n],
            )
        F.leaky_relu(output, _SLOPE, inplace=True)
        ctx.save_for_backward(x, weight, output, mean, inverse)
        ctx.eps = eps
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, output, mean, inverse = ctx.saved_tensors
        grad = torch.ops.aten.leaky_relu_backward(channels_last(grads[0]), output, _SLOPE, True)
        gradients = [
            torch.ops.aten.native_batch_norm_backward(
                *(grad[n : n + 1], x[n : n + 1], weight, None, None, mean[n], inverse[n], True, ctx.eps, [True] * 3)
            )
            for n in range(x.shape[0])
        ]
        of_x, of_weight, of_bias = zip(*gradients, strict=True)
        return torch.cat(of_x), torch.stack(of_weight).sum(0), torch.stack(of_bias).sum(0), None
