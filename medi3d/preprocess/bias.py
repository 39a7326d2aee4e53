"""Removing the smooth shading of MR images: N4 (Tustison 2010, IEEE TMI 29:1310), as SimpleITK computes it.

The field is fitted on a copy of some 4 mm, because it is smooth, and interpolated at every voxel, a few planes at a
time. How smooth it is goes by millimetres, as in ANTs: spline elements of 200 mm, halved up to three times; in a small
field of view less often, so that no element gets shorter than 25 mm and starts to follow the anatomy.
"""

from __future__ import annotations

import numpy as np

from medi3d.errors import InputError
from medi3d.io.itk import array_to_sitk
from medi3d.preprocess.foreground import Background, find_background
from medi3d.types import Array, FloatArray, IntTriple
from medi3d.volume import Grid

_FITTED_SPACING_MM = 4.0
_LEAST_VOXELS = 8
_ELEMENT_MM, _SHORTEST_ELEMENT_MM = 200.0, 25.0
_LEVELS, _ITERATIONS, _CONVERGENCE = 4, 50, 1e-3
_SPLINE_ORDER = 3
_PLANES = 16


def correct_bias(channel: Array, grid: Grid) -> FloatArray:
    """Divide a channel by its bias field.

    Args:
        channel: ``(D, H, W)``, intensities as scanned; it may be a memory map.
        grid: where its voxels lie.

    Returns:
        Corrected intensities, float32, of the same shape; a constant background keeps its value.

    Raises:
        InputError: the foreground holds negative values, so this is no magnitude image any more; or it is empty.
    """
    background = find_background(channel)
    factors = shrink_factors(grid)
    small = channel[tuple(slice(factor // 2, None, factor) for factor in factors)]
    log_field = _fit_log_field(small, background, Grid(small.shape, grid.affine @ np.diag([*factors, 1])))
    along = [
        _interpolation(n, factor, count) for n, factor, count in zip(grid.shape, factors, small.shape, strict=True)
    ]
    corrected = np.empty(channel.shape, dtype=np.float32)
    for start in range(0, grid.shape[0], _PLANES):
        planes = slice(start, start + _PLANES)
        coarse = np.tensordot(along[0][planes], log_field, axes=1)  # (planes, h, w)
        corrected[planes] = channel[planes] * np.exp(-(along[1] @ coarse @ along[2].T))
        if background.value is not None:
            corrected[planes][channel[planes] == background.value] = background.value
    return corrected


def shrink_factors(grid: Grid) -> IntTriple:
    """Return by how much each axis is thinned out for the fit: to 4 mm or less, but to no fewer than 8 voxels.

    Example:
        >>> shrink_factors(Grid((22, 320, 280), np.diag([6.5, 0.6875, 0.6875, 1.0])))
        (1, 5, 5)
    """
    d, h, w = (
        max(min(int(_FITTED_SPACING_MM / spacing), n // _LEAST_VOXELS), 1)
        for n, spacing in zip(grid.shape, grid.spacing_mm, strict=True)
    )
    return d, h, w


def _fit_log_field(small: Array, background: Background, grid: Grid) -> Array:
    """Return the logarithm of the bias field on the thinned-out grid, float32."""
    import SimpleITK as sitk

    mask = background.foreground(small)
    if not mask.any() or small[mask].min() < 0 or not small[mask].any():
        found = "negative values" if mask.any() and small[mask].min() < 0 else "no foreground"
        raise InputError(
            f"a bias field is found in magnitude images only, but this one holds {found}; was it normalised before? "
            "Set preprocess.bias_correction to none"
        )
    extent = np.multiply(grid.shape, grid.spacing_mm)
    levels = int(np.clip(1 + np.floor(np.log2(min(*extent, _ELEMENT_MM) / _SHORTEST_ELEMENT_MM)), 1, _LEVELS))
    points = np.ceil(extent / _ELEMENT_MM).astype(int) + _SPLINE_ORDER
    image = array_to_sitk(np.ascontiguousarray(small, dtype=np.float32)[None], grid)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([_ITERATIONS] * levels)
    n4.SetConvergenceThreshold(_CONVERGENCE)
    n4.SetNumberOfControlPoints(points[::-1].tolist())
    n4.Execute(image, array_to_sitk((mask & (small > 0)).astype(np.uint8)[None], grid))
    return np.asarray(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)))


def _interpolation(fine: int, factor: int, coarse: int) -> Array:
    """Return the matrix ``(fine, coarse)`` that interpolates linearly, beyond the ends too, along one axis."""
    if coarse == 1:
        return np.ones((fine, 1), dtype=np.float32)
    place = (np.arange(fine) - factor // 2) / factor
    cell = np.clip(np.floor(place), 0, coarse - 2).astype(int)
    matrix = np.zeros((fine, coarse), dtype=np.float32)
    rows = np.arange(fine)
    matrix[rows, cell] = 1 - (place - cell)
    matrix[rows, cell + 1] = place - cell
    return matrix
