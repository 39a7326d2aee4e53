"""Depth folding: a 2D network runs on the stack of all slices, and only layers that look at neighbours see depth.

A batch of volumes (B, C, D, H, W) is folded to slices (B·D, C, H, W). In channels-last memory the fold is a view,
because NDHWC is (N·D)HWC; tensors are kept so. `Stack` tells every layer of a network how many volumes its slices
belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medi3d.errors import InflationError, InputError


class Stack:
    """How many volumes the slices that pass through a network belong to; shared by all its layers.

    It holds no tensor, so it is no part of a state dict; deepcopy and pickle keep one object for one network. Depth is
    not stored but inferred, so that it may differ between branches and shrink at strides.
    """

    def __init__(self) -> None:
        self.volumes = 1

    def unfold(self, slices: Tensor) -> Tensor:
        """Return slices (B·D, C, H, W) as volumes (B, C, D, H, W), a view."""
        return split_first(slices, self.volumes).transpose(1, 2)

    def fold(self, volumes: Tensor) -> Tensor:
        """Return volumes (B, C, D, H, W) as slices (B·D, C, H, W), a view in channels-last memory."""
        return volumes.transpose(1, 2).flatten(0, 1)


def split_first(tensor: Tensor, count: int) -> Tensor:
    """Split the first axis: (B·D, …) → (B, D, …), a view."""
    return tensor.view(count, tensor.shape[0] // count, *tensor.shape[1:])


def channels_last(volume: Tensor) -> Tensor:
    """Return a volume (B, C, D, H, W) in channels-last memory, without a copy where it has one channel."""
    if volume.shape[1] == 1:
        # Strides of a single channel are ambiguous and taken for channels-first; here they say channels-last.
        return volume.contiguous().squeeze(1).unsqueeze(-1).permute(0, 4, 1, 2, 3)
    return volume.contiguous(memory_format=torch.channels_last_3d)


def _channels_last_slices(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


class Inflated(nn.Module):
    """A 2D network that takes volumes; made by `medi3d.inflation.inflate`.

    Args:
        body: the converted 2D network, which takes slices (B·D, C, H, W).
        stack: the object through which the layers of ``body`` know the batch size.
    """

    def __init__(self, body: nn.Module, stack: Stack) -> None:
        super().__init__()
        self.body = body
        self.stack = stack
        self.training = body.training

    def forward(self, volume: Tensor) -> Any:
        """Run the network on a batch of volumes.

        Args:
            volume: (B, C, D, H, W) intensities on the scale that the 2D network was trained on.

        Returns:
            What the 2D network returns, feature maps (B, C, H, W) as (B, C, D, H, W); classifier outputs stay (B, K).

        Raises:
            InputError: the input does not have five dimensions.
            InflationError: an output belongs to single slices: the network pools or reshapes them in its own code.
        """
        if volume.ndim != 5:
            raise InputError(f"an inflated network takes (B, C, D, H, W), got a tensor of shape {tuple(volume.shape)}")
        self.stack.volumes = volume.shape[0]
        return self._unfold_outputs(self.body(self.stack.fold(channels_last(volume))))

    def _unfold_outputs(self, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self._unfold_output(output)
        if isinstance(output, Mapping):
            return {key: self._unfold_outputs(value) for key, value in output.items()}
        if isinstance(output, tuple) and hasattr(output, "_fields"):  # a namedtuple
            return type(output)(*(self._unfold_outputs(value) for value in output))
        if isinstance(output, (list, tuple)):
            return type(output)(self._unfold_outputs(value) for value in output)
        return output

    def _unfold_output(self, output: Tensor) -> Tensor:
        if output.ndim == 4:
            if output.requires_grad and not torch.compiler.is_compiling():
                # Losses give channels-first gradients; batch norm's backward is 13 to 27 times slower on mixed layouts.
                output.register_hook(_channels_last_slices)  # type: ignore[no-untyped-call]
            return self.stack.unfold(output)
        if output.ndim == 2 and output.shape[0] == self.stack.volumes:
            return output
        raise InflationError(
            f"{type(self.body).__name__} gave {tuple(output.shape)} for {self.stack.volumes} volumes, no feature map "
            "and not (B, K): it pools or reshapes single slices in its own code; take its feature maps, or let it pool "
            "with nn.AdaptiveAvgPool2d"
        )
