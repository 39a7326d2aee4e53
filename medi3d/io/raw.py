"""What every file format is read into, before it is known to be an image or a label map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medi3d.errors import InputError
from medi3d.types import Array, FloatTriple, IntTriple
from medi3d.volume import Affine, Grid

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

SPACING_LIMITS_MM = (1e-3, 1e2)
"""Spacings outside are taken for a mistaken unit: 0.7 mm written in metres or in micrometres lies outside."""

_MAX_ORIGIN_MM = 1e5
_MIN_VOLUME = 1e-2
"""Volume of a voxel, as a share of the product of its edges, below which its axes lie in a plane."""


@dataclass(frozen=True, eq=False)
class Header:
    """What a file tells before its voxels are read.

    Args:
        channels: number of channels or frames: all axes beyond the third.
        grid: where the voxels lie.
        dtype: type of the voxels as they are handed out (intensity scaling applied).
    """

    channels: int
    grid: Grid
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of all voxels in memory."""
        return self.channels * int(np.prod(self.grid.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class RawImage:
    """Voxels as stored in a file (intensity scaling applied).

    Args:
        array: ``(C, D, H, W)``, of the file's own type; a read-only memory map where the reader was given a scratch
            folder.
        affine: 4×4, ``(d, h, w)`` index → RAS millimetres.
    """

    array: Array
    affine: Affine


def reverse_axes(affine: Affine) -> Affine:
    """Turn an affine of ``(i, j, k)`` indices into one of ``(k, j, i)`` = ``(d, h, w)`` indices, and back."""
    return np.asarray(affine, dtype=np.float64)[:, [2, 1, 0, 3]]


def scale_world(affine: Affine, *factors: float) -> Affine:
    """Multiply the world axes x, y and z of an affine; unlike a matrix product, this carries NaN and infinity along."""
    scaled = affine.copy()
    with np.errstate(over="ignore"):
        scaled[:3] *= np.reshape(factors, (3, 1))
    return scaled


def checked_grid(shape: IntTriple, affine: Affine, path: Path, *, what: str = "affine") -> Grid:
    """Return the grid of an image file, having checked that it is one that a scanner or a program may have meant.

    Args:
        shape: number of voxels along ``(D, H, W)``.
        affine: 4×4, ``(d, h, w)`` index → RAS millimetres.
        path: the file, for messages.
        what: what the affine is called there.

    Raises:
        InputError: fewer than two voxels along an axis; an affine that is not finite, singular, or of absurd spacing.
    """
    if min(shape) < 2:
        d, h, w = shape
        raise InputError(
            f"{path}: one slice ({w} x {h} x {d} voxels); a volume of at least two along each axis is needed"
        )
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: the {what} holds NaN or infinity: {_rows(affine)}; mend the header")
    with np.errstate(over="ignore"):
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    check_spacing((float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])), path, what=what)
    if abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < _MIN_VOLUME:
        raise InputError(
            f"{path}: the {what} is singular, its axes lie in a plane: {_rows(affine)}; an affine must be invertible"
        )
    if np.abs(affine[:3, 3]).max() > _MAX_ORIGIN_MM:
        raise InputError(f"{path}: the {what} puts the image over 100 m from its origin: {_rows(affine)}")
    return Grid(shape, affine)


def check_spacing(spacing_mm: FloatTriple, path: Path, *, what: str) -> None:
    """Check that spacings are positive and within :data:`SPACING_LIMITS_MM` (NaN is not)."""
    low, high = SPACING_LIMITS_MM
    if not all(low <= spacing <= high for spacing in spacing_mm):
        raise InputError(
            f"{path}: the spacing of the {what} is {' x '.join(f'{spacing:.6g}' for spacing in spacing_mm)} mm; "
            f"expected {low:g} to {high:g} mm: is it zero, negative, or in another unit?"
        )


def _rows(affine: Affine) -> str:
    return "; ".join(" ".join(f"{number:.6g}" for number in row) for row in affine[:3])
