"""What every file format is read into, before it is known to be an image or a label map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medi3d.types import Array
from medi3d.volume import Affine

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class RawImage:
    """Voxels as stored in a file (intensity scaling applied).

    Args:
        array: ``(C, D, H, W)``, of the file's own type.
        affine: 4×4, ``(d, h, w)`` index → RAS millimetres.
    """

    array: Array
    affine: Affine


def reverse_axes(affine: Affine) -> Affine:
    """Turn an affine of ``(i, j, k)`` indices into one of ``(k, j, i)`` = ``(d, h, w)`` indices, and back."""
    return np.asarray(affine, dtype=np.float64)[:, [2, 1, 0, 3]]
