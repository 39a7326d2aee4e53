"""Where the prepared grid lies: the whole field of view, the foreground's box, or a cube of fixed size."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from medi3d.config import PreprocessConfig, Spacing
from medi3d.errors import ConfigError, InputError
from medi3d.io.foreground import is_foreground
from medi3d.preprocess.foreground import find_background
from medi3d.preprocess.resampling.resample import centered_grid, isotropic_grid, nearest_rotation
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
    backgrounds = [find_background(channel) for channel in volume.array]
    box = bounding_box(
        np.logical_or.reduce([known.foreground(plane) for known, plane in zip(backgrounds, planes, strict=True)])
        for planes in volume.array.swapaxes(0, 1)
    )
    if box is None:
        raise InputError("every voxel of the image has the same value; leave the case out")
    start, stop = box
    margin = np.ceil(FOREGROUND_MARGIN_MM / np.asarray(volume.spacing_mm)).astype(int)
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


def bounding_box(planes: Iterable[Array]) -> tuple[Array, Array] | None:
    """Return first index and one past the last, each ``(3,)``, of the true voxels of boolean planes ``(H, W)``.

    Returns:
        ``None`` where there is no true voxel.
    """
    along = [(np.asarray(plane.any(axis=1)), np.asarray(plane.any(axis=0))) for plane in planes]
    depth = np.array([rows.any() for rows, _ in along])
    if not depth.any():
        return None
    used = [
        np.flatnonzero(line) for line in (depth, *(np.logical_or.reduce(lines) for lines in zip(*along, strict=True)))
    ]
    return np.array([line[0] for line in used]), np.array([line[-1] + 1 for line in used])


def mask_center_mm(mask: LabelMap, *, ignore_label: int | None = None) -> FloatTriple:
    """Return the centre of mass, RAS millimetres, of a mask's voxels above 0, those of the ignore label left out.

    Raises:
        InputError: the mask is empty.
    """
    moments = np.zeros(3)
    count = 0
    for depth, values in enumerate(mask.array[0]):
        plane = is_foreground(values, ignore_label)
        rows = np.count_nonzero(plane, axis=1)
        here = int(rows.sum())
        if here:
            columns = np.count_nonzero(plane, axis=0)
            moments += depth * here, rows @ np.arange(rows.size), columns @ np.arange(columns.size)
            count += here
    if not count:
        raise InputError("the mask has no voxel above 0, so there is no centre to crop around")
    x, y, z = mask.grid.index_to_world(moments / count)
    return float(x), float(y), float(z)
