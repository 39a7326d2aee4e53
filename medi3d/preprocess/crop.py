"""Where the prepared grid lies: the whole field of view, the foreground's box, or a cube of fixed size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medi3d.config import PreprocessConfig, Spacing
from medi3d.errors import ConfigError, InputError
from medi3d.preprocess.foreground import find_background
from medi3d.preprocess.resample import centered_grid, isotropic_grid, nearest_rotation, resample_to
from medi3d.registry import Registry
from medi3d.types import Array, FloatTriple
from medi3d.volume import Grid, LabelMap, Volume

Crop = Callable[[Volume, PreprocessConfig, FloatTriple, FloatTriple | None], Grid]

CROPS: Registry[Crop] = Registry("crop")
"""Name → function of the oriented volume in native units, the configuration, the prepared spacing along (D, H, W) in mm
and a centre (RAS mm) or ``None``, that gives the prepared grid."""

FOREGROUND_MARGIN_MM = 4.0


def prepared_spacing(spacing_mm: Spacing, grid: Grid) -> FloatTriple:
    """Return the spacing of the prepared grid along (D, H, W), in millimetres.

    Args:
        spacing_mm: ``preprocess.spacing_mm``.
        grid: the oriented native grid, whose own spacing ``native`` stands for.

    Raises:
        ConfigError: ``median``, which only the whole data set tells.

    Example:
        >>> prepared_spacing("native", Grid((4, 5, 6), np.diag([3.0, 0.5, 0.5, 1.0])))
        (3.0, 0.5, 0.5)
    """
    if spacing_mm == "median":
        raise ConfigError(
            "preprocess.spacing_mm is still 'median'; `medi3d preprocess` measures the data set's and fills it in; "
            "otherwise give three numbers"
        )
    return grid.spacing_mm if spacing_mm == "native" else spacing_mm


@CROPS.register("none")
def keep_all(volume: Volume, config: PreprocessConfig, spacing_mm: FloatTriple, center_mm: FloatTriple | None) -> Grid:
    """Return the grid of the whole field of view."""
    return isotropic_grid(volume.grid, spacing_mm)


@CROPS.register("foreground")
def foreground_box(
    volume: Volume, config: PreprocessConfig, spacing_mm: FloatTriple, center_mm: FloatTriple | None
) -> Grid:
    """Return the grid of the box of what is no background in any channel, and 4 mm more."""
    mask = np.zeros(volume.shape, dtype=bool)
    for channel in volume.array:
        mask |= find_background(channel).foreground(channel)
    if not mask.any():
        raise InputError("every voxel of the image has the same value; leave the case out")
    margin = np.ceil(FOREGROUND_MARGIN_MM / np.asarray(volume.spacing_mm)).astype(int)
    start, stop = bounding_box(mask)
    start = np.maximum(start - margin, 0)
    stop = np.minimum(stop + margin, volume.shape)
    return isotropic_grid(volume.grid.cropped(start.tolist(), (stop - start).tolist()), spacing_mm)


@CROPS.register("cube")
def cube_around(
    volume: Volume, config: PreprocessConfig, spacing_mm: FloatTriple, center_mm: FloatTriple | None
) -> Grid:
    """Return the grid of ``cube_mm`` around a centre, of the same shape for every case; it may reach outside.

    Raises:
        InputError: the centre lies outside the volume.
    """
    grid = volume.grid
    middle = grid.index_to_world((np.asarray(grid.shape) - 1) / 2) if center_mm is None else np.asarray(center_mm)
    index = grid.world_to_index(middle)
    if np.any(index < -0.5) or np.any(index > np.asarray(grid.shape) - 0.5):
        raise InputError(f"the cube's centre {np.round(middle, 1).tolist()} mm (RAS) lies outside the image")
    shape = np.maximum(np.round(config.cube_mm / np.asarray(spacing_mm)), 1).astype(int)
    return centered_grid(middle, shape, nearest_rotation(grid.direction), spacing_mm)


def bounding_box(mask: Array) -> tuple[Array, Array]:
    """Return first index and one past the last of the true voxels of ``(D, H, W)``, each ``(3,)``."""
    start, stop = [], []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        start.append(int(used[0]))
        stop.append(int(used[-1]) + 1)
    return np.array(start), np.array(stop)


def mask_center_mm(mask: LabelMap) -> FloatTriple:
    """Return the centre of mass, RAS millimetres, of a mask's voxels above 0.

    Raises:
        InputError: the mask is empty.
    """
    where = np.argwhere(mask.array[0] > 0)
    if not len(where):
        raise InputError("the mask has no voxel above 0, so there is no centre to crop around")
    x, y, z = mask.grid.index_to_world(where.mean(axis=0))
    return float(x), float(y), float(z)


def resample_and_pad(volume: Volume, grid: Grid, *, interpolation: str, padding: str) -> Volume:
    """Resample onto a grid that may reach outside the volume, where the resampled content is continued.

    Args:
        volume: its axes run along the grid's.
        grid: the prepared grid.
        interpolation: see :func:`~medi3d.preprocess.resample.resample_to`.
        padding: ``reflect`` (mirrored at the rim, as often as it takes) or ``edge``.
    """
    start, stop = box_inside(grid, volume.grid)
    inside = resample_to(volume, grid.cropped(start.tolist(), (stop - start).tolist()), interpolation=interpolation)
    widths = [(0, 0), *zip(start.tolist(), (np.asarray(grid.shape) - stop).tolist(), strict=True)]
    if not any(before or after for before, after in widths):
        return inside
    mode = "symmetric" if padding == "reflect" else "edge"
    return Volume(np.pad(inside.array, widths, mode=mode), grid.affine)  # type: ignore[call-overload]


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
