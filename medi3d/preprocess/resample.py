"""Resampling with SimpleITK: images are interpolated, label maps never mix their values (the type decides).

Three conventions. A resampled grid covers the field of view of the old one and shares its centre, so that the content
shifts by nothing (index 0 moves instead; skimage and nnU-Net align voxel corners and stretch the spacing). Voxels at
the rim are extended outwards, never filled with zeros. An axis that gets coarser is smoothed first.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from medi3d.io.itk import array_to_sitk, set_sitk_grid
from medi3d.preprocess.orient import align_axes
from medi3d.types import Array, FloatTriple
from medi3d.volume import Affine, Grid, LabelMap, Volume

V = TypeVar("V", bound=Volume)

_INTERPOLATORS = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline, "nearest": sitk.sitkNearestNeighbor}
_COARSENING_TO_SMOOTH = 1.5
_FWHM = 2 * np.sqrt(2 * np.log(2))
_LABEL_SMOOTHING = 0.5
"""Labels are smoothed by this share of an image's sigma. Dice after a round trip at 1.5 and 2 mm, share 1, 0.5, 0:
150 lung nodules 0.906 0.908 0.907 and 0.854 0.870 0.870 (nearest neighbour: 0.877, 0.846); 40 hippocampi at 2 and 3 mm
0.882 0.884 0.869 and 0.819 0.836 0.818 (nearest: 0.835, 0.776). It also keeps the volumes best."""
_SAME_VOXELS = 0.01
"""Grids whose corners lie closer than this share of a voxel are one grid."""
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
    aligned = align_axes(volume, grid.direction)
    if aligned.grid.is_close(grid, tolerance=_SAME_VOXELS):
        array = aligned.array if isinstance(volume, LabelMap) else aligned.array.astype(np.float32, copy=False)
        return type(volume)(array, grid.affine)
    if isinstance(aligned, LabelMap):
        return type(volume)(_resample_labels(aligned, grid, interpolation, fill), grid.affine)
    return type(volume)(_resample_intensities(aligned, grid, interpolation, fill), grid.affine)


def _resample_intensities(volume: Volume, grid: Grid, interpolation: str, fill: float | None) -> Array:
    output = np.empty((volume.num_channels, *grid.shape), dtype=np.float32)
    sigma = _smoothing_sigma(volume.grid, grid, 1.0 if interpolation != "nearest" else 0.0)
    for channel, array in enumerate(volume.array):
        output[channel] = _resample_channel(array, volume.grid, grid, sigma, interpolation, fill)
    return output


def _resample_labels(label: LabelMap, grid: Grid, interpolation: str, fill: float | None) -> Array:
    """Resample ``(1, D, H, W)`` labels: the label with the largest interpolated share wins, ties go to the lower."""
    values = np.unique(label.array)
    if fill is not None:
        values = np.union1d(values, [int(fill)]).astype(label.array.dtype)
    sigma = _smoothing_sigma(label.grid, grid, _LABEL_SMOOTHING if interpolation != "nearest" else 0.0)
    winner = np.full(grid.shape, values[0], dtype=label.array.dtype)
    best = np.full(grid.shape, -1.0, dtype=np.float32)
    method = "nearest" if interpolation == "nearest" else "linear"
    for value in values:
        one = (label.array[0] == value).astype(np.float32)
        outside = None if fill is None else float(value == int(fill))
        share = _resample_channel(one, label.grid, grid, sigma, method, outside)
        better = share > best
        winner[better], best[better] = value, share[better]
    return winner[None]


def _resample_channel(
    array: Array, source: Grid, grid: Grid, sigma: FloatTriple, interpolation: str, fill: float | None
) -> Array:
    array = np.ascontiguousarray(array, dtype=np.float32)
    if any(sigma):
        array = gaussian_filter(array, sigma, mode="nearest", truncate=3.0)
    resampler = sitk.ResampleImageFilter()
    set_sitk_grid(resampler, grid)
    resampler.SetSize(grid.shape[::-1])
    resampler.SetInterpolator(_INTERPOLATORS[interpolation])
    resampler.SetUseNearestNeighborExtrapolator(fill is None)
    resampler.SetDefaultPixelValue(0.0 if fill is None else float(fill))
    return np.asarray(sitk.GetArrayFromImage(resampler.Execute(array_to_sitk(array[None], source))))


def _smoothing_sigma(source: Grid, target: Grid, share: float) -> FloatTriple:
    """Return the Gaussian's standard deviation, in source voxels along (D, H, W), that a coarser target asks for.

    The point spread of a voxel is taken as a Gaussian whose full width at half maximum is the spacing, so the
    variances' difference is what is missing: Cardoso et al. 2015, "Scale factor point spread function matching".
    """
    ratio = np.asarray(target.spacing_mm) / np.asarray(source.spacing_mm)
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) / _FWHM
    d, h, w = np.where(ratio > _COARSENING_TO_SMOOTH, share * sigma, 0.0)
    return float(d), float(h), float(w)
