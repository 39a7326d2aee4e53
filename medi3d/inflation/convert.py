"""Turn a 2D network into a 3D one: inflate its kernels, and let it run with hidden depth."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from medi3d.errors import ConfigError, InflationError
from medi3d.inflation.converters import CONVERTERS, Conversion, Converter, Unsupported
from medi3d.inflation.hidden import HiddenDepth
from medi3d.inflation.inflated import Inflated
from medi3d.inflation.layers import PlanLayers
from medi3d.inflation.plan import DepthPlan, plan_layers, resolve_plan
from medi3d.inflation.profiles import PROFILES
from medi3d.inflation.window import DepthPadding
from medi3d.registry import unknown_name_message

DEPTH_PADDINGS: tuple[DepthPadding, ...] = ("replicate", "zeros")


def inflate(
    model: nn.Module,
    *,
    init: str = "mean",
    depth_padding: DepthPadding = "replicate",
    plan: DepthPlan | str = "symmetric",
    image: Tensor | None = None,
) -> Inflated:
    """Turn a 2D network into a 3D network that gives the same answer on a volume of equal slices.

    Kernels N×N become N×N×N (where they are not square, depth is treated as the longer axis, with its stride and
    dilation), pools get depth as well, attention joins the tokens of all slices, squeeze-excitation and global pools
    span the volume. Input depth may be any D ≥ 1; a layer with stride s gives ⌈D / s⌉ slices. Parameter names stay,
    below the prefix ``body.``.

    Args:
        model: a 2D network, or a list-giving feature extractor; it is copied, not changed.
        init: name of a row of `medi3d.inflation.PROFILES`: how kernels are shared out over depth.
        depth_padding: what convolutions see beyond the first and last slice. Only ``"replicate"`` is exact at the ends.
        plan: what layers do along depth: a `DepthPlan`, or the name of a row of `medi3d.inflation.PLANS`.
        image: (1, C, H, W), an input that ``model`` takes, to find which layer is at which stage of a plan that is not
            symmetric; without it, 224×224 pixels with the channels of the first convolution.

    Returns:
        A module that takes (B, C, D, H, W) and gives what ``model`` gives, feature maps as (B, C, D, H, W).

    Raises:
        InflationError: a layer has no exact 3D form.
        ConfigError: unknown ``init``, ``depth_padding`` or ``plan``.

    Example:
        >>> import torch
        >>> net = inflate(nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU()), init="center")
        >>> net(torch.zeros(2, 1, 5, 6, 8)).shape
        torch.Size([2, 4, 3, 3, 4])
    """
    _ = PROFILES[init]
    if depth_padding not in DEPTH_PADDINGS:
        raise ConfigError(unknown_name_message("depth padding", depth_padding, DEPTH_PADDINGS))
    chosen = resolve_plan(plan)
    body = copy.deepcopy(model)
    conversion = Conversion(HiddenDepth(init, depth_padding))
    if not chosen.mixes:
        return Inflated(body, conversion.depth, mixes=False)
    if not chosen.is_symmetric:
        conversion.planned = plan_layers(body, chosen, _blank_image(model) if image is None else image)
        conversion.depth.last_pool = chosen.last_pool
    return Inflated(_convert(body, "", conversion), conversion.depth)


def _blank_image(model: nn.Module) -> Tensor:
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        raise ConfigError("a network without nn.Conv2d does not tell its input's channels: give inflate an image")
    return torch.zeros(1, first.in_channels, 224, 224, device=first.weight.device, dtype=first.weight.dtype)


def _convert(module: nn.Module, path: str, conversion: Conversion) -> nn.Module:
    if id(module) in conversion.done:
        return conversion.done[id(module)]
    converter = _find_converter(module)
    conversion.path = path
    try:
        converted = module if converter is None else converter(module, conversion)
    except Unsupported as reason:
        where = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
        raise InflationError(f"cannot inflate {where}: {reason}") from None
    conversion.done[id(module)] = converted
    if getattr(converted, "inplace", False) is True:
        converted.inplace = False  # type: ignore[assignment]  # autograd is slow where a view is written to
    if path in conversion.planned:
        hook = PlanLayers(conversion.depth, conversion.planned[path])
        converted.register_forward_pre_hook(hook.enter)
        converted.register_forward_hook(hook.leave)
    if converted is module:
        for name, child in module.named_children():
            module._modules[name] = _convert(child, f"{path}.{name}" if path else name, conversion)
    return converted


def _find_converter(module: nn.Module) -> Converter | None:
    return next((CONVERTERS[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in CONVERTERS), None)
