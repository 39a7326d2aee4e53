"""Interpolation along one axis, as a matrix of weights: (target voxels) × (source voxels).

Linear and cubic interpolation, the anti-aliasing Gaussian before them and what happens at the rim are all linear in the
voxels, so one banded matrix holds them together. Along an axis on which target and source run parallel, resampling is
the product with it (:mod:`medi3d.preprocess.resampling.separable`).

The cubic is the interpolating B-spline of order 3: Unser 1999, "Splines: a perfect fit for signal and image
processing", IEEE Signal Processing Magazine 16(6), whose prefilter has the impulse response ``6 z / (z² - 1) · z^|k|``
with z = √3 - 2. Its cardinal spline falls off as |z|^k = 0.27^k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medi3d.registry import Registry
from medi3d.types import Array

_POLE = np.sqrt(3.0) - 2.0
_SPLINE_RADIUS = 14
"""Voxels on either side that a cubic looks at: what is left out weighs 0.27^12 = 1e-7, float32's resolution."""
_NEGLIGIBLE = 1e-9
"""Smaller weights become zero: as float32 products they would be denormal numbers, ten times as slow."""
_TRUNCATE = 3.0
"""Standard deviations at which the Gaussian ends."""


@dataclass(frozen=True)
class Kernel:
    """How a place takes its value from the voxels around it.

    Args:
        weight: weight of a voxel by its distance, in voxels.
        radius: number of voxels on either side that are looked at.
        variance: of the kernel, in voxels²: how much it smooths by itself, on the average over places.
    """

    weight: Callable[[Array], Array]
    radius: int
    variance: float


def linear_kernel(distance: Array) -> Array:
    """Return the weight of a voxel at a distance (in voxels)."""
    return np.maximum(1.0 - np.abs(distance), 0.0)


def cubic_kernel(distance: Array) -> Array:
    """Return the weight of a voxel at a distance (in voxels): the cardinal cubic spline."""
    reach = np.arange(-_SPLINE_RADIUS, _SPLINE_RADIUS + 1)
    response = 6.0 * _POLE / (_POLE**2 - 1.0) * _POLE ** np.abs(reach)
    x = np.abs(np.asarray(distance)[..., None] - reach)
    inner = 2.0 / 3.0 - x**2 * (1.0 - x / 2.0)
    outer = np.maximum(2.0 - x, 0.0) ** 3 / 6.0
    return np.asarray(np.where(x < 1.0, inner, outer) @ response)


KERNELS: Registry[Kernel] = Registry("interpolation")

KERNELS.add("linear", Kernel(linear_kernel, radius=1, variance=1 / 6))
KERNELS.add("bspline", Kernel(cubic_kernel, radius=_SPLINE_RADIUS, variance=0.0))
KERNELS.add("nearest", Kernel(lambda distance: (distance == 0.0).astype(np.float64), radius=1, variance=1 / 12))


def axis_weights(at: Array, extent: int, *, interpolation: str, sigma: float, extend: bool) -> Array:
    """Return the weights of the source voxels along an axis for each target voxel.

    Args:
        at: ``(n,)``, where the target voxels' centres lie, as source indices.
        extent: number of source voxels.
        interpolation: ``linear``, ``bspline`` (mirrored at the rim, as SimpleITK does) or ``nearest``.
        sigma: standard deviation of the Gaussian that smooths the source first, in source voxels; 0 leaves it as it is.
        extend: whether the rim is extended outwards. Otherwise rows of voxels outside the field of view, which reaches
            half a voxel beyond the outermost centres, are zero.

    Returns:
        ``(n, extent)`` float64; rows add up to 1 (or 0).

    Example:
        >>> axis_weights(np.array([0.25, 9.0]), 3, interpolation="linear", sigma=0.0, extend=True).tolist()
        [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]
    """
    kernel = KERNELS[interpolation]
    inside = is_inside(at, extent)
    last = extent - 1
    place = np.where(inside, at, np.clip(np.round(at), 0, last))
    if interpolation != "bspline":
        place = np.clip(place, 0, last)
    if interpolation == "nearest":
        place = np.floor(place + 0.5)  # SimpleITK's rounding
    voxel = np.floor(place)[:, None].astype(int) + np.arange(1 - kernel.radius, kernel.radius + 1)
    weights = np.zeros((len(at), extent))
    rows = np.broadcast_to(np.arange(len(at))[:, None], voxel.shape)
    np.add.at(weights, (rows, _mirror(voxel, extent)), kernel.weight(place[:, None] - voxel))
    if sigma > 0:
        weights = _smooth_first(weights, sigma)
    weights[np.abs(weights) < _NEGLIGIBLE] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return weights if extend else weights * inside[:, None]


def is_inside(at: Array, extent: int) -> Array:
    """Tell which source indices lie in the field of view, half a voxel around the outermost centres."""
    slack = 1e-6
    return np.asarray((at >= -0.5 - slack) & (at <= extent - 0.5 + slack))


def reach_of(interpolation: str, sigma: float) -> int:
    """Return how many source voxels beside a place have weight in :func:`axis_weights`."""
    return KERNELS[interpolation].radius + gaussian_radius(sigma)


def gaussian_radius(sigma: float) -> int:
    """Return the number of voxels on either side of the sampled Gaussian."""
    return int(_TRUNCATE * sigma + 0.5)


def _smooth_first(weights: Array, sigma: float) -> Array:
    """Multiply weights ``(n, extent)`` with the matrix of a sampled Gaussian whose input is extended at the rim."""
    radius = gaussian_radius(sigma)
    extent = weights.shape[1]
    steps = np.arange(-radius, radius + 1)
    gaussian = np.exp(-0.5 * (steps / sigma) ** 2)
    smoothed = np.zeros_like(weights)
    for step, share in zip(steps, gaussian / gaussian.sum(), strict=True):
        np.add.at(smoothed.T, np.clip(np.arange(extent) + step, 0, extent - 1), share * weights.T)
    return smoothed


def _mirror(voxel: Array, extent: int) -> Array:
    """Fold indices back into ``0 … extent - 1``, mirrored at the centres of the outermost voxels."""
    period = max(2 * extent - 2, 1)
    folded = np.mod(voxel, period)
    return np.asarray(np.minimum(folded, period - folded) if extent > 1 else np.zeros_like(voxel))
