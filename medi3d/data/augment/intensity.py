"""Changing a patch's intensities as drawn: blur, low resolution, noise, contrast, brightness, gamma.

Blur and low resolution are both linear along each axis, so they are one small matrix an axis: on a patch of 40×56×40
three products take a sixth of the time of three convolutions with 9 taps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medi3d.data.augment.draw import IntensityChange
from medi3d.types import Array

_SMALL = 1e-6


def change_intensities(image: Tensor, change: IntensityChange, generator: torch.Generator) -> Tensor:
    """Change the intensities of a patch.

    Args:
        image: ``(C, D, H, W)`` float32, left as it is.
        change: what was drawn.
        generator: of the image's device; it is seeded anew.

    Returns:
        ``(C, D, H, W)``; the image itself where nothing changes.
    """
    graded = (change.contrast != 1).any() or change.brightness.any()
    if change.noise or graded:
        flat = image.flatten(1)
        mean = flat.mean(1)
        # in vectorised passes: a tenth of the time of torch.std, and less of that of torch.var_mean
        std = (flat - mean[:, None]).square_().mean(1).sqrt_().clamp_min(_SMALL)
        mean, std = mean[:, None, None, None], std[:, None, None, None]  # (C, 1, 1, 1)
    if (change.blur > 0).any() or (change.coarsen > 1).any():
        image = _smooth(image, change)
    if change.noise:
        generator.manual_seed(change.noise_seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = torch.addcmul(image, noise, std * change.noise)
    if graded:
        contrast = _by_channel(change.contrast, image)
        image = torch.addcmul(mean * (1 - contrast) + std * _by_channel(change.brightness, image), image, contrast)
    if (change.gamma != 1).any():
        image = _change_gamma(image, _by_channel(change.gamma, image), inverted=change.inverted)
    return image


def smoothing_matrix(n: int, *, blur: float, coarsen: float) -> Array:
    """Return the matrix ``(n, n)`` that blurs and coarsens ``n`` voxels; its rows add up to 1.

    Args:
        n: number of voxels along the axis.
        blur: standard deviation of a Gaussian, voxels.
        coarsen: factor; coarse voxels are averages, read again by linear interpolation.
    """
    matrix = np.eye(n)
    if blur > 0:
        index = np.arange(n)
        matrix = np.exp(-((index[:, None] - index) ** 2) / (2 * blur**2))
        matrix /= matrix.sum(axis=1, keepdims=True)
    if coarsen > 1:
        coarse = max(round(n / coarsen), 1)
        edges = np.arange(coarse + 1) * (n / coarse)
        index = np.arange(n)
        covered = np.minimum(edges[1:, None], index + 1) - np.maximum(edges[:-1, None], index)
        average = np.clip(covered, 0, None) * (coarse / n)
        place = np.clip((index + 0.5) * (coarse / n) - 0.5, 0, coarse - 1)
        interpolate = np.clip(1 - np.abs(place[:, None] - np.arange(coarse)), 0, None)
        matrix = interpolate @ average @ matrix
    return matrix


def _smooth(image: Tensor, change: IntensityChange) -> Tensor:
    """Multiply by one matrix an axis and channel."""
    c, d, h, w = image.shape
    along_d, along_h, along_w = (
        _matrices(n, change).to(image.device, non_blocking=True) if moved else None
        for n, moved in zip((d, h, w), change.smoothed, strict=True)
    )
    if along_d is not None:
        image = torch.bmm(along_d, image.reshape(c, d, h * w)).reshape(c, d, h, w)
    if along_h is not None:
        image = torch.matmul(along_h[:, None], image)
    if along_w is not None:
        image = torch.matmul(image, along_w.transpose(1, 2)[:, None])
    return image


def _matrices(n: int, change: IntensityChange) -> Tensor:
    """Return ``(C, n, n)``."""
    drawn = zip(change.blur.tolist(), change.coarsen.tolist(), strict=True)
    matrices = [smoothing_matrix(n, blur=blur, coarsen=coarsen) for blur, coarsen in drawn]
    return torch.from_numpy(np.stack(matrices).astype(np.float32))


def _change_gamma(image: Tensor, gamma: Tensor, *, inverted: bool) -> Tensor:
    """Raise each channel's range, mapped to 0 to 1, to a power; its ends stay."""
    low, high = torch.aminmax(image.flatten(1), dim=1)
    low, high = low[:, None, None, None], high[:, None, None, None]
    zero, span = (high, low - high) if inverted else (low, high - low)
    span = torch.where(span.abs() < _SMALL, _SMALL, span)
    # a power by logarithms to base 2 is twice as fast as torch.pow
    share = ((image - zero) / span).clamp_min_(0).log2_().mul_(gamma).exp2_()
    return torch.addcmul(zero, share, span)


def _by_channel(values: Array, image: Tensor) -> Tensor:
    tensor = torch.from_numpy(values.astype(np.float32)).to(image.device, non_blocking=True)
    return tensor[:, None, None, None]
