"""3D convolution as `torch.nn.functional.conv3d` defines it, by the method that trains fastest on a CPU.

Everything here gives conv3d's result and gradients; which method wins was measured (benchmarks/README.md, Inflation).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medi3d.inflation.depthwise import conv3d_depthwise
from medi3d.types import IntTriple

# With this few output positions a dense convolution spends its time on its weights, which one matrix product reads
# once.
_FEW_POSITIONS = 128


def conv3d(
    volume: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntTriple,
    padding: IntTriple,
    dilation: IntTriple,
    groups: int,
) -> Tensor:
    """Convolve volumes (B, I, D, H, W) with a kernel (O, I/groups, T, kH, kW)."""
    if volume.device.type == "cpu" and not torch.compiler.is_compiling():
        if 1 < groups == volume.shape[1] == weight.shape[0] and _is_trained(volume, weight):
            # oneDNN's depthwise gradients in bfloat16 are 10 times slower than these in float32.
            with torch.autocast("cpu", enabled=False):
                bias = None if bias is None else bias.float()
                return conv3d_depthwise(volume.float(), weight.float(), bias, stride, padding, dilation)
        if groups == 1 == max(dilation) and _count_positions(volume, weight, stride, padding) <= _FEW_POSITIONS:
            return _conv3d_as_product(volume, weight, bias, stride, padding)
    return F.conv3d(volume, weight, bias, stride, padding, dilation, groups)


def _is_trained(volume: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and torch.float64 not in (volume.dtype, weight.dtype)


def _count_positions(volume: Tensor, weight: Tensor, stride: IntTriple, padding: IntTriple) -> int:
    count = volume.shape[0]
    for size, taps, step, pad in zip(volume.shape[2:], weight.shape[2:], stride, padding, strict=True):
        count *= (size + 2 * pad - taps) // step + 1
    return count


def _conv3d_as_product(
    volume: Tensor, weight: Tensor, bias: Tensor | None, stride: IntTriple, padding: IntTriple
) -> Tensor:
    depth, height, width = padding
    windows = F.pad(volume, (width, width, height, height, depth, depth))
    for axis in range(3):  # (B, I, D', H', W', T, kH, kW)
        windows = windows.unfold(2 + axis, weight.shape[2 + axis], stride[axis])
    windows = windows.permute(0, 2, 3, 4, 5, 6, 7, 1).flatten(4)  # (B, D', H', W', T·kH·kW·I)
    rows = weight.permute(0, 2, 3, 4, 1).flatten(1)  # (O, T·kH·kW·I), a view of a channels-last kernel
    return F.linear(windows, rows, bias).permute(0, 4, 1, 2, 3)
