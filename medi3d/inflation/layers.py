"""What single layers need beyond the table of functions: a module in their place, or hooks.

Hooks are objects that hold the shared `HiddenDepth`, so deepcopy and pickle keep them.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medi3d.errors import InflationError
from medi3d.inflation.convolution import convolve_volume
from medi3d.inflation.functions import Volumetric
from medi3d.inflation.hidden import HiddenDepth
from medi3d.inflation.pooling import pool_depth
from medi3d.inflation.profiles import PROFILES, inflate_kernel
from medi3d.inflation.window import DepthLayer, Margins, take_taps

PROFILE_TAPS = 3


class StandardizedConv(nn.Module):
    """A weight-standardised convolution (arXiv:1903.10520; scaled: arXiv:2101.08692) with an inflated kernel.

    The standard deviation and mean are those of the kernel's sum over depth, w̄ = Σ_t W_t, and each tap is
    (W_t − mean(w̄) / T) · gain / std(w̄): the taps' sum is the standardised 2D kernel, whatever the depth profile.

    Args:
        conv: timm's StdConv2d, ScaledStdConv2d, or one of them with ``same`` padding.
        taps: extent T of the kernel along depth.
        init: name of the depth profile.
    """

    def __init__(self, conv: Any, taps: int, init: str) -> None:
        super().__init__()
        weight = inflate_kernel(conv.weight.detach(), taps, init)
        self.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        self.bias = conv.bias
        self.gain = getattr(conv, "gain", None)
        self.scale = float(getattr(conv, "scale", 1.0))
        self.eps = float(conv.eps)
        self.same_pad = bool(getattr(conv, "same_pad", False))
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.groups = conv.padding, conv.groups
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.training = conv.training

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W) with hidden depth."""
        variance, mean = torch.var_mean(self.weight.sum(2), (1, 2, 3), correction=0, keepdim=True)  # (O, 1, 1, 1)
        factor = (variance + self.eps).rsqrt() * self.scale
        if self.gain is not None:
            factor = factor * self.gain
        weight = (self.weight - mean[..., None] / self.weight.shape[2]) * factor[..., None]
        if self.same_pad:
            x = F.pad(x, (*_same_margins(self, x, 1), *_same_margins(self, x, 0)))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SameConv(nn.Module):
    """timm's Conv2dSame: TensorFlow's dynamic padding, which it pads along with the depth in one copy."""

    def __init__(self, conv: Any, depth: HiddenDepth) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.kernel_size, self.stride, self.dilation, self.groups = (
            conv.kernel_size,
            conv.stride,
            conv.dilation,
            conv.groups,
        )
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.depth = depth
        self.training = conv.training

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W) with hidden depth."""
        plane = _same_margins(self, x, 0), _same_margins(self, x, 1)
        settings = self.stride, plane, self.dilation, self.groups
        output: Tensor = convolve_volume(self.depth, x, self.weight, self.bias, *settings)
        return output


def _same_margins(conv: Any, x: Tensor, axis: int) -> Margins:
    window = DepthLayer(conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis])
    return window.margins(x.shape[2 + axis])


class MultiheadAttention(nn.Module):
    """nn.MultiheadAttention in calls that have a volumetric form: PyTorch's own function hides what it calls.

    Args:
        attention: the 2D network's; its parameters keep their names.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.num_heads, self.dropout = attention.num_heads, float(attention.dropout)
        self.batch_first = attention.batch_first
        self.training = attention.training

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = True, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend from (B, N, C) to (B, M, C), or (N, B, C) without ``batch_first``.

        Raises:
            InflationError: the weights are asked for, or a mask that means what to leave out.
        """
        if need_weights:
            raise InflationError(
                "weights of joint attention (need_weights=True) are of all pairs of slices; ask for none"
            )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # here True means to leave out, there to attend
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = [tensor if self.batch_first else tensor.transpose(0, 1) for tensor in (query, key, value)]
        queries, keys, values = (
            F.linear(tensor, weight, bias).view(*tensor.shape[:2], self.num_heads, -1).transpose(1, 2)
            for tensor, weight, bias in zip(inputs, weights, biases, strict=True)
        )  # (B, heads, N, d)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask, dropout).transpose(1, 2).flatten(-2)
        output: Tensor = self.out_proj(attended)
        return (output if self.batch_first else output.transpose(0, 1)), None


class PlanLayers:
    """Around a module: what the depth plan says of the layers that its own code calls."""

    def __init__(self, depth: HiddenDepth, layers: list[DepthLayer]) -> None:
        self.depth, self.layers = depth, layers

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the module."""
        self.depth.layers.append(list(self.layers))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After it."""
        self.depth.layers.pop()


class Reenter:
    """Around a block: enter the hidden axis where the backward pass runs the block again, as checkpointing does."""

    def __init__(self, depth: HiddenDepth) -> None:
        self.depth = depth
        self.left: ExitStack | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the block."""
        if self.depth.slices == 0 and any(self.depth.is_hidden(value) for value in args):
            self.left = ExitStack()
            self.left.enter_context(self.depth.entered())
            self.left.enter_context(Volumetric(self.depth))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After it, also where it raised."""
        if self.left is not None:
            self.left.close()
            self.left = None


class RaiseFlag:
    """Around a module: a flag of `HiddenDepth` that holds while it runs.

    Args:
        depth: the hidden axes.
        flag: ``"contracts_positions"`` for linear attention, whose products sum over positions, and so over the volume;
            ``"within_slice"`` for a module whose functions must all act within their slice.
    """

    def __init__(self, depth: HiddenDepth, flag: str) -> None:
        self.depth, self.flag = depth, flag

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the module."""
        setattr(self.depth, self.flag, True)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After it."""
        setattr(self.depth, self.flag, False)


class MixNeighbours:
    """Before a layer that mixes all positions of a slice: x_d becomes Σ_t p_t · x_{d+t}.

    The profile p is a parameter of the layer, ``depth_profile``, shared by all channels.
    """

    def __init__(self, module: nn.Module, depth: HiddenDepth) -> None:
        self.depth = depth
        module.register_parameter("depth_profile", nn.Parameter(PROFILES[depth.init](PROFILE_TAPS).float()))

    def __call__(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Mix the first argument."""
        if not self.depth.is_hidden(args[0]):
            return args
        self.depth.mixes = True
        x = self.depth.reveal(self.depth.settle(args[0]), 0)  # (D, …)
        layer = DepthLayer(len(module.depth_profile))
        before, after = layer.margins(x.shape[0])
        x = torch.cat([x[:1]] * before + [x] + [x[-1:]] * after)
        taps = zip(module.depth_profile.to(x.dtype), take_taps(x, layer, axis=0), strict=True)
        mixed = torch.stack([weight * tap for weight, tap in taps]).sum(0)
        return (self.depth.hide(mixed, 0), *args[1:])


class ShrinkDepth:
    """Before a layer that moves blocks of positions to channels: as many slices are averaged."""

    def __init__(self, depth: HiddenDepth, factor: int) -> None:
        self.depth, self.factor = depth, factor

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Average the first argument's slices by blocks."""
        if not self.depth.is_hidden(args[0]) or self.depth.within_slice:
            return args
        x = self.depth.reveal(self.depth.settle(args[0]), 2)
        layer = DepthLayer(self.factor, self.factor)
        return (self.depth.hide(pool_depth(self.depth, x, layer, "mean"), 2), *args[1:])
