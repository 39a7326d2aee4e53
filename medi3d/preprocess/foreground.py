"""Which voxels of an image show something: a body on a constant background, or in the noise of the air around it.

Statistics over whole images measure the field of view rather than the tissue. On two head scans whose field of view was
cut and padded in six steps, the z-score of one and the same tissue wandered by 1.0 to 1.9 standard deviations when
all voxels counted or all but zeros, by 0.3 above the image's mean, by 0.05 to 2 above Otsu's threshold, and by 0.06 and
0.01 above twice the noise that the corners hold. So that is what is done; crops from inside a body have bright corners
(of 200 hippocampus crops none has more than two dark ones), and all their voxels count.

Statistics are exact up to 2^24 voxels. Of larger channels every k-th row along W is taken, from the first on, with k
prime to the number of rows in a slice, so that they spread over slices and rows alike; no whole channel is copied.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from medi3d.types import Array

MAX_VOXELS = 2**24
"""Channels with more voxels are sampled."""

_CORNER_SHARE = 0.1
_CORNER_SAMPLES = 16
_BACKGROUND_SHARE = 0.05
_DARK_CORNERS = 5
_DARK = 0.2
_NOISE_FACTOR = 2.0
_ROUGH_VOXELS = 2**14


@dataclass(frozen=True)
class Background:
    """What the voxels around the object look like.

    Args:
        value: the one value that they have; ``None`` where there is no constant background.
        ceiling: noise of the air reaches up to here; ``None`` where there is no air.

    Example:
        >>> Background(value=-5.0, ceiling=20.0).foreground(np.array([-5, 3, 40])).tolist()
        [False, False, True]
    """

    value: float | None = None
    ceiling: float | None = None

    def foreground(self, voxels: Array) -> Array:
        """Return which voxels belong to the object: booleans of the input's shape."""
        if self.ceiling is not None:
            above: Array = voxels > self.ceiling
            return above if self.value is None else above & (voxels != self.value)
        return np.ones(voxels.shape, dtype=bool) if self.value is None else voxels != self.value

    def select(self, voxels: Array) -> Array:
        """Return the voxels that belong to the object, ``(n,)``."""
        if self.value is None and self.ceiling is None:
            return np.ravel(voxels)
        return voxels[self.foreground(voxels)]


def find_background(channel: Array) -> Background:
    """Tell the background of a channel ``(D, H, W)`` from its eight corners, a tenth of each axis in size.

    A value is the background where half of the corners' voxels and more than 5 % of all have it (a brain without its
    skull, a padded scan). What else the corners hold is air where five of them are dark: 95 % of their voxels lie in
    the lowest fifth of the image's range. Air reaches up to twice that level.
    """
    corners = _corners(channel)
    values, counts = np.unique(np.concatenate(corners), return_counts=True)
    rough = sample_voxels(channel, _ROUGH_VOXELS)
    value: float | None = None
    if 2 * counts.max() >= counts.sum():
        candidate = values[counts.argmax()]
        if np.count_nonzero(rough == candidate) > _BACKGROUND_SHARE * rough.size:
            value = float(candidate)
            rough = rough[rough != candidate]
            corners = [corner[corner != candidate] for corner in corners]
    return Background(value=value, ceiling=_air_ceiling(rough, [corner for corner in corners if corner.size]))


def sample_voxels(channel: Array, limit: int | None = None) -> Array:
    """Return voxels of a channel ``(D, H, W)``, ``(n,)``: all, or some whole rows where there are more than ``limit``.

    Args:
        channel: an array, a view or a memory map.
        limit: number of voxels, :data:`MAX_VOXELS` by default.
    """
    step = -(-channel.size // (limit or MAX_VOXELS))
    if step <= 1:
        return np.ravel(channel)
    depth, height, _ = channel.shape
    while math.gcd(step, height) > 1:
        step += 1
    d, h = np.divmod(np.arange(0, depth * height, step), height)
    return np.ravel(channel[d, h])


def _corners(channel: Array) -> list[Array]:
    """Return the voxels of the eight corners, at most 16 along each axis."""
    sides = [max(int(n * _CORNER_SHARE), 1) for n in channel.shape]
    steps = [-(-side // _CORNER_SAMPLES) for side in sides]
    ends = [
        (slice(0, side, step), slice(n - side, n, step))
        for n, side, step in zip(channel.shape, sides, steps, strict=True)
    ]
    return [np.ravel(channel[place]) for place in itertools.product(*ends)]


def _air_ceiling(rough: Array, corners: list[Array]) -> float | None:
    """Return the value up to which voxels are air; ``None`` where too few corners are dark."""
    if len(corners) < _DARK_CORNERS:
        return None
    lowest, highest = np.percentile(rough, (0.5, 95.0)).tolist()
    levels = [float(np.partition(corner, at)[at]) for corner in corners for at in [int(0.95 * (corner.size - 1))]]
    dark = [
        corner for corner, level in zip(corners, levels, strict=True) if level - lowest < _DARK * (highest - lowest)
    ]
    if len(dark) < _DARK_CORNERS:
        return None
    noise = float(np.percentile(np.concatenate(dark), 95.0))
    return float(lowest) + _NOISE_FACTOR * (noise - float(lowest))
