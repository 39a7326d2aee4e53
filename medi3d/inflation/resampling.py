"""What changes the grid of a slice changes that of the volume alike, and tensors of unlike depth are aligned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medi3d.inflation.functions import Function, volumetric
from medi3d.inflation.hidden import HiddenDepth, is_compiling
from medi3d.inflation.pooling import pool_depth
from medi3d.inflation.window import DepthLayer


def resize_depth(volume: Tensor, slices: int, mode: str) -> Tensor:
    """Resize a revealed volume (B, C, D, H, W) to a number of slices, by ``"nearest"`` or ``"linear"``."""
    if slices == volume.shape[2]:
        return volume
    plane = volume.flatten(3).flatten(0, 1)  # (B·C, D, H·W)
    size = (slices, plane.shape[2])
    resized = F.interpolate(plane[:, None], size, mode="nearest" if mode == "nearest" else "bilinear")[:, 0]
    return resized.view(*volume.shape[:2], slices, *volume.shape[3:])


@volumetric(F.interpolate)
def interpolate(
    depth: HiddenDepth,
    func: Function,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Resize volumes: depth is scaled as height is."""
    if input.ndim != 4:
        return func(input, size, scale_factor, mode, *args, **kwargs)
    height = input.shape[2]
    slices = depth.fold(input)
    with depth.paused():
        output = func(slices, size, scale_factor, mode, *args, **kwargs)
        volume = output.unflatten(0, (input.shape[0], -1)).transpose(1, 2)  # (B·D, C, H', W') → (B, C, D, H', W')
        kind = "nearest" if mode.startswith("nearest") else "linear"
        volume = resize_depth(volume, max(1, round(volume.shape[2] * output.shape[2] / height)), kind)
    return depth.hide(volume, 2)


@volumetric(F.pad)
def pad_plane(depth: HiddenDepth, func: Function, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Pad slices in plane only: layers extend the volume at its ends themselves."""
    if input.ndim != 4:
        return func(input, *args, **kwargs)
    padded = func(depth.fold(input), *args, **kwargs)
    return depth.unfold(padded, like=input)


@volumetric(torch.pixel_unshuffle)
def unshuffle_pixels(depth: HiddenDepth, func: Function, input: Tensor, downscale_factor: int) -> Any:
    """Move blocks of pixels to channels; blocks of slices are averaged."""
    output = func(input, downscale_factor)
    blocks = DepthLayer(downscale_factor, downscale_factor)
    return depth.hide(pool_depth(depth, depth.reveal(output, 2), blocks, "mean"), 2)


@volumetric(torch.pixel_shuffle)
def shuffle_pixels(depth: HiddenDepth, func: Function, input: Tensor, upscale_factor: int) -> Any:
    """Move channels to blocks of pixels; slices are repeated."""
    output = func(input, upscale_factor)
    return depth.hide(depth.reveal(output, 2).repeat_interleave(upscale_factor, 2), 2)


_T = torch.Tensor
_BINARY = (
    *(torch.add, _T.add, torch.sub, _T.sub, torch.mul, _T.mul, torch.div, _T.div),
    *(torch.maximum, torch.minimum, torch.addcmul),
)
_IN_PLACE: dict[Function, Function] = {_T.add_: _T.add, _T.sub_: _T.sub, _T.mul_: _T.mul, _T.div_: _T.div}


@volumetric(*_BINARY, takes_any=True, takes_pairs=True)
def combine(depth: HiddenDepth, func: Function, *operands: Any, **kwargs: Any) -> Any:
    """Combine tensors; where branches kept unlike depths, the deeper one is subsampled to the other."""
    return func(*_align(depth, operands), **kwargs)


@volumetric(*_IN_PLACE, takes_any=True, takes_pairs=True)
def combine_in_place(depth: HiddenDepth, func: Function, left: Tensor, right: Any, **kwargs: Any) -> Any:
    """Write to the tensor itself: `torch.vmap` writes to a view, whose gradients are slow, and wrong at D = 1.

    A traced network gets a new tensor, as ``x += y`` allows.
    """
    left, right = _align(depth, (left, right), keep_first=True)
    if not depth.is_hidden(left) or depth.is_pair(left) or depth.is_pair(right):
        return func(left, right, **kwargs)
    if is_compiling():
        return _IN_PLACE[func](left, right, **kwargs)
    written, axis = depth.reveal_in_place(left)
    if isinstance(right, Tensor) and right.ndim:
        right = depth.reveal(right[(None,) * (left.ndim - right.ndim)], axis)
    func(written, right, **kwargs)
    return left


@volumetric(torch.cat, torch.concat, torch.stack, takes_any=True)
def join(depth: HiddenDepth, func: Function, tensors: Any, *args: Any, **kwargs: Any) -> Any:
    """Join tensors; where branches kept unlike depths, the deeper ones are subsampled."""
    return func(_align(depth, tuple(tensors)), *args, **kwargs)


def _align(depth: HiddenDepth, operands: tuple[Any, ...], *, keep_first: bool = False) -> tuple[Any, ...]:
    found = [depth.size(value) if depth.is_hidden(value) and not depth.is_pair(value) else 0 for value in operands]
    sizes = {size for size in found if size}
    if len(sizes) <= 1:
        return operands
    slices = found[0] if keep_first and found[0] else min(sizes)
    return tuple(
        depth.hide(_sample_slices(depth.reveal(value, 0), slices), 0) if size not in (0, slices) else value
        for value, size in zip(operands, found, strict=True)
    )


def _sample_slices(tensor: Tensor, slices: int) -> Tensor:
    """Take ``slices`` of the slices on axis 0: as a stride would where that fits, else the nearest."""
    step = (2 * tensor.shape[0] + slices) // (2 * slices)  # the ratio, rounded half up
    if step > 0 and -(-tensor.shape[0] // step) >= slices:
        return tensor[::step][:slices]
    return tensor[torch.arange(slices, device=tensor.device) * tensor.shape[0] // slices]
