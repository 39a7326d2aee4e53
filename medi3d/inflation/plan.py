"""Depth plans: what each layer does along depth, by the stage that it is at.

A layer's stage is how often its input has been halved in plane. Where a plan says nothing (``None``), depth is treated
as the plane is. Which layer is at which stage is found by running the 2D network once on an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medi3d.errors import ConfigError
from medi3d.inflation.convolution import IntPair, as_pair, longer_axis
from medi3d.inflation.running import evaluating
from medi3d.inflation.window import DepthLayer
from medi3d.registry import Registry

PerStage: TypeAlias = tuple[int | None, ...]


@dataclass(frozen=True)
class DepthPlan:
    """What layers do along depth, one entry a stage; the last entry holds for all later stages.

    Args:
        depth_kernel: taps of convolutions; ``None`` is the kernel's size in plane, 1 does not look at neighbours.
        depth_stride: stride of layers that halve the plane; ``None`` halves depth as well, 1 keeps it. A layer that
            spans stages, as a patch embedding does, has the product of their strides, and taps to match.
        depth_pool: taps of pools; ``None`` is the window's size in plane.
        last_pool: slices in a window of the global average pools; its windows are then averaged. ``None`` is the whole
            depth.
        mixes: ``False`` answers each slice by itself, for comparison.

    Example:
        >>> DepthPlan(depth_kernel=(1, None), depth_stride=(1, None)).choose_layer(3, stride=2, stage=0)
        DepthLayer(size=1, stride=1, dilation=1)
    """

    depth_kernel: PerStage = (None,)
    depth_stride: PerStage = (None,)
    depth_pool: PerStage = (None,)
    last_pool: int | None = None
    mixes: bool = True

    def __post_init__(self) -> None:
        for name in ("depth_kernel", "depth_stride", "depth_pool"):
            entries = getattr(self, name)
            if not entries or any(entry is not None and entry < 1 for entry in entries):
                raise ConfigError(f"{name} takes one number of at least 1, or None, a stage; got {entries}")

    @property
    def is_symmetric(self) -> bool:
        """Whether depth is treated as the plane is everywhere."""
        return self == DepthPlan()

    def choose_layer(
        self, size: int, *, stride: int = 1, dilation: int = 1, stage: int = 0, pools: bool = False
    ) -> DepthLayer:
        """Return what a layer with this window in plane does along depth.

        Args:
            size: taps in plane.
            stride: in plane.
            dilation: in plane.
            stage: how often the layer's input has been halved.
            pools: whether it is a pool.
        """
        span = range(stage, stage + max(1, round(math.log2(stride))))
        strides = [_entry(self.depth_stride, at) for at in span]
        kernel = _entry(self.depth_pool if pools else self.depth_kernel, stage)
        depth_stride = stride
        if stride > 1 and any(entry is not None for entry in strides):
            depth_stride = math.prod(2 if entry is None else entry for entry in strides)
        if len(span) > 1 and depth_stride != stride:
            return DepthLayer(max(1, size * depth_stride // stride), depth_stride, dilation)
        return DepthLayer(size if kernel is None or size == 1 else kernel, depth_stride, dilation)


def _entry(entries: PerStage, stage: int) -> int | None:
    return entries[min(max(stage, 0), len(entries) - 1)]


def anisotropic(spacing_mm: Sequence[float]) -> DepthPlan:
    """Return the plan that keeps depth until the plane's voxels are as large as the distance between slices.

    Args:
        spacing_mm: (D, H, W) in millimetres.

    Raises:
        ConfigError: not three positive numbers.

    Example:
        >>> anisotropic((5.0, 1.25, 1.25)).depth_stride
        (1, 1, None)
    """
    if len(spacing_mm) != 3 or not all(value > 0 and math.isfinite(value) for value in spacing_mm):
        raise ConfigError(f"a spacing is three positive numbers of millimetres, (D, H, W); got {tuple(spacing_mm)}")
    depth, height, width = spacing_mm
    halvings = max(0, round(math.log2(depth / math.sqrt(height * width))))
    entries: PerStage = (1,) * halvings + (None,)
    return DepthPlan(depth_kernel=entries, depth_stride=entries, depth_pool=entries)


PLANS: Registry[DepthPlan] = Registry("depth plan")
PLANS.add("symmetric", DepthPlan())
# Carreira & Zisserman 2017 (arXiv:1705.07750), figure 3: the first two pools, at half and at a quarter of the plane,
# are 1×3×3 with stride 1×2×2, and the last one averages 2×7×7.
PLANS.add("i3d", DepthPlan(depth_stride=(None, 1, 1, None), depth_pool=(None, 1, 1, None), last_pool=2))
PLANS.add("slicewise", DepthPlan(mixes=False))


def resolve_plan(plan: DepthPlan | str) -> DepthPlan:
    """Return a plan by name, or as it is.

    Raises:
        ConfigError: no such plan.
    """
    return PLANS[plan] if isinstance(plan, str) else plan


@dataclass
class _Call:
    """The window of one call of a convolution or pool, as its arguments say."""

    size: IntPair
    stride: IntPair
    dilation: IntPair = (1, 1)
    pools: bool = False


def _read_convolution(weight: Tensor, bias: Any = None, stride: Any = 1, *args: Any, **kwargs: Any) -> _Call:
    size = (weight.shape[-2], weight.shape[-1])
    dilation = kwargs.get("dilation", args[1] if len(args) > 1 else 1)
    return _Call(size, as_pair(stride), as_pair(dilation))


def _read_transposed(weight: Tensor, bias: Any = None, stride: Any = 1, *args: Any, **kwargs: Any) -> _Call:
    return _Call((weight.shape[-2], weight.shape[-1]), as_pair(stride))


def _read_pool(kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **kwargs: Any) -> _Call:
    return _Call(as_pair(kernel_size), as_pair(stride or kernel_size), pools=True)


_READERS = {
    torch.conv2d: _read_convolution,
    torch.conv_transpose2d: _read_transposed,
    F.avg_pool2d: _read_pool,
    F.max_pool2d: _read_pool,
}


class _Tracer(TorchFunctionMode):
    """Note, for each module, the layers that its own code calls, in order."""

    def __init__(self, plan: DepthPlan, height: int) -> None:
        super().__init__()
        self.plan, self.height = plan, height
        self.running: list[str] = []
        self.layers: dict[str, list[DepthLayer]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _READERS and self.running:
            call = _READERS[func](*args[1:], **kwargs)
            axis = longer_axis(call.size)
            stage = round(math.log2(max(1.0, self.height / args[0].shape[-2])))
            size, stride, dilation = call.size[axis], call.stride[axis], call.dilation[axis]
            layer = self.plan.choose_layer(size, stride=stride, dilation=dilation, stage=stage, pools=call.pools)
            self.layers.setdefault(self.running[-1], []).append(layer)
        return func(*args, **kwargs)


def plan_layers(model: nn.Module, plan: DepthPlan, image: Tensor) -> dict[str, list[DepthLayer]]:
    """Run a 2D network on an image and return what each module's calls do along depth, by module name.

    Args:
        model: the 2D network.
        plan: what to do at which stage.
        image: (1, C, H, W).
    """
    tracer = _Tracer(plan, image.shape[-2])
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: tracer.running.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: (tracer.running.pop(), None)[1]))
    try:
        with torch.no_grad(), evaluating(model), tracer:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return tracer.layers
