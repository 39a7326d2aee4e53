"""Depthwise 3D convolution with a fast backward pass on a CPU.

oneDNN has fast forward kernels for depthwise 3D convolution in channels-last memory and backward ones that are 10 to
300 times slower (benchmarks/README.md, Inflation). But both gradients are themselves depthwise convolutions, and so
can run at forward speed: that of the input convolves the gradient with the flipped kernel, that of the kernel
convolves the input with the gradient. Where the gradient is too large a kernel for that, the kernel's gradient is
taken slice by slice.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medi3d.types import IntTriple

IntPair: TypeAlias = tuple[int, int]

# Largest gradient, in voxels, that is a good kernel: for kernels up to 3 wide slices are soon faster, for wider ones
# later.
_SMALL_FOR_NARROW = 64
_SMALL_FOR_WIDE = 512


def conv3d_depthwise(
    volume: Tensor, weight: Tensor, bias: Tensor | None, stride: IntTriple, padding: IntTriple, dilation: IntTriple
) -> Tensor:
    """Convolve each channel of volumes (B, C, D, H, W) with its kernel of (C, 1, T, kH, kW), in float32 on a CPU."""
    output: Tensor = _DepthwiseConv.apply(volume, weight, bias, stride, padding, dilation)
    return output


class _DepthwiseConv(torch.autograd.Function):
    """One filter a channel: (B, C, D, H, W) and (C, 1, T, kH, kW) → (B, C, D', H', W')."""

    @staticmethod
    def forward(
        ctx: Any,
        volume: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: IntTriple,
        padding: IntTriple,
        dilation: IntTriple,
    ) -> Tensor:
        ctx.save_for_backward(volume, weight)
        ctx.settings = stride, padding, dilation
        return F.conv3d(volume, weight, bias, stride, padding, dilation, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        volume, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last_3d)
        needs_volume, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            _volume_gradient(grad, volume, weight, *ctx.settings) if needs_volume else None,
            _weight_gradient(grad, volume, weight, *ctx.settings) if needs_weight else None,
            grad.sum((0, 2, 3, 4)) if needs_bias else None,
            *(None, None, None),
        )


def _native_gradients(
    grad: Tensor, volume: Tensor, weight: Tensor, settings: tuple[IntTriple, ...], mask: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    stride, padding, dilation = settings
    gradients = torch.ops.aten.convolution_backward(
        *(grad, volume, weight, None, stride, padding, dilation, False, (0, 0, 0), weight.shape[0], (*mask, False))
    )
    return gradients[0], gradients[1]


def _volume_gradient(
    grad: Tensor, volume: Tensor, weight: Tensor, stride: IntTriple, padding: IntTriple, dilation: IntTriple
) -> Tensor:
    taps = weight.shape[2:]
    margin = [step * (size - 1) - pad for step, size, pad in zip(dilation, taps, padding, strict=True)]
    if min(margin) < 0:  # padding wider than the kernel
        return _native_gradients(grad, volume, weight, (stride, padding, dilation), (True, False))[0]
    # Positions that no window reaches are zeros at the far end; a stride puts zeros between the positions of the
    # gradient.
    sizes = [
        n + 2 * pad - step * (size - 1)
        for n, pad, step, size in zip(volume.shape[2:], padding, dilation, taps, strict=True)
    ]
    if list(grad.shape[2:]) != sizes:
        spread = torch.zeros(grad.shape[0], *sizes, grad.shape[1], dtype=grad.dtype).permute(0, 4, 1, 2, 3)
        spread[:, :, :: stride[0], :: stride[1], :: stride[2]] = grad
        grad = spread
    return F.conv3d(grad, weight.flip(2, 3, 4), None, 1, margin, dilation, weight.shape[0])


def _weight_gradient(
    grad: Tensor, volume: Tensor, weight: Tensor, stride: IntTriple, padding: IntTriple, dilation: IntTriple
) -> Tensor:
    is_wide = max(weight.shape[2:]) > 3
    if max(stride) == 1 and grad[0, 0].numel() <= (_SMALL_FOR_WIDE if is_wide else _SMALL_FOR_NARROW):
        return _weight_gradient_by_volume(grad, volume, weight, stride, padding, dilation)
    if padding[0]:
        volume = F.pad(volume, (0, 0, 0, 0, padding[0], padding[0]))
    method = _weight_gradient_by_plane if is_wide else _weight_gradient_by_tap
    total = torch.zeros_like(weight)
    last = (grad.shape[2] - 1) * stride[0]
    for tap in range(weight.shape[2]):
        start = tap * dilation[0]
        seen = volume[:, :, start : start + last + 1 : stride[0]]  # what this tap saw: as many slices as the gradient
        total[:, :, tap] = method(grad, seen, weight[:, :, tap], stride[1:], padding[1:], dilation[1:])
    return total


def _weight_gradient_by_volume(
    grad: Tensor, volume: Tensor, weight: Tensor, stride: IntTriple, padding: IntTriple, dilation: IntTriple
) -> Tensor:
    """Convolve each volume with its gradient as the kernel; stride and dilation change places."""
    channels, _, *taps = weight.shape
    total = torch.zeros_like(weight)
    for one, kernel in zip(volume.unsqueeze(1), grad.unsqueeze(2), strict=True):  # (1, C, D, H, W), (C, 1, D', H', W')
        total += F.conv3d(one, kernel, None, dilation, padding, stride, channels)[
            :, :, : taps[0], : taps[1], : taps[2]
        ].transpose(0, 1)
    return total


def _weight_gradient_by_plane(
    grad: Tensor, seen: Tensor, weight: Tensor, stride: IntPair, padding: IntPair, dilation: IntPair
) -> Tensor:
    """Convolve each slice that a tap saw with the slice's gradient as the kernel."""
    slices, kernels = seen.transpose(1, 2), grad.transpose(1, 2)  # (B, D, C, H, W)
    count = kernels[..., 0, 0].numel()
    per_slice = F.conv2d(
        slices.reshape(1, count, *slices.shape[3:]),  # a channel for each of the B·D·C planes
        kernels.reshape(count, 1, *kernels.shape[3:]),
        *(None, dilation, padding, stride, count),
    )
    total = per_slice.view(-1, weight.shape[0], *per_slice.shape[2:]).sum(0)  # (B·D, C, kH, kW) → (C, kH, kW)
    return total[:, None, : weight.shape[2], : weight.shape[3]]


def _weight_gradient_by_tap(
    grad: Tensor, seen: Tensor, weight: Tensor, stride: IntPair, padding: IntPair, dilation: IntPair
) -> Tensor:
    """Take the gradient that a 2D depthwise convolution of the seen slices has."""
    total = torch.zeros_like(weight)
    for slices, slices_grad in zip(seen.transpose(1, 2), grad.transpose(1, 2), strict=True):  # views, (D, C, H, W)
        total += torch.ops.aten.convolution_backward(
            *(slices_grad, slices, weight, None, stride, padding, dilation),
            *(False, (0, 0), weight.shape[0], (False, True, False)),
        )[1]
    return total
