"""What is random about a patch's augmentation: every parameter a pure function of the seed and the patch's number.

Ranges are those of :class:`~medi3d.config.AugmentConfig`; which changes there are, and their being drawn one by one,
follows nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z). All numbers of a patch are drawn whether they are
used or not, so switching one change off leaves the others as they are. Nothing here touches a voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medi3d.config import AugmentConfig
from medi3d.types import Array, FloatTriple, IntTriple

AXES = ("D", "H", "W")

_SPATIAL, _INTENSITY, _MIXUP = 2, 3, 4
"""Streams of random numbers; 0 and 1 are those of :mod:`medi3d.data.sampling`."""

_THICK = 3.0
"""From this ratio of spacings on nothing is interpolated along the coarsest axis, as in nnU-Net."""
_KNOT_VOXELS = 16.0
_INJECTIVE = 2.5
"""Cubic B-splines do not fold while displacements stay below the knots' distance over 2.48 (Choi & Lee 2000)."""
_INVERTED = 0.25
"""Share of the changes of gamma that act on the negative; nnU-Net's 0.1 of 0.4."""


@dataclass(frozen=True)
class Warp:
    """Where the voxels of a patch come from: patch voxel ``i`` shows ``c + matrix @ (i - c) + shift + bend(i)``.

    Args:
        matrix: ``(3, 3)``, rotation, scale and mirroring about the patch's centre ``c``, in voxels.
        shift: ``(3,)`` voxels.
        knots: ``(3, gd, gh, gw)`` displacements, voxels, of the control points of a cubic B-spline; ``None`` without
            elastic deformation.
        knot_voxels: distance of the control points.
    """

    matrix: Array
    shift: Array
    knots: Array | None = None
    knot_voxels: float = 0.0

    def source_box(self, size: IntTriple) -> tuple[Array, Array]:
        """Return first and last voxel ``(3,)`` of the box that interpolation reads, from the patch's first voxel."""
        half = (np.array(size) - 1) / 2
        reach = np.abs(self.matrix) @ half
        if self.knots is not None:
            reach = reach + np.abs(self.knots).max(axis=(1, 2, 3))
        middle = half + self.shift
        # a hair wider: the device's coordinates are rounded
        low, high = np.floor(middle - reach - 1e-3), np.floor(middle + reach + 1e-3) + 1
        return low.astype(np.int64), high.astype(np.int64)


@dataclass(frozen=True)
class SpatialChange:
    """How a patch moves: by a warp (mirroring included), or by flips along axes (0 is D), or not at all."""

    warp: Warp | None
    flips: tuple[int, ...]


@dataclass(frozen=True)
class IntensityChange:
    """How a patch's intensities change; each entry of a ``(C,)`` array is for one channel.

    Args:
        blur: ``(C,)`` standard deviation, voxels; 0 leaves a channel.
        coarsen: ``(C,)`` factor by which a channel is coarsened and enlarged again; 1 leaves it.
        smoothed: ``(3,)`` which axes these two act along.
        noise: standard deviation over that of the channel.
        noise_seed: seeds the device's generator.
        contrast: ``(C,)`` factor about the channel's mean.
        brightness: ``(C,)`` added, in standard deviations of the channel.
        gamma: ``(C,)`` exponent over the channel's range.
        inverted: whether gamma acts on the negative.
    """

    blur: Array
    coarsen: Array
    smoothed: Array
    noise: float
    noise_seed: int
    contrast: Array
    brightness: Array
    gamma: Array
    inverted: bool


