"""What a 2D backbone is, whichever library it comes from, and trial runs that learn its shapes without computing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from medi3d.errors import ConfigError, Medi3dError
from medi3d.models.shapes_only import ShapesOnly

SliceSize: TypeAlias = tuple[int, int]
"""(H, W) of a slice in pixels."""

StateDict: TypeAlias = Mapping[str, Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

STAGES_OF_ONE_STRIDE = 4
"""How many maps are taken from a network whose features all have one stride, spread evenly over its blocks."""


@dataclass(frozen=True)
class SliceRule:
    """Which slices a network takes.

    Args:
        size: (H, W) of a slice that fits.
        step: slices whose H and W are multiples of it fit too; ``None`` where no other size does.
    """

    size: SliceSize
    step: int | None

    def allows(self, size: Sequence[int]) -> bool:
        """Whether slices of (H, W) fit."""
        if self.step is None:
            return tuple(size) == self.size
        return all(n % self.step == 0 for n in size)

    def __str__(self) -> str:
        return f"{self.size[0]} × {self.size[1]} only" if self.step is None else f"multiples of {self.step}"


@dataclass(frozen=True)
class Backbone:
    """A 2D network that gives one feature map a stage.

    Attributes:
        module: ``(B, C, H, W)`` → list of ``(B, channels[i], ~H / strides[i], ~W / strides[i])``.
        channels: channels of each stage, finest first.
        strides: in-plane stride of each stage; equal ones in networks without a hierarchy (plain ViTs).
        mean: per RGB channel, what the weights' training subtracted from pixels in [0, 1].
        std: per RGB channel, what it divided by.
        slices: which sizes it takes.
    """

    module: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    slices: SliceRule

    @property
    def input_size(self) -> SliceSize:
        """(H, W) of a slice that fits."""
        return self.slices.size

    def takes(self, size: Sequence[int]) -> bool:
        """Whether slices of (H, W) fit."""
        return self.slices.allows(size)


def run_for_shapes(module: nn.Module, shape: Sequence[int]) -> Any:
    """Run a copy of a module in evaluation mode on an input of ``shape``; the values of what it gives mean nothing.

    It runs on the meta device, where nothing is computed, unless the module needs values to find its way.
    """
    if any(isinstance(part, nn.RNNBase) for part in module.modules()):  # meta walks them step by step: minutes
        return _run_copy(module, shape, "cpu")
    try:
        return _run_copy(module, shape, "meta")
    except (RuntimeError, NotImplementedError, Medi3dError) as error:
        if "meta" not in str(error):
            raise
        # gemma4 reads positions out of a tensor.
        return _run_copy(module, shape, "cpu")


def _run_copy(module: nn.Module, shape: Sequence[int], device: str) -> Any:
    tensors = [*module.parameters(), *module.buffers()]
    # The copy's tensors are put in place of the module's own, so that nothing large is copied.
    copied = copy.deepcopy(module, {id(tensor): _move(tensor, device) for tensor in tensors})
    with torch.no_grad(), ShapesOnly() if device == "meta" else nullcontext():
        return copied.eval()(torch.zeros(tuple(shape), device=device))


def _move(tensor: Tensor, device: str) -> Tensor:
    if tensor.device.type == device:
        return tensor.detach()
    return torch.zeros_like(tensor, device=device, requires_grad=False)


def try_run(module: nn.Module, shape: Sequence[int]) -> Any | None:
    """Return what `run_for_shapes` gives, for a network of meta tensors or not; ``None`` if it refuses."""
    try:
        return run_for_shapes(module, shape)
    except (AssertionError, RuntimeError, ValueError, NotImplementedError):
        return None


def find_size_step(fits: Callable[[SliceSize], bool], size: SliceSize, steps: Iterable[int]) -> int | None:
    """Return the first of ``steps`` whose multiples fit, as far as three sizes other than ``size`` tell."""
    for step in steps:
        # Odd multiples, so that none fits as a multiple of a larger step; small ones, as some are computed.
        tries = [tuple(int(min(n, 256) * scale / step) | 1 for n in size) for scale in (0.6, 1.3, 2.2)]
        if all(fits((step * rows, step * (columns + 2))) for rows, columns in tries):
            return step
    return None


def spread_evenly(count: int) -> list[int]:
    """Return the places of :data:`STAGES_OF_ONE_STRIDE` maps spread over ``count`` blocks, the last one included.

    Examples:
        >>> spread_evenly(12)
        [2, 5, 8, 11]
    """
    wanted = min(STAGES_OF_ONE_STRIDE, count)
    return [(place + 1) * count // wanted - 1 for place in range(wanted)]


def is_pyramid(strides: Sequence[int]) -> bool:
    """Whether every stage is coarser than the one before it, by powers of two."""
    return all(stride & (stride - 1) == 0 for stride in strides) and list(strides) == sorted(set(strides))


def check_stages(name: str, strides: Sequence[int], stages: int | None) -> None:
    """Refuse to keep more stages than there are."""
    if stages is not None and stages > len(strides):
        raise ConfigError(
            f"{name} has {len(strides)} stages (strides {list(strides)}); {stages} were asked for: set model.stages"
        )


class ChannelsFirst(nn.Module):
    """Feature maps of a network whose maps are (B, H, W, C), or tokens (B, prefix + H·W, C), as (B, C, H, W).

    Args:
        module: ``(B, C, H, W)`` → mapping from stage to such a map.
        layouts: per stage, where its channels are: ``"NCHW"``, ``"NHWC"`` or ``"tokens"``.
        prefix: tokens that are no places of the slice, such as the class token.
        stride: of the tokens.
    """

    def __init__(self, module: nn.Module, layouts: Sequence[str], *, prefix: int = 0, stride: int = 1) -> None:
        super().__init__()
        self.module = module
        self.layouts = tuple(layouts)
        self.prefix = prefix
        self.stride = stride

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the stages' maps, (B, C, H', W')."""
        grid = (x.shape[-2] // self.stride, x.shape[-1] // self.stride)
        maps = self.module(x).values()
        return [self._arrange(feature, layout, grid) for feature, layout in zip(maps, self.layouts, strict=True)]

    def _arrange(self, feature: Tensor, layout: str, grid: SliceSize) -> Tensor:
        if layout == "NHWC":
            return feature.permute(0, 3, 1, 2)
        if layout == "tokens":
            # (B, prefix + H·W, C) → (B, C, H·W) → (B, C, H, W)
            channels = feature[:, self.prefix :].transpose(1, 2)
            return channels.reshape(*channels.shape[:2], *grid)
        return feature
