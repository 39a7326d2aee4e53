"""Turn a 2D network into a 3D one: walk its modules and convert each layer by the table of `converters`.

A layer's row is found along its base classes. A subclass that overrides ``forward`` is not its base class and needs a
row of its own; a layer with weights and no row is refused.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from medi3d.errors import ConfigError, InflationError
from medi3d.inflation.converters import CONVERTERS, Conversion, Converter, Unsupported
from medi3d.inflation.fold import Inflated
from medi3d.inflation.profiles import PROFILES
from medi3d.inflation.window import DepthPadding
from medi3d.registry import unknown_name_message

DEPTH_PADDINGS: tuple[DepthPadding, ...] = ("replicate", "zeros")


def inflate(model: nn.Module, *, init: str = "mean", depth_padding: DepthPadding = "replicate") -> nn.Module:
    """Turn a 2D convolutional network into a 3D network that gives the same answer on a volume of equal slices.

    Kernels N×N become N×N×N (where they are not square, depth is treated as the longer axis, with its stride,
    dilation and padding), pools get depth as well, squeeze-excitation and global pools span the volume. Input depth
    may be any D ≥ 1: where a window is longer than the padded volume, the volume is extended to its length. Parameter
    names stay, below the prefix ``body.``.

    Args:
        model: a 2D network, or a list-giving feature extractor; it is copied, not changed.
        init: name of a row of `medi3d.inflation.PROFILES`: how kernels are shared out over depth.
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
            f"cannot inflate {type(model).__name__}: no convolution or pool in it has a window that reaches into the "
            "next, so its slices would never mix"
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
_SPATIAL_NAMES = (
    *("attention", "attn", "cbam", "nonlocal", "globalcontext", "excite"),
    *("upsample", "interpolate", "blurpool", "spacetodepth", "depthtospace", "shift"),
)


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
            f"it has weights ({', '.join(tensors)}) that no converter knows; add it to medi3d.inflation.CONVERTERS"
        )
    for key, tensor in tensors.items():
        if not _is_per_channel(tensor):
            raise Unsupported(f"its weight {key!r} of shape {tuple(tensor.shape)} is not one number a channel")


def _is_per_channel(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) <= 1
