"""Resampling: images are interpolated, label maps never mix their values (the type decides).

Three conventions. A resampled grid covers the field of view of the old one and shares its centre, so that the content
shifts by nothing (index 0 moves instead; skimage and nnU-Net align voxel corners and stretch the spacing). Voxels at
the rim are extended outwards, never filled with zeros. An axis that gets coarser is smoothed first.

Everything is computed slab by slab along D, so that memory holds the native voxels as they are stored and one slab.
Where axes run parallel it is three products with matrices (:mod:`~medi3d.preprocess.resampling.separable`), otherwise
SimpleITK (:mod:`~medi3d.preprocess.resampling.oblique`); the tests hold both to SimpleITK called by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from medi3d.preprocess.orient import align_axes
from medi3d.preprocess.resampling.labels import LabelResampler
from medi3d.preprocess.resampling.mapping import map_between, pad
from medi3d.preprocess.resampling.separable import Box
from medi3d.types import Array, FloatArray, FloatTriple
from medi3d.volume import Affine, Grid, LabelMap, Volume

V = TypeVar("V", bound=Volume)

_COVER_SLACK = 0.05
"""Share of a voxel at the rim that may stay uncovered, so that 499.99 mm do not become 501 voxels."""


def isotropic_grid(grid: Grid, spacing_mm: FloatTriple) -> Grid:
    """Return the grid of another spacing that covers the same field of view, with the same centre.

    Args:
        grid: the present grid; a sheared one gets the upright box around it.
        spacing_mm: the new spacing along (D, H, W); despite the name it may differ between axes.

    Example:
        >>> isotropic_grid(Grid((10, 40, 40), np.diag([3.0, 0.5, 0.5, 1.0])), (1.0, 1.0, 1.0)).shape
        (30, 20, 20)
    """
    direction = nearest_rotation(grid.direction)
    bounds = np.array([[-0.5, n - 0.5] for n in grid.shape])
    corners = np.stack(np.meshgrid(*bounds, indexing="ij"), axis=-1).reshape(-1, 3)
    along = grid.index_to_world(corners) @ direction  # (8, 3) millimetres along the new axes
    extent = along.max(axis=0) - along.min(axis=0)
    shape = np.maximum(np.ceil(extent / np.asarray(spacing_mm) - _COVER_SLACK), 1).astype(int)
    return centered_grid(direction @ (along.max(axis=0) + along.min(axis=0)) / 2, shape, direction, spacing_mm)


def centered_grid(center_mm: Array, shape: Array, direction: Affine, spacing_mm: FloatTriple) -> Grid:
    """Return the grid of ``shape`` voxels whose middle is ``center_mm`` (RAS) and whose axes are ``direction``."""
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(spacing_mm)
    affine[:3, 3] = center_mm - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def nearest_rotation(direction: Affine) -> Affine:
    """Return the orthogonal matrix nearest to ``direction`` (polar decomposition); a reflection stays one."""
    if np.allclose(direction.T @ direction, np.eye(3), atol=1e-12):
        return direction
    u, _, v = np.linalg.svd(direction)
    return np.asarray(u @ v, dtype=np.float64)


class ImageResampler:
    """An image on another grid, computed slab by slab along D.

    Args:
        array: ``(C, D, H, W)`` of any real type; a view or a memory map will do, it is neither copied nor changed.
        source: where its voxels lie.
        target: where the new voxels lie.
        interpolation: ``linear``, ``bspline`` or ``nearest``.
        padding: what a target that reaches outside the source holds there: ``reflect`` (what is inside, mirrored at the
            rim as often as it takes), ``edge``, or ``None`` for the native rim, extended outwards.
        fill: value outside the source, in place of ``padding``.
        before: what is done to native voxels ``(d, h, w)`` of a channel before they are smoothed and interpolated,
            voxel by voxel; it gets the number of the channel as well.
        smoothing: share of the anti-aliasing along axes that get coarser, 0 to 1.

    Raises:
        ConfigError: there is no such interpolation.

    Example:
        >>> array = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
        >>> source = Grid((2, 3, 4), np.diag([2.0, 1.0, 1.0, 1.0]))
        >>> finer = ImageResampler(array, source, isotropic_grid(source, (1.0, 1.0, 1.0)))
        >>> finer.shape, finer.slab(1, 3)[0, :, 0, 0].tolist()
        ((1, 4, 3, 4), [3.0, 9.0])
    """

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(
        self,
        array: Array,
        source: Grid,
        target: Grid,
        *,
        interpolation: str = "linear",
        padding: str | None = "reflect",
        fill: float | None = None,
        before: Callable[[Array, int], Array] | None = None,
        smoothing: float = 1.0,
    ) -> None:
        aligned = align_axes(Volume(array, source.affine), target.direction)
        self._array = aligned.array
        self._shape = target.shape
        self._before = before
        self._map = map_between(aligned.grid, target, interpolation=interpolation, smoothing=smoothing, fill=fill)
        if padding is not None and fill is None:
            self._map = pad(self._map, aligned.grid, target, padding=padding)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(C, D, H, W)`` of the whole."""
        return (len(self._array), *self._shape)

    def slab(self, start: int, stop: int) -> FloatArray:
        """Compute the planes ``start … stop - 1`` of every channel, ``(C, d, H, W)`` float32."""
        if len(self._array) == 1:
            return self.channel_slab(0, start, stop)[None]
        return np.stack([self.channel_slab(channel, start, stop) for channel in range(len(self._array))])

    def channel_slab(self, channel: int, start: int, stop: int) -> FloatArray:
        """Compute the planes ``start … stop - 1`` of one channel, ``(d, H, W)`` float32."""
        native, before = self._array[channel], self._before

        def read(box: Box) -> Array:
            return native[box] if before is None else before(native[box], channel)

        return self._map.interpolate(read, (slice(start, stop), slice(0, self._shape[1]), slice(0, self._shape[2])))


def resample_to(volume: V, grid: Grid, *, interpolation: str = "linear", fill: float | None = None) -> V:
    """Resample a volume or a label map onto a grid, in one step and whatever the orientations.

    Args:
        volume: an image (becomes float32) or a label map (keeps its type; every label is interpolated linearly and the
            largest wins, so that no value appears that was not there).
        grid: where the new voxels lie.
        interpolation: ``linear``, ``bspline`` or ``nearest``.
        fill: value of voxels outside the volume; ``None`` extends the rim outwards.

    Returns:
        A volume on ``grid``. Where the grids coincide, up to permuted and flipped axes, the voxels themselves.

    Example:
        >>> volume = Volume(np.ones((1, 4, 5, 6), np.float32), np.diag([2.0, 1.0, 1.0, 1.0]))
        >>> resample_to(volume, isotropic_grid(volume.grid, (1.0, 1.0, 1.0))).shape
        (8, 5, 6)
    """
    if isinstance(volume, LabelMap):
        label = LabelResampler(
            volume.array, volume.grid, grid, interpolation=interpolation, fill=None if fill is None else int(fill)
        )
        return type(volume)(label.slab(0, grid.shape[0]), grid.affine)
    image = ImageResampler(volume.array, volume.grid, grid, interpolation=interpolation, padding=None, fill=fill)
    return type(volume)(image.slab(0, grid.shape[0]), grid.affine)