@lru_cache(maxsize=64)  # asked for when the patch is read and again when it is augmented
def draw_spatial(
    config: AugmentConfig, *, seed: int, number: int, size: IntTriple, spacing_mm: FloatTriple
) -> SpatialChange:
    """Draw how patch ``number`` moves.

    Args:
        config: ranges.
        seed: of the training.
        number: of the patch.
        size: of the patch, ``(D, H, W)`` voxels.
        spacing_mm: of its case, ``(D, H, W)``; rotations are rotations in space, whatever the voxels' shape.
    """
    rng = np.random.default_rng([seed, _SPATIAL, number])
    chosen = rng.random()
    mirrored = rng.random(3) < 0.5
    drawn = rng.uniform(-1, 1, size=(3, 3))
    common = rng.uniform(-1, 1)
    flips = tuple(axis for axis in range(3) if mirrored[axis] and AXES[axis] in config.mirror_axes)
    moves = bool(config.rotate_degrees or config.scale or config.translate or config.elastic)
    if not moves or chosen >= config.spatial_probability:
        return SpatialChange(None, flips)
    free = ~is_thick(spacing_mm)
    angles = config.rotate_degrees * drawn[0] * may_turn(spacing_mm)
    scale = (1 + config.scale) ** ((2 * common + drawn[1]) / 3 * free)
    shift = config.translate * np.array(size) * drawn[2]
    matrix = rotation(angles, spacing_mm, scale=scale)
    matrix[:, list(flips)] *= -1
    knots, distance = _draw_knots(config.elastic, size, free, rng)
    return SpatialChange(Warp(matrix, np.where(free, shift, np.round(shift)), knots, distance), ())


def draw_intensity(
    config: AugmentConfig, *, seed: int, number: int, channels: int, spacing_mm: FloatTriple
) -> IntensityChange:
    """Draw how the intensities of patch ``number`` change; for the arguments see :func:`draw_spatial`."""
    rng = np.random.default_rng([seed, _INTENSITY, number])
    blurs, coarsens, noises, contrasts, brightens, gammas = rng.random(6) < config.intensity_probability
    inverted = bool(rng.random() < _INVERTED)
    noise, noise_seed = rng.random(), int(rng.integers(2**62))
    drawn = rng.uniform(-1, 1, size=(channels, 5))
    share = (drawn + 1) / 2
    return IntensityChange(
        blur=blurs * config.blur * share[:, 0],
        coarsen=1 + coarsens * (config.low_resolution - 1) * share[:, 1],
        smoothed=~is_thick(spacing_mm),
        noise=float(noises * config.noise_std * noise),
        noise_seed=noise_seed,
        contrast=1 + contrasts * config.contrast * drawn[:, 2],
        brightness=brightens * config.brightness * drawn[:, 3],
        gamma=np.exp(gammas * config.gamma * drawn[:, 4]),
        inverted=inverted,
    )


def draw_share(config: AugmentConfig, *, seed: int, number: int) -> float:
    """Draw the share of mixup (Zhang et al. 2018, arXiv:1710.09412) of the batch whose first patch is ``number``."""
    return float(np.random.default_rng([seed, _MIXUP, number]).beta(config.mixup, config.mixup))


def is_thick(spacing_mm: FloatTriple) -> Array:
    """Tell which axes ``(3,)`` are so coarse that nothing is interpolated along them.

    Example:
        >>> is_thick((5.0, 0.8, 0.7)).tolist()
        [True, False, False]
    """
    spacing = np.array(spacing_mm)
    return np.asarray(spacing >= _THICK * spacing.min())


def may_turn(spacing_mm: FloatTriple) -> Array:
    """Tell which axes ``(3,)`` may be turned about: those whose two other axes may both be interpolated along."""
    free = ~is_thick(spacing_mm)
    return np.array([free[1] and free[2], free[0] and free[2], free[0] and free[1]])


def rotation(degrees: Array, spacing_mm: FloatTriple, *, scale: Array | float = 1.0) -> Array:
    """Return a :class:`Warp`'s matrix ``(3, 3)``: rotations in space about D, H and W, whatever the voxels' shape.

    Args:
        degrees: ``(3,)``.
        spacing_mm: of the voxels, ``(D, H, W)``.
        scale: what is shown of space, over the patch's own size; ``(3,)`` or one for all axes.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    spacing = np.array(spacing_mm)
    turned: Array = matrix * scale * spacing / spacing[:, None]
    return turned


def _draw_knots(largest: float, size: IntTriple, free: Array, rng: np.random.Generator) -> tuple[Array | None, float]:
    """Draw the control points of a free-form deformation (Rueckert et al. 1999) that does not fold."""
    if not largest:
        return None, 0.0
    distance = max(_KNOT_VOXELS, _INJECTIVE * largest)
    counts = [int((n - 1) / distance) + 4 for n in size]
    return rng.uniform(-largest, largest, size=(3, *counts)) * free[:, None, None, None], distance
