"""The inflated network: an ordinary module that takes volumes and runs the 2D network with hidden depth."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor, nn

from medi3d.errors import InflationError, InputError, Medi3dError
from medi3d.inflation.convolution import channels_last
from medi3d.inflation.functions import Volumetric
from medi3d.inflation.hidden import HiddenDepth, is_compiling
from medi3d.inflation.running import map_tensors


class Inflated(nn.Module):
    """A 2D network that takes volumes; made by `medi3d.inflation.inflate`.

    Args:
        body: the 2D network, with inflated kernels.
        depth: the hidden axes, which hooks on layers of ``body`` share.
        mixes: whether slices are to meet at all; else every slice is answered by itself.
    """

    def __init__(self, body: nn.Module, depth: HiddenDepth, *, mixes: bool = True) -> None:
        super().__init__()
        self.body = body
        self.depth = depth
        self.mixes = mixes
        self.training = body.training

    def forward(self, volume: Tensor) -> Any:
        """Run the network on a batch of volumes.

        Args:
            volume: (B, C, D, H, W) intensities on the scale that the 2D network was trained on.

        Returns:
            What the 2D network returns, feature maps (B, C, H, W) as (B, C, D, H, W); classifier outputs stay (B, K).

        Raises:
            InputError: the input does not have five dimensions.
            InflationError: a layer could not run on volumes, no two slices met, or an output is neither a feature map
                nor (B, K).
        """
        if volume.ndim != 5:
            raise InputError(f"an inflated network takes (B, C, D, H, W), got a tensor of shape {tuple(volume.shape)}")
        if is_compiling():
            return self._run(volume)
        try:
            return self._run(volume)
        except (Medi3dError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise InflationError(f"{self._find_culprit(error)} cannot run on a volume: {error}") from error

    def _run(self, volume: Tensor) -> Any:
        if not self.mixes:
            return self._run_slices(volume)
        with self.depth.entered():
            hidden = self.depth.hide(channels_last(volume), 2)
            with Volumetric(self.depth):
                output = self.body(hidden)
            if not self.depth.mixes:
                raise InflationError(
                    f"cannot inflate {type(self.body).__name__}: nothing in it looks at neighbouring positions, so its "
                    'slices would never mix; plan="slicewise" runs it on each slice'
                )
            return map_tensors(output, self._reveal)

    def _run_slices(self, volume: Tensor) -> Any:
        """Run the 2D network on all slices as one batch."""
        slices = channels_last(volume).transpose(1, 2).flatten(0, 1)  # (B, C, D, H, W) → (B·D, C, H, W)

        def unfold(output: Tensor) -> Tensor:
            stacked = output.view(*volume.shape[:3:2], *output.shape[1:])  # (B, D, …)
            return stacked.transpose(1, 2) if output.ndim == 4 else stacked.mean(1)

        return map_tensors(self.body(slices), unfold)

    def _reveal(self, output: Tensor) -> Tensor:
        output = self.depth.settle(output)
        if output.ndim == 4:
            volume = self.depth.reveal(output, 2)
            if volume.requires_grad and not is_compiling():
                # Losses give channels-first gradients; batch norm's backward is 13 to 27 times slower on mixed layouts.
                volume.register_hook(channels_last)  # type: ignore[no-untyped-call]
            return volume
        if output.ndim == 2:
            return self.depth.reveal(output, 0).mean(0)
        raise InflationError(
            f"{type(self.body).__name__} gave {tuple(output.shape)} for each slice, no feature map (B, C, H, W) and "
            "not (B, K): let it pool its tokens or give feature maps"
        )

    def _find_culprit(self, error: BaseException) -> str:
        """Name the innermost module of the network that an exception came through."""
        names = {id(module): name for name, module in self.body.named_modules()}
        found = type(self.body).__name__
        for frame, _ in traceback.walk_tb(error.__traceback__):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and names.get(id(module)):
                found = f"{names[id(module)]!r} ({type(module).__name__})"
        return found
