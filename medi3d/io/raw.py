"""What every file format is read into, before it is known to be an image or a label map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medi3d.types import Array
from medi3d.volume import Affine, Grid

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
