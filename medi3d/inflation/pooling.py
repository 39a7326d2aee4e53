"""Pools over volumes: windows get depth, and what pools all positions of a slice pools the volume.

A volume's pooled values are equal at all depths; they are returned without hidden depth.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medi3d.errors import InflationError
from medi3d.inflation.convolution import IntPair, as_pair, longer_axis
from medi3d.inflation.functions import Function, volumetric
from medi3d.inflation.hidden import HiddenDepth
from medi3d.inflation.window import DepthLayer, extend, take_taps

_NO_INDICES = "indices of a 2D pool (return_indices=True) have no meaning in a volume"


def pool_depth(depth: HiddenDepth, volume: Tensor, layer: DepthLayer, reduction: str, before: int = 0) -> Any:
    """Pool a revealed volume (B, C, D, H, W) along depth. Its ends are replicated; a maximum does not see it."""
    depth.mixes |= layer.extent > layer.stride
    with depth.paused():
        volume = extend(volume, layer.margins(volume.shape[2], before))
    taps = take_taps(volume, layer)
    if reduction == "max":
        return reduce(torch.maximum, taps)
    return reduce(torch.add, taps) / layer.size


def _pool(
    depth: HiddenDepth,
    func: Function,
    input: Tensor,
    kernel_size: int | IntPair,
    stride: int | IntPair | None,
    *args: Any,
    padding: int | IntPair,
    dilation: int | IntPair = 1,
    **kwargs: Any,
) -> Any:
    size, strides = as_pair(kernel_size), as_pair(stride or kernel_size)
    axis = longer_axis(size)
    layer = depth.next_layer(DepthLayer(size[axis], strides[axis], as_pair(dilation)[axis]))
    slices = depth.fold(input)
    with depth.paused():
        pooled = func(slices, kernel_size, stride, padding, *args, **kwargs)
    volume = pooled.unflatten(0, (input.shape[0], -1)).transpose(1, 2)  # (B·D, C, H, W) → (B, C, D, H, W)
    reduction = "mean" if func is F.avg_pool2d else "max"
    return depth.hide(pool_depth(depth, volume, layer, reduction, as_pair(padding)[axis]), 2)


@volumetric(F.avg_pool2d)
def average(
    depth: HiddenDepth,
    func: Function,
    input: Tensor,
    kernel_size: int | IntPair,
    stride: int | IntPair | None = None,
    padding: int | IntPair = 0,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Average in boxes, which are separable: in plane as the 2D pool does, then along depth."""
    return _pool(depth, func, input, kernel_size, stride, *args, padding=padding, **kwargs)


@volumetric(F.max_pool2d, torch.max_pool2d)
def maximum(
    depth: HiddenDepth,
    func: Function,
    input: Tensor,
    kernel_size: int | IntPair,
    stride: int | IntPair | None = None,
    padding: int | IntPair = 0,
    dilation: int | IntPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Take the maximum in boxes, which are separable: in plane as the 2D pool does, then along depth."""
    if return_indices:
        raise InflationError(_NO_INDICES)
    pool = partial(F.max_pool2d, dilation=dilation, ceil_mode=ceil_mode)
    return _pool(depth, pool, input, kernel_size, stride, padding=padding, dilation=dilation)


@volumetric(F.max_pool2d_with_indices)
def refuse_indices(depth: HiddenDepth, func: Function, *args: Any, **kwargs: Any) -> Any:
    """Refuse pools that say where their maximum was."""
    raise InflationError(_NO_INDICES)


@volumetric(F.adaptive_avg_pool2d, torch.adaptive_avg_pool1d)
def average_adaptively(depth: HiddenDepth, func: Function, input: Tensor, output_size: Any) -> Any:
    """Average the whole depth; where one axis of the slice is kept (a size of None), depth is kept too."""
    if isinstance(output_size, (tuple, list)) and None in output_size:
        return func(input, output_size)
    depth.mixes = True
    return func(depth.average(input), output_size)


@volumetric(F.adaptive_max_pool2d)
def maximize_adaptively(
    depth: HiddenDepth, func: Function, input: Tensor, output_size: Any, return_indices: bool = False
) -> Any:
    """Take the maximum over the whole depth."""
    if return_indices:
        raise InflationError(_NO_INDICES)
    depth.mixes = True
    return func(depth.reveal(input, 2).amax(2), output_size)


def _pools_positions(input: Tensor, dims: Any) -> bool:
    """Whether a reduction is over all positions of a slice: of (B, C, H, W), (B, H, W, C) or tokens (B, N, C)."""
    if dims is None:
        return False
    axes = {dim % input.ndim for dim in ((dims,) if isinstance(dims, int) else tuple(dims))}
    return (input.ndim == 4 and axes in ({2, 3}, {1, 2})) or (input.ndim == 3 and axes == {1})


@volumetric(torch.mean, torch.Tensor.mean, torch.sum, torch.Tensor.sum)
def average_positions(
    depth: HiddenDepth, func: Function, input: Tensor, dim: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Average over a volume what the network averages or sums over a slice."""
    dims = kwargs.pop("axis", dim)
    output: Tensor = func(input, *args, **kwargs) if dims is None else func(input, dims, *args, **kwargs)
    if not depth.is_hidden(output) or not _pools_positions(input, dims):
        return output
    depth.mixes = True
    return depth.average(output)


@volumetric(torch.amax, torch.Tensor.amax)
def maximize_positions(
    depth: HiddenDepth, func: Function, input: Tensor, dim: Any = (), *args: Any, **kwargs: Any
) -> Any:
    """Take the maximum over a volume where the network takes it over a slice."""
    output: Tensor = func(input, dim, *args, **kwargs)
    if not depth.is_hidden(output) or not _pools_positions(input, dim):
        return output
    depth.mixes = True
    return depth.reveal(output, 0).amax(0)


@volumetric(torch.norm, torch.Tensor.norm, torch.linalg.vector_norm)
def norm_positions(depth: HiddenDepth, func: Function, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Take the root mean square over depth of the norms of slices."""
    output: Tensor = func(input, *args, **kwargs)
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    order = kwargs.get("p", kwargs.get("ord", args[0] if args else 2))
    if order != 2 or not depth.is_hidden(output) or not _pools_positions(input, dims):
        return output
    depth.mixes = True
    return depth.reveal(output, 0).square().mean(0).sqrt()
