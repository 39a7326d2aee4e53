"""Recurrent layers: each slice is a sequence of its own; a depth profile in front of them lets slices meet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medi3d.errors import InflationError
from medi3d.inflation.functions import Function, volumetric
from medi3d.inflation.hidden import HiddenDepth


@volumetric(torch.lstm, torch.gru)
def run_recurrence(depth: HiddenDepth, func: Function, input: Tensor, state: Any, *args: Any) -> Any:
    """Run a recurrence over the sequences of all slices, (B·D, length, channels)."""
    batch_first = args[-1]
    axis = 0 if batch_first else 1
    revealed = depth.reveal(input, axis)  # (…, D, B, …)
    slices = revealed.shape[axis]
    states = state if isinstance(state, tuple) else (state,)
    if any(depth.is_hidden(value) for value in states):
        raise InflationError("a recurrence that starts from a state of each slice's own")
    repeated = tuple(value.repeat(1, slices, 1) for value in states)  # (layers, D·B, channels)
    with depth.paused():
        output, *last = func(
            revealed.flatten(axis, axis + 1), repeated if isinstance(state, tuple) else repeated[0], *args
        )
    hidden_last = [depth.hide(value.unflatten(1, (slices, -1)), 1) for value in last]
    return (depth.hide(output.unflatten(axis, (slices, -1)), axis), *hidden_last)
