"""Turning volumes by permuting and flipping array axes: no voxel changes its value or its place in the world."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from medi3d.errors import InputError
from medi3d.types import FloatTriple
from medi3d.volume import CANONICAL_ORIENTATION, Affine, Grid, Volume, closest_world_axes

V = TypeVar("V", bound=Volume)

_UNIT_VECTORS = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}

UPRIGHT = {"S": CANONICAL_ORIENTATION, "I": CANONICAL_ORIENTATION, "P": "PIL", "A": "PIL", "L": "LIP", "R": "LIP"}
"""Through-plane axis → orientation in which its slices (axial, coronal, sagittal) stand upright."""

ANISOTROPIC_RATIO = 1.5


def reorient(volume: V, orientation: str = CANONICAL_ORIENTATION) -> V:
    """Permute and flip the axes so that they run along ``orientation`` as nearly as they can.

    Args:
        volume: any volume or label map.
        orientation: where D, H and W point, for example ``"SPL"``.

    Returns:
        The same voxels at the same places; a view of the input's array.

    Raises:
        InputError: the letters do not name three different world axes.

    Example:
        >>> ras = Volume(np.zeros((1, 2, 3, 4)), np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]))
        >>> reorient(ras, "PIL").shape
        (3, 2, 4)
    """
    if set(orientation) - set(_UNIT_VECTORS) or len(orientation) != 3:
        raise InputError(f"an orientation has three letters of R L A P S I; got {orientation!r}")
    direction = np.array([_UNIT_VECTORS[letter] for letter in orientation], dtype=np.float64).T
    if np.linalg.matrix_rank(direction) < 3:
        raise InputError(f"an orientation names each of R/L, A/P, S/I once; got {orientation!r}")
    return align_axes(volume, direction)


def align_axes(volume: V, direction: Affine) -> V:
    """Permute and flip the axes so that each runs along the nearest column of ``direction`` (3×3, RAS)."""
    cosines = direction.T @ volume.grid.direction  # (wanted axis, present axis)
    wanted_of_present = closest_world_axes(cosines)
    order = [wanted_of_present.index(wanted) for wanted in range(3)]
    flipped = [bool(cosines[wanted, present] < 0) for wanted, present in enumerate(order)]
    array = volume.array.transpose(0, *(present + 1 for present in order))
    array = array[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flipped))]
    affine = volume.affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flipped):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis + 1] - 1)
            affine[:3, axis] *= -1
    return type(volume)(array, affine)


def prepared_orientation(grid: Grid, spacing_mm: FloatTriple | None) -> str:
    """Choose the orientation of the prepared array.

    Args:
        grid: the native grid.
        spacing_mm: the prepared spacing along (D, H, W); ``None`` where the native spacing is kept.

    Returns:
        ``"SPL"``; but where the native spacing is coarsest along another world axis (a coronal or sagittal series) and
        the prepared one stays so along D, the upright orientation with that axis as D.
    """
    native = np.asarray(grid.spacing_mm)
    coarsest = int(native.argmax())
    is_slab = native[coarsest] > ANISOTROPIC_RATIO * np.median(native)
    stays_coarsest = spacing_mm is None or spacing_mm[0] > max(spacing_mm[1:])
    return UPRIGHT[grid.orientation[coarsest]] if is_slab and stays_coarsest else CANONICAL_ORIENTATION
