"""Norms and dropout over volumes, and layers on the last axis, which run fastest on revealed memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medi3d.errors import InflationError
from medi3d.inflation.convolution import channels_last
from medi3d.inflation.functions import Function, volumetric
from medi3d.inflation.hidden import HiddenDepth, is_compiling


@volumetric(F.batch_norm, F.group_norm, F.instance_norm, F.dropout1d, F.dropout2d, F.feature_alpha_dropout)
def normalize_volumes(depth: HiddenDepth, func: Function, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call a function whose statistics are a channel's, over all positions, on volumes (B, C, D, …)."""
    volume = depth.reveal(input, 2)
    if func is F.batch_norm and (is_compiling() or 1 in volume.shape):  # its layout is then uncertain, or ambiguous
        volume = channels_last(volume)
    func = _DROPOUTS.get(func, func)
    with depth.paused():
        output = func(volume, *args, **kwargs)
    return depth.hide(output, 2)


def _drop_channels(volume: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.dropout2d(volume.flatten(2)[..., None], *args, **kwargs).view_as(volume)


_DROPOUTS: dict[Function, Function] = {F.dropout1d: _drop_channels, F.dropout2d: _drop_channels}


@volumetric(torch.nn.functional.linear, F.layer_norm, F.rms_norm, F.dropout, torch.dropout, F.alpha_dropout)
def act_along_last_axis(depth: HiddenDepth, func: Function, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call a function that has no depth to see on (B, D, …), which is contiguous where its memory is channels-last."""
    if any(depth.is_hidden(value) for value in args):
        return func(input, *args, **kwargs)
    if input.ndim < 2:
        raise InflationError(f"{func.__name__} of a tensor without a batch axis, {tuple(input.shape)}")
    slices = depth.reveal(input, 1)
    with depth.paused():
        output = func(slices, *args, **kwargs)
    return depth.hide(output, 1)


@volumetric(torch.Tensor.new_empty)
def make_empty(depth: HiddenDepth, func: Function, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Make the tensor that random numbers are drawn into, one for each sample: equal at all depths of a volume."""
    return func(depth.reveal(tensor, 0), *args, **kwargs)
