"""Convolutions over volumes: a kernel (O, I, kH, kW) has become (O, I, T, kH, kW)."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from medi3d.inflation.convolve import conv3d
from medi3d.inflation.functions import Function, volumetric
from medi3d.inflation.hidden import HiddenDepth
from medi3d.inflation.profiles import inflate_kernel, inflate_transposed_kernel
from medi3d.inflation.window import DepthLayer, Margins, extend

IntPair: TypeAlias = tuple[int, int]


def as_pair(setting: int | tuple[int, ...] | list[int]) -> IntPair:
    """Return a setting of a 2D layer for both its axes."""
    if isinstance(setting, int):
        return setting, setting
    return setting[0], setting[-1]


def longer_axis(size: IntPair) -> int:
    """Return the axis of a 2D window that depth is treated like."""
    return 0 if size[0] >= size[1] else 1


def channels_last(volume: Tensor) -> Tensor:
    """Return a volume (B, C, …) in channels-last memory, with strides that say so.

    The strides of an axis of one entry are ambiguous: a single channel would be taken for channels-first, and PyTorch's
    batch norm takes gradients for another layout than they have, which are then wrong.
    """
    last = volume.movedim(1, -1).contiguous()
    return (last.flatten().view(last.shape) if 1 in last.shape else last).movedim(-1, 1)


@volumetric(torch.conv2d, takes_any=True)
def convolve(
    depth: HiddenDepth,
    func: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | IntPair = 1,
    padding: str | int | IntPair = 0,
    dilation: int | IntPair = 1,
    groups: int = 1,
) -> Any:
    """Convolve volumes; kernels that are no parameters, and so were not inflated, are spread over depth here."""
    if depth.is_hidden(weight):  # a kernel of each slice's own
        return func(input, weight, bias, stride, padding, dilation, groups)
    if not depth.is_hidden(input):  # pooled over the volume: equal at all depths
        return func(input, _flat(weight), bias, stride, padding, dilation, groups)
    size = (weight.shape[-2], weight.shape[-1])
    plane = _in_plane(size, as_pair(dilation), padding)
    return convolve_volume(depth, input, weight, bias, as_pair(stride), plane, as_pair(dilation), groups)


def convolve_volume(
    depth: HiddenDepth,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntPair,
    plane: tuple[Margins, Margins],
    dilation: IntPair,
    groups: int,
) -> Any:
    """Convolve (B, I, H, W) with hidden depth, padded in plane by margins of zeros for height and width."""
    size = (weight.shape[-2], weight.shape[-1])
    axis = longer_axis(size)
    taps = weight.shape[2] if weight.ndim == 5 else size[axis]
    layer = depth.next_layer(DepthLayer(taps, stride[axis], dilation[axis]))
    equal = all(before == after for before, after in plane)  # the convolution pads by itself, without a copy
    padding = (plane[0][0], plane[1][0]) if equal else (0, 0)
    if size == (1, 1) and weight.ndim == 4 and equal:
        if layer.stride > 1:
            input = depth.hide(depth.reveal(input, 2)[:, :, :: layer.stride], 2)
        return depth.unfold(F.conv2d(depth.fold(input), weight, bias, stride, padding, 1, groups), like=input)
    if weight.ndim == 4:
        weight = inflate_kernel(weight, layer.size, depth.init)
    depth.mixes |= layer.extent > layer.stride
    volume = depth.reveal(input, 2)
    margins = layer.margins(volume.shape[2], plane[axis][0])
    height, width = ((0, 0), (0, 0)) if equal else plane
    settings = (layer.stride, *stride), (0, *padding), (layer.dilation, *dilation)
    with depth.paused():
        volume = channels_last(extend(volume, margins, depth.depth_padding, height=height, width=width))
        output = channels_last(conv3d(volume, weight, bias, *settings, groups))
    return depth.hide(output, 2)


def _flat(weight: Tensor) -> Tensor:
    return weight.sum(2) if weight.ndim == 5 else weight


def _in_plane(size: IntPair, dilation: IntPair, padding: Any) -> tuple[Margins, Margins]:
    if padding == "same":
        totals = [step * (taps - 1) for step, taps in zip(dilation, size, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    height, width = (0, 0) if padding == "valid" else as_pair(padding)
    return (height, height), (width, width)


@volumetric(torch.conv_transpose2d)
def convolve_transposed(
    depth: HiddenDepth,
    func: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | IntPair = 1,
    padding: int | IntPair = 0,
    output_padding: int | IntPair = 0,
    groups: int = 1,
    dilation: int | IntPair = 1,
) -> Any:
    """Upsample volumes: D slices become D · stride."""
    size = (weight.shape[-2], weight.shape[-1])
    axis = longer_axis(size)
    strides, dilations = as_pair(stride), as_pair(dilation)
    step = depth.next_layer(DepthLayer(size[axis], strides[axis])).stride
    taps = weight.shape[2] if weight.ndim == 5 else size[axis]
    if weight.ndim == 4:
        weight = inflate_transposed_kernel(weight, taps, step, depth.init)
    depth.mixes |= taps > step
    reach = -(-dilations[axis] * (taps - 1) // step)  # the slices around one that reach its outputs
    volume = depth.reveal(input, 2)
    slices = volume.shape[2] * step
    with depth.paused():
        volume = extend(volume, (reach, reach), depth.depth_padding)
        output = F.conv_transpose3d(
            volume,
            weight,
            bias,
            (step, *strides),
            (0, *as_pair(padding)),
            (0, *as_pair(output_padding)),
            groups,
            (dilations[axis], *dilations),
        )
    first = reach * step + as_pair(padding)[axis]
    return depth.hide(output[:, :, first : first + slices], 2)
