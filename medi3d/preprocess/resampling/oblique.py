"""Resampling between grids that are turned or sheared against each other, by SimpleITK, box by box.

SimpleITK gets the native voxels of a box as an image of unit spacing and the affine map from target to source indices
as its transform. So a sheared grid, which an image's direction cannot hold, is resampled as exactly as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import SimpleITK as sitk

from medi3d.preprocess.resampling.interpolation import reach_of
from medi3d.preprocess.resampling.separable import Axis, Box, Read, SeparableMap
from medi3d.types import FloatArray, FloatTriple, IntTriple
from medi3d.volume import Affine

_INTERPOLATORS = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline, "nearest": sitk.sitkNearestNeighbor}

_TAKEN_AS_STORED = frozenset(np.dtype(name) for name in ("uint8", "int16", "uint16", "float32"))
"""Types that SimpleITK interpolates without a float32 copy; others (bool, big-endian, half) it may not know."""


@dataclass(frozen=True, eq=False)
class ObliqueMap:
    """Interpolation between two grids, whatever their axes.

    Args:
        to_source: 4×4, target → source index, both (d, h, w).
        source_shape: number of native voxels along (D, H, W).
        target_shape: number of target voxels.
        interpolation: ``linear``, ``bspline`` or ``nearest``.
        sigma: of the Gaussian that smooths the native voxels first, in native voxels along (D, H, W).
        fill: value outside the source; ``None`` takes the nearest native voxel's.
    """

    to_source: Affine
    source_shape: IntTriple
    target_shape: IntTriple
    interpolation: str
    sigma: FloatTriple
    fill: float | None

    @cached_property
    def _reach(self) -> IntTriple:
        """How many native voxels around a place have weight there."""
        d, h, w = (reach_of(self.interpolation, sigma) + 1 for sigma in self.sigma)
        return d, h, w

    @cached_property
    def _to_target(self) -> Affine:
        return np.asarray(np.linalg.inv(self.to_source), dtype=np.float64)

    @cached_property
    def _smoother(self) -> SeparableMap | None:
        if not any(self.sigma):
            return None
        d, h, w = (
            Axis(np.arange(n, dtype=np.float64), n, "nearest", sigma, extend=True)
            for n, sigma in zip(self.source_shape, self.sigma, strict=True)
        )
        return SeparableMap((d, h, w), 0.0)

    def copied(self, targets: Box) -> Box | None:
        """Return ``None``: no box of the target is a box of the source."""
        return None

    def sources(self, targets: Box) -> Box:
        """Return a box of source voxels that holds those that a box of target voxels needs."""
        nearest = _clipped(_mapped(self.to_source, targets), self.source_shape)
        return _clipped(_grown(nearest, self._reach), self.source_shape)

    def targets(self, sources: Box) -> Box:
        """Return a box of target voxels that holds those to which a box of source voxels contributes."""
        at_rim = any(axis.start == 0 or axis.stop == n for axis, n in zip(sources, self.source_shape, strict=True))
        if at_rim and self.fill is None:
            d, h, w = self.target_shape
            return slice(0, d), slice(0, h), slice(0, w)
        return _clipped(_mapped(self._to_target, _grown(sources, self._reach)), self.target_shape)

    def interpolate(self, read: Read, targets: Box) -> FloatArray:
        """Compute a box of the target, see :meth:`SeparableMap.interpolate`."""
        sources = self.sources(targets)
        voxels = read(sources) if self._smoother is None else self._smoother.interpolate(read, sources)
        image = sitk.GetImageFromArray(
            np.ascontiguousarray(voxels, dtype=None if voxels.dtype in _TAKEN_AS_STORED else np.float32)
        )
        image.SetOrigin([float(axis.start) for axis in reversed(sources)])
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize([axis.stop - axis.start for axis in reversed(targets)])
        resampler.SetOutputOrigin([float(axis.start) for axis in reversed(targets)])
        resampler.SetTransform(_transform(self.to_source))
        resampler.SetInterpolator(_INTERPOLATORS[self.interpolation])
        resampler.SetOutputPixelType(sitk.sitkFloat32)
        resampler.SetUseNearestNeighborExtrapolator(self.fill is None)
        resampler.SetDefaultPixelValue(self.fill or 0.0)
        return np.asarray(sitk.GetArrayFromImage(resampler.Execute(image)), dtype=np.float32)


def _mapped(affine: Affine, box: Box) -> Box:
    """Return the box around the images of a box's corners."""
    corners = np.array(list(product(*((axis.start, axis.stop - 1) for axis in box))), dtype=np.float64)
    places = corners @ affine[:3, :3].T + affine[:3, 3]
    first, last = np.floor(places.min(axis=0)).astype(int), np.ceil(places.max(axis=0)).astype(int)
    d, h, w = (slice(int(low), int(high) + 1) for low, high in zip(first, last, strict=True))
    return d, h, w


def _grown(box: Box, reach: IntTriple) -> Box:
    d, h, w = (slice(axis.start - more, axis.stop + more) for axis, more in zip(box, reach, strict=True))
    return d, h, w


def _clipped(box: Box, shape: IntTriple) -> Box:
    """Return the part of a box inside a grid of ``shape``; where there is none, the voxels nearest to it."""
    d, h, w = (
        slice(min(max(axis.start, 0), n - 1), min(max(axis.stop, 1), n)) for axis, n in zip(box, shape, strict=True)
    )
    return d, h, w


def _transform(to_source: Affine) -> sitk.AffineTransform:
    """Return the map of (w, h, d) indices for a map of (d, h, w) indices."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_source[2::-1, 2::-1].ravel().tolist())
    transform.SetTranslation(to_source[2::-1, 3].tolist())
    return transform
