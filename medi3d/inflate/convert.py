"""Turn a 2D network into a 3D one: walk its modules and convert each layer by a table.

A layer's row is found by class name along its base classes, so that timm's and torchvision's own layers have rows without an
import of either. A subclass that overrides ``forward`` is not its base class and needs a row of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from medi3d.errors import ConfigError, InflationError
from medi3d.inflate.fold import Inflated, Stack
from medi3d.inflate.layers import FoldedConv, PerVolume, PoolDepth, ReduceDepth, TakeEvery, Tall, static_padding
from medi3d.inflate.profiles import PROFILES
from medi3d.inflate.window import DepthPadding, DepthWindow
from medi3d.registry import Registry, unknown_name_message

DEPTH_PADDINGS: tuple[DepthPadding, ...] = ("replicate", "zeros")


@dataclass
class Conversion:
    """What the converters of one network share."""

    init: str
    depth_padding: DepthPadding
    stack: Stack = field(default_factory=Stack)
    mixes_depth: bool = False
    done: dict[int, nn.Module] = field(default_factory=dict)

    def note(self, window: DepthWindow) -> None:
        """Remember whether any window overlaps the next one: only then does a slice reach the outputs at other depths."""
        self.mixes_depth |= window.extent > window.stride


class Unsupported(Exception):  # noqa: N818 - a reason, turned into InflationError with the module's path
    """Why a layer has no exact 3D form."""


Converter: TypeAlias = Callable[[Any, Conversion], nn.Module]

CONVERTERS: Registry[Converter] = Registry("layer")


def inflate(model: nn.Module, *, init: str = "mean", depth_padding: DepthPadding = "replicate") -> nn.Module:
    """Turn a 2D convolutional network into a 3D network that gives the same answer on a volume of equal slices.

    Kernels N×N become N×N×N (the larger side where they are not square, with that axis's stride, dilation and padding), pools
    get depth as well, squeeze-excitation and global pools span the volume. Input depth may be any D ≥ 1. Parameter names
    stay, below the prefix ``body.``.

    Args:
        model: a 2D network, or a list-giving feature extractor; it is copied, not changed.
        init: name of a row of `medi3d.inflate.PROFILES`: how kernels are shared out over depth.
        depth_padding: what convolutions see beyond the first and last slice. Only ``"replicate"`` is exact at the ends.

    Returns:
        A module that takes (B, C, D, H, W) and gives what ``model`` gives, feature maps as (B, C, D, H, W).

    Raises:
        InflationError: a layer has no exact 3D form here, or nothing in the network would mix slices.
        ConfigError: unknown ``init`` or ``depth_padding``.

    Example:
        >>> import torch
        >>> net = inflate(nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU()), init="center")
        >>> net(torch.zeros(2, 1, 5, 6, 8)).shape
        torch.Size([2, 4, 3, 3, 4])
    """
    _ = PROFILES[init]
    if depth_padding not in DEPTH_PADDINGS:
        raise ConfigError(unknown_name_message("depth padding", depth_padding, DEPTH_PADDINGS))
    conversion = Conversion(init, depth_padding)
    body = _convert(copy.deepcopy(model), "", conversion)
    if not conversion.mixes_depth:
        raise InflationError(
            f"{type(model).__name__} has no convolution or pool whose window reaches over the next one: its slices would never mix"
        )
    return Inflated(body, conversion.stack)


def _convert(module: nn.Module, path: str, conversion: Conversion) -> nn.Module:
    if id(module) in conversion.done:
        return conversion.done[id(module)]
    try:
        converter = _find_converter(module)
        if converter is None:
            _check_unknown(module)
        converted = module if converter is None else converter(module, conversion)
    except Unsupported as reason:
        where = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
        raise InflationError(f"cannot inflate {where}: {reason}") from None
    conversion.done[id(module)] = converted
    if converted is module:
        for name, child in module.named_children():
            module._modules[name] = _convert(child, f"{path}.{name}" if path else name, conversion)
    return converted


def _find_converter(module: nn.Module) -> Converter | None:
    for cls in type(module).__mro__:
        if cls.__name__ in CONVERTERS:
            return CONVERTERS[cls.__name__]
        if "forward" in vars(cls):
            return None
    return None


# Layers without parameters that move or resample positions; without a row they would leave depth as it is.
_SPATIAL_MODULES = ("padding", "pooling", "upsampling", "pixelshuffle", "fold")
_SPATIAL_NAMES = ("attention", "attn", "upsample", "interpolate", "blurpool", "spacetodepth", "depthtospace", "shift")


def _check_unknown(module: nn.Module) -> None:
    """Let activations, containers and the like pass; refuse what may look at positions or hold weights of them."""
    name = type(module).__name__.lower()
    if any(word in name for word in _SPATIAL_NAMES):
        raise Unsupported("it relates or moves positions of a slice, and there is no volumetric form of it yet")
    if any(cls.__module__ == f"torch.nn.modules.{part}" for cls in type(module).__mro__ for part in _SPATIAL_MODULES):
        raise Unsupported("it moves or resamples positions, and there is no volumetric form of it yet")
    own = {**module._parameters, **module._buffers}
    tensors = {key: tensor for key, tensor in own.items() if tensor is not None}
    is_leaf = next(module.children(), None) is None
    if is_leaf and tensors:
        raise Unsupported(
            f"a layer with weights ({', '.join(tensors)}) that no converter knows; add one to medi3d.inflate.CONVERTERS"
        )
    for key, tensor in tensors.items():
        if not _is_per_channel(tensor):
            raise Unsupported(f"its weight {key!r} of shape {tuple(tensor.shape)} is not one number a channel")


def _is_per_channel(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) <= 1


def _keep(module: nn.Module, conversion: Conversion) -> nn.Module:
    """Acts on each position by itself: right on folded slices as it is."""
    return module


for _name in (
    *("Linear", "PReLU", "BatchNorm2d", "SyncBatchNorm", "BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNorm2d"),
    *("FrozenBatchNormAct2d", "LayerNorm2d", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d"),
    *("LayerScale", "LayerScale2d"),
):
    CONVERTERS.add(_name, _keep)


@CONVERTERS.register("LayerNorm")
def _layer_norm(module: nn.LayerNorm, conversion: Conversion) -> nn.Module:
    if len(module.normalized_shape) != 1:
        raise Unsupported(f"it normalises over positions (normalized_shape={tuple(module.normalized_shape)})")
    return module


@CONVERTERS.register("Conv2d")
def _conv(module: nn.Conv2d, conversion: Conversion, *, same: bool = False) -> nn.Module:
    axis = (
        0 if module.kernel_size[0] >= module.kernel_size[1] else 1
    )  # depth is treated as the longer axis of the kernel
    size, stride, dilation = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
    before, after = (0, 0) if same else static_padding(module.padding, size, dilation, axis)
    if size == 1 and before == 0:
        if stride > 1:
            module.register_forward_pre_hook(TakeEvery(conversion.stack, stride))
        return module
    window = DepthWindow(size, stride, dilation, before, after, same)
    conversion.note(window)
    return FoldedConv(module, window, conversion.stack, init=conversion.init, depth_padding=conversion.depth_padding)


@CONVERTERS.register("Conv2dSame")
def _conv_same(module: nn.Conv2d, conversion: Conversion) -> nn.Module:
    """timm's convolution with TensorFlow's dynamic padding."""
    return _conv(module, conversion, same=True)


def _first(setting: int | tuple[int, ...]) -> int:
    return setting if isinstance(setting, int) else setting[0]


def _pool(module: Any, conversion: Conversion, *, same: bool = False) -> nn.Module:
    if getattr(module, "return_indices", False):
        raise Unsupported("indices of a 2D pool (return_indices=True) have no meaning in a volume")
    is_max = isinstance(module, nn.MaxPool2d)
    padding = 0 if same else _first(module.padding)
    dilation = _first(module.dilation) if is_max else 1
    window = DepthWindow(
        _first(module.kernel_size), _first(module.stride), dilation, padding, padding, same, module.ceil_mode
    )
    conversion.note(window)
    module.register_forward_hook(PoolDepth(conversion.stack, window, "max" if is_max else "mean"))
    return module


def _pool_same(module: Any, conversion: Conversion) -> nn.Module:
    return _pool(module, conversion, same=True)


for _name in ("MaxPool2d", "AvgPool2d"):
    CONVERTERS.add(_name, _pool)
for _name in ("MaxPool2dSame", "AvgPool2dSame"):
    CONVERTERS.add(_name, _pool_same)


@CONVERTERS.register("AdaptiveAvgPool2d")
def _adaptive_average(module: nn.AdaptiveAvgPool2d, conversion: Conversion) -> nn.Module:
    module.register_forward_pre_hook(ReduceDepth(conversion.stack, "mean"))
    return module


@CONVERTERS.register("AdaptiveMaxPool2d")
def _adaptive_max(module: nn.AdaptiveMaxPool2d, conversion: Conversion) -> nn.Module:
    module.register_forward_pre_hook(ReduceDepth(conversion.stack, "max"))
    return module


def _per_volume(module: nn.Module, conversion: Conversion) -> nn.Module:
    view = PerVolume(conversion.stack)
    module.register_forward_pre_hook(view.enter)
    module.register_forward_hook(view.leave)
    return module


for _name in ("DropPath", "StochasticDepth"):
    CONVERTERS.add(_name, _per_volume)


def _tall(module: nn.Module, conversion: Conversion) -> nn.Module:
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and _first(layer.kernel_size) != 1:
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
