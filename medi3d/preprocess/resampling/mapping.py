"""How the voxels of one grid are found from another's: the choice of the resampler, the smoothing and the padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from medi3d.preprocess.resampling.interpolation import KERNELS
from medi3d.preprocess.resampling.separable import Axis, Box, Read, SeparableMap
from medi3d.types import Array, FloatArray, FloatTriple
from medi3d.volume import Grid

SAME_VOXELS = 0.01
"""Grids whose corners lie closer than this share of a voxel are one grid; along an axis, too."""
_PARALLEL = 1e-3
"""Share of a voxel by which corners may be off where axes count as parallel."""
_FWHM = 2 * np.sqrt(2 * np.log(2))


class Map(Protocol):
    """Interpolation from a source to a target grid, box by box."""

    def copied(self, targets: Box) -> Box | None:
        """Return the box of source voxels that a box of the target is, where it is one; else ``None``."""

    def sources(self, targets: Box) -> Box:
        """Return a box of source voxels that holds those that a box of target voxels needs."""

    def targets(self, sources: Box) -> Box:
        """Return the box of target voxels to which a box of source voxels contributes; it may be empty."""

    def interpolate(self, read: Read, targets: Box) -> FloatArray:
        """Return a box of the target, float32; ``read`` gives the native voxels."""


def map_between(source: Grid, target: Grid, *, interpolation: str, smoothing: float, fill: float | None) -> Map:
    """Choose how to interpolate from one grid to another.

    Args:
        source: its axes run along those of ``target`` as nearly as they can.
        target: any grid.
        interpolation: ``linear``, ``bspline`` or ``nearest``.
        smoothing: share of the anti-aliasing that is applied along axes that get coarser, 0 to 1.
        fill: value outside the source; ``None`` extends its rim.

    Raises:
        ConfigError: there is no such interpolation.
    """
    sigma = smoothing_sigma(source, target, interpolation, smoothing)
    to_source = np.linalg.inv(source.affine) @ target.affine
    middle = (np.asarray(target.shape) - 1) / 2
    factors = np.diagonal(to_source)[:3]
    skew = np.abs(to_source[:3, :3] - np.diag(factors)) @ middle
    if skew.max() > _PARALLEL and not source.is_close(target, tolerance=SAME_VOXELS):
        from medi3d.preprocess.resampling.oblique import ObliqueMap  # imports SimpleITK, which parallel axes do without

        return ObliqueMap(to_source, source.shape, target.shape, interpolation, sigma, fill)
    center = to_source[:3, :3] @ middle + to_source[:3, 3]
    d, h, w = (
        Axis(
            _snap(center[axis] + factors[axis] * (np.arange(n) - middle[axis])),
            extent,
            interpolation,
            width,
            fill is None,
        )
        for axis, (n, extent, width) in enumerate(zip(target.shape, source.shape, sigma, strict=True))
    )
    return SeparableMap((d, h, w), fill or 0.0)


def smoothing_sigma(source: Grid, target: Grid, interpolation: str, share: float = 1.0) -> FloatTriple:
    """Return the Gaussian's standard deviation, in source voxels along (D, H, W), that a coarser target asks for.

    The point spread of a voxel is taken as a Gaussian whose full width at half maximum is the spacing, so the
    variances' difference is what is missing (Cardoso et al. 2015, "Scale factor point spread function matching"), less
    what the interpolation smooths by itself: linear needs no help up to 1.4 times the spacing, cubic from the start.

    Measured on a brain MR, a chest CT and a phantom, from 1 voxel to 2 and back by splines, with six shifts: aliasing
    (what the shift changes) in standard deviations of the image 0.058 0.095 0.031 unsmoothed, 0.023 0.036 0.015 so and
    0.019 0.028 0.010 with the whole difference; error 0.152 0.264 0.092, 0.165 0.266 0.104 and 0.175 0.278 0.113.
    """
    ratio = np.asarray(target.spacing_mm) / np.asarray(source.spacing_mm)
    missing = (ratio**2 - 1.0) / _FWHM**2 - KERNELS[interpolation].variance
    sigma = np.sqrt(np.maximum(missing, 0.0)) * (0.0 if interpolation == "nearest" else share)
    return float(sigma[0]), float(sigma[1]), float(sigma[2])


@dataclass(frozen=True, eq=False)
class PaddedMap:
    """A map whose target reaches outside the source, where the target's inner voxels are repeated.

    Args:
        inner: the map.
        index: along each of (D, H, W), ``(n,)``: which target voxel gives the value of each target voxel.
    """

    inner: Map
    index: tuple[Array, Array, Array]

    def copied(self, targets: Box) -> Box | None:
        """See :class:`Map`."""
        return None

    def sources(self, targets: Box) -> Box:
        """See :class:`Map`."""
        return self.inner.sources(self._inside(targets))

    def targets(self, sources: Box) -> Box:
        """See :class:`Map`; here, the whole target."""
        d, h, w = (slice(0, len(index)) for index in self.index)
        return d, h, w

    def interpolate(self, read: Read, targets: Box) -> FloatArray:
        """See :class:`Map`."""
        inside = self._inside(targets)
        box = self.inner.interpolate(read, inside)
        return box[
            np.ix_(*(line[target] - axis.start for line, target, axis in zip(self.index, targets, inside, strict=True)))
        ]

    def _inside(self, targets: Box) -> Box:
        lines = [line[target] for line, target in zip(self.index, targets, strict=True)]
        d, h, w = (slice(int(line.min()), int(line.max()) + 1) for line in lines)
        return d, h, w


def pad(inner: Map, source: Grid, target: Grid, *, padding: str) -> Map:
    """Repeat the target's voxels inside the source where it reaches outside.

    Args:
        inner: the map from ``source`` to ``target``.
        source: the field of view.
        target: a grid whose axes run along the source's.
        padding: ``reflect`` (mirrored at the rim, as often as it takes) or ``edge``.

    Returns:
        ``inner`` itself where nothing lies outside.
    """
    start, stop = box_inside(target, source)
    if (start == 0).all() and (stop == target.shape).all():
        return inner
    d, h, w = (_repeat(*axis, padding) for axis in zip(target.shape, start.tolist(), stop.tolist(), strict=True))
    return PaddedMap(inner, (d, h, w))


def box_inside(grid: Grid, field_of_view: Grid) -> tuple[Array, Array]:
    """Return first index and one past the last, each ``(3,)``, of the grid's voxels centred inside a field of view."""
    middle = (np.asarray(grid.shape) - 1) / 2
    start, stop = [], []
    for axis, count in enumerate(grid.shape):
        line = np.tile(middle, (count, 1))
        line[:, axis] = np.arange(count)
        along = field_of_view.world_to_index(grid.index_to_world(line))[:, axis]
        extent = field_of_view.shape[axis]
        inside = np.flatnonzero((along >= -0.5 - 1e-6) & (along <= extent - 0.5 + 1e-6))
        if not inside.size:  # a slab thinner than a voxel lies between two voxel centres
            inside = np.array([np.abs(along - (extent - 1) / 2).argmin()])
        start.append(int(inside[0]))
        stop.append(int(inside[-1]) + 1)
    return np.array(start), np.array(stop)


def _repeat(count: int, start: int, stop: int, padding: str) -> Array:
    """Return for each of ``count`` voxels the one of ``start … stop - 1`` that it repeats."""
    inside, index = stop - start, np.arange(count) - start
    if padding == "edge":
        return np.asarray(np.clip(index, 0, inside - 1) + start)
    folded = np.mod(index, 2 * inside)
    return np.asarray(np.minimum(folded, 2 * inside - 1 - folded) + start)


def _snap(at: Array) -> Array:
    """Let places that are voxels, but for the rounding of headers, be voxels."""
    whole = np.round(at)
    return whole if np.abs(at - whole).max() < SAME_VOXELS else at
