"""How each layer of a 2D network gets depth: a row a layer, by class name, so that no model zoo is imported.

To add a layer, register a converter under its class name: it gets the 2D layer (a copy, free to change) and the
`Conversion`, and returns the layer to put in its place, or the same one with hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from torch import nn

from medi3d.inflation.fold import Stack
from medi3d.inflation.layers import FoldedConv, PerVolume, PoolDepth, ReduceDepth, TakeEvery, Tall, static_padding
from medi3d.inflation.window import DepthPadding, DepthWindow
from medi3d.registry import Registry


@dataclass
class Conversion:
    """What the converters of one network share."""

    init: str
    depth_padding: DepthPadding
    stack: Stack = field(default_factory=Stack)
    mixes_depth: bool = False
    done: dict[int, nn.Module] = field(default_factory=dict)

    def note(self, window: DepthWindow) -> None:
        """Remember whether windows overlap: only then does a slice reach the outputs at other depths."""
        self.mixes_depth |= window.extent > window.stride


class Unsupported(Exception):
    """Why a layer has no exact 3D form; becomes an InflationError that names the layer."""


Converter: TypeAlias = Callable[[Any, Conversion], nn.Module]

CONVERTERS: Registry[Converter] = Registry("layer")


def _keep(module: nn.Module, conversion: Conversion) -> nn.Module:
    """Acts on each position by itself: right on folded slices as it is."""
    return module


for _name in (
    *("Linear", "PReLU", "BatchNorm2d", "SyncBatchNorm", "BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNorm2d"),
    *("FrozenBatchNormAct2d", "LayerNorm2d", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d"),
    *("LayerScale", "LayerScale2d", "Scale"),
):
    CONVERTERS.add(_name, _keep)


@CONVERTERS.register("LayerNorm")
def _layer_norm(module: nn.LayerNorm, conversion: Conversion) -> nn.Module:
    if len(module.normalized_shape) != 1:
        raise Unsupported(f"it normalises over positions (normalized_shape={tuple(module.normalized_shape)})")
    return module


@CONVERTERS.register("Conv2d")
def _conv(module: nn.Conv2d, conversion: Conversion) -> nn.Module:
    return _inflate_conv(module, conversion, same=False)


@CONVERTERS.register("Conv2dSame")
def _conv_same(module: nn.Conv2d, conversion: Conversion) -> nn.Module:
    """timm's convolution with TensorFlow's dynamic padding."""
    return _inflate_conv(module, conversion, same=True)


def _longer_axis(kernel_size: tuple[int, ...]) -> int:
    """Return the axis of a 2D kernel that depth is treated like."""
    return 0 if kernel_size[0] >= kernel_size[1] else 1


def _inflate_conv(module: nn.Conv2d, conversion: Conversion, *, same: bool) -> nn.Module:
    axis = _longer_axis(module.kernel_size)
    size, stride, dilation = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
    before, after = (0, 0) if same else static_padding(module.padding, size, dilation, axis)
    if size == 1 and before == 0:
        if stride > 1:
            module.register_forward_pre_hook(TakeEvery(conversion.stack, stride))
        return module
    window = DepthWindow(size, stride, dilation, before, after, same)
    conversion.note(window)
    return FoldedConv(module, window, conversion.stack, init=conversion.init, depth_padding=conversion.depth_padding)


def _pair(setting: int | tuple[int, ...]) -> tuple[int, ...]:
    return (setting, setting) if isinstance(setting, int) else setting


def _inflate_pool(module: nn.MaxPool2d | nn.AvgPool2d, conversion: Conversion, *, same: bool) -> nn.Module:
    if getattr(module, "return_indices", False):
        raise Unsupported("indices of a 2D pool (return_indices=True) have no meaning in a volume")
    axis = _longer_axis(_pair(module.kernel_size))
    size, stride = _pair(module.kernel_size)[axis], _pair(module.stride)[axis]
    dilation = _pair(module.dilation)[axis] if isinstance(module, nn.MaxPool2d) else 1
    padding = 0 if same else _pair(module.padding)[axis]
    window = DepthWindow(size, stride, dilation, padding, padding, same, module.ceil_mode)
    conversion.note(window)
    reduction = "max" if isinstance(module, nn.MaxPool2d) else "mean"
    module.register_forward_hook(PoolDepth(conversion.stack, window, reduction))
    return module


def _pool(module: nn.MaxPool2d | nn.AvgPool2d, conversion: Conversion) -> nn.Module:
    return _inflate_pool(module, conversion, same=False)


def _pool_same(module: nn.MaxPool2d | nn.AvgPool2d, conversion: Conversion) -> nn.Module:
    """timm's pools with TensorFlow's dynamic padding."""
    return _inflate_pool(module, conversion, same=True)


for _name in ("MaxPool2d", "AvgPool2d"):
    CONVERTERS.add(_name, _pool)
for _name in ("MaxPool2dSame", "AvgPool2dSame"):
    CONVERTERS.add(_name, _pool_same)


def _adaptive_pool(module: Any, conversion: Conversion) -> nn.Module:
    if None in _pair(module.output_size):
        raise Unsupported("it keeps the size of one axis (output_size has a None), and depth has none to go by")
    reduction = "max" if isinstance(module, nn.AdaptiveMaxPool2d) else "mean"
    module.register_forward_pre_hook(ReduceDepth(conversion.stack, reduction))
    return cast(nn.Module, module)


for _name in ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d"):
    CONVERTERS.add(_name, _adaptive_pool)


def _per_volume(module: nn.Module, conversion: Conversion) -> nn.Module:
    view = PerVolume(conversion.stack)
    module.register_forward_pre_hook(view.enter)
    module.register_forward_hook(view.leave)
    return module


for _name in ("DropPath", "StochasticDepth"):
    CONVERTERS.add(_name, _per_volume)


def _tall(module: nn.Module, conversion: Conversion) -> nn.Module:
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and max(_pair(layer.kernel_size)) != 1:
            raise Unsupported(f"its layer {name!r} looks at neighbours, which a gate over the whole volume must not")
    view = Tall(conversion.stack)
    module.register_forward_pre_hook(view.enter)
    module.register_forward_hook(view.leave)
    return module


for _name in (
    *("GroupNorm", "GroupNorm1", "GroupNormAct", "GroupNorm1Act", "InstanceNorm2d", "Dropout2d"),
    *("SqueezeExcite", "SEModule", "EffectiveSEModule", "SqueezeExcitation"),
    *("FastAdaptiveAvgPool", "FastAdaptiveMaxPool", "FastAdaptiveAvgMaxPool", "FastAdaptiveCatAvgMaxPool"),
):
    CONVERTERS.add(_name, _tall)
