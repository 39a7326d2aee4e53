"""Layers that the table of functions is not enough for: a row a layer, by class name, so that no zoo is imported.

A row is found along the base classes of a module. It gets the 2D module (a copy, free to change) and the `Conversion`,
and returns the module to put in its place, or the same one with inflated weights or hooks. To add a layer, register a
converter under its class name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from medi3d.inflation.convolution import as_pair, longer_axis
from medi3d.inflation.hidden import HiddenDepth
from medi3d.inflation.layers import (
    MixNeighbours,
    MultiheadAttention,
    RaiseFlag,
    Reenter,
    SameConv,
    ShrinkDepth,
    StandardizedConv,
)
from medi3d.inflation.profiles import inflate_kernel, inflate_transposed_kernel
from medi3d.inflation.window import DepthLayer
from medi3d.registry import Registry


@dataclass
class Conversion:
    """What the converters of one network share."""

    depth: HiddenDepth
    planned: dict[str, list[DepthLayer]] = field(default_factory=dict)
    path: str = ""
    done: dict[int, nn.Module] = field(default_factory=dict)

    @property
    def init(self) -> str:
        """Name of the depth profile."""
        return self.depth.init

    def taps(self, kernel_size: tuple[int, ...]) -> int:
        """Return the extent along depth of a kernel of the layer at hand."""
        planned = self.planned.get(self.path)
        return planned[0].size if planned else max(kernel_size)


class Unsupported(Exception):
    """Why a layer has no exact 3D form; becomes an InflationError that names the layer."""


Converter: TypeAlias = Callable[[Any, Conversion], nn.Module]

CONVERTERS: Registry[Converter] = Registry("layer")


@CONVERTERS.register("Conv2d")
def _convolution(module: nn.Conv2d, conversion: Conversion) -> nn.Module:
    if max(module.kernel_size) > 1:
        taps = conversion.taps(module.kernel_size)
        weight = inflate_kernel(module.weight.detach(), taps, conversion.init)
        _set_weight(module, weight.contiguous(memory_format=torch.channels_last_3d))
    return module


@CONVERTERS.register("Conv2dSame")
def _same_convolution(module: nn.Conv2d, conversion: Conversion) -> nn.Module:
    return SameConv(_convolution(module, conversion), conversion.depth)


def _blocks(module: nn.Module, conversion: Conversion) -> nn.Module:
    for block in module.children():
        hook = Reenter(conversion.depth)
        block.register_forward_pre_hook(hook.enter)
        block.register_forward_hook(hook.leave, always_call=True)
    return module


for _name in ("Sequential", "ModuleList", "ModuleDict"):
    CONVERTERS.add(_name, _blocks)


@CONVERTERS.register("ConvMlp")
def _fully_connected(module: nn.Module, conversion: Conversion) -> nn.Module:
    """Of VGG: 7×7×7 taps would be 700 million weights; each slice has its own answer, and they are averaged."""
    conversion.planned.setdefault(f"{conversion.path}.fc1", [DepthLayer(1)])
    return module


@CONVERTERS.register("ConvTranspose2d")
def _transposed_convolution(module: nn.ConvTranspose2d, conversion: Conversion) -> nn.Module:
    axis = longer_axis(as_pair(module.kernel_size))
    planned = conversion.planned.get(conversion.path, [DepthLayer(module.kernel_size[axis], module.stride[axis])])
    taps, stride = planned[0].size, planned[0].stride
    if taps < stride:
        raise Unsupported(f"its kernel of {taps} cannot fill the slices of stride {stride}")
    _set_weight(module, inflate_transposed_kernel(module.weight.detach(), taps, stride, conversion.init))
    return module


def _set_weight(module: nn.Conv2d | nn.ConvTranspose2d, weight: torch.Tensor) -> None:
    # Channels-last like the volumes: a convolution would otherwise convert its weight and gradient at every step.
    module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)


def _standardized_convolution(module: Any, conversion: Conversion) -> nn.Module:
    return StandardizedConv(module, conversion.taps(module.kernel_size), conversion.init)


for _name in ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"):
    CONVERTERS.add(_name, _standardized_convolution)


@CONVERTERS.register("MultiheadAttention")
def _multihead_attention(module: nn.MultiheadAttention, conversion: Conversion) -> nn.Module:
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        raise Unsupported("keys of another width than queries, bias_k and add_zero_attn have no joint form here")
    return MultiheadAttention(module)


@CONVERTERS.register("BlurPool2d")
def _blur(module: nn.Module, conversion: Conversion) -> nn.Module:
    """The blur is separable: along depth it is its own marginal."""
    kernel = module.get_buffer("filt")  # (C, 1, k, k)
    if module.channels is not None:
        module.filt = kernel.sum((0, 1, 3))[:, None, None] * kernel[:, :, None] / kernel.sum()  # (C, 1, T, k, k)
    return module


def _flagged(flag: str) -> Converter:
    def convert(module: nn.Module, conversion: Conversion) -> nn.Module:
        hook = RaiseFlag(conversion.depth, flag)
        module.register_forward_pre_hook(hook.enter)
        module.register_forward_hook(hook.leave)
        return module

    return convert


for _name in (
    *("XCA", "CrossCovarianceAttn", "ChannelAttention", "ChannelAttentionV2", "FactorAttnConvRelPosEnc", "LiteMLA"),
    *("HSMSSD", "LambdaLayer", "GlobalContext", "BatNonLocalAttn"),
):
    CONVERTERS.add(_name, _flagged("contracts_positions"))


CONVERTERS.add("OutlookAttention", _flagged("within_slice"))


def _blocks_to_channels(module: nn.Module, conversion: Conversion) -> nn.Module:
    factor = getattr(module, "bs", 2)
    module.register_forward_pre_hook(ShrinkDepth(conversion.depth, factor))
    return module


for _name in ("PatchMerging", "PatchMergingV2", "SpaceToDepth"):
    CONVERTERS.add(_name, _blocks_to_channels)

_POSITION_MIXERS = {
    "MixerBlock": "mlp_tokens",
    "ResBlock": "linear_tokens",
    "SpatialGatingUnit": "proj",
    "RNNBase": "",
}
"""Class → its child that mixes all positions of a slice ("": itself)."""


def _position_mixer(module: nn.Module, conversion: Conversion) -> nn.Module:
    name = next(_POSITION_MIXERS[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in _POSITION_MIXERS)
    mixer = module.get_submodule(name)
    mixer.register_forward_pre_hook(MixNeighbours(mixer, conversion.depth))
    return module


for _name in _POSITION_MIXERS:
    CONVERTERS.add(_name, _position_mixer)
