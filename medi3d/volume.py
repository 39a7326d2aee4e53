"""Volumes: an array with one affine from which every other geometric property is derived.

Arrays are ``(C, D, H, W)``; the float64 4×4 affine maps a ``(d, h, w)`` voxel index to RAS millimetres (nibabel's
world frame). Spacing, origin, direction and orientation are properties of the affine, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medi3d.errors import InputError
from medi3d.types import Array, FloatTriple, IntTriple

Affine = npt.NDArray[np.float64]

CANONICAL_ORIENTATION = "SPL"
"""D runs inferior → superior, H anterior → posterior, W right → left: a slice looks as a radiologist expects it."""

LABEL_COLORS = ("#ffb000", "#648fff", "#dc267f", "#43d0a0", "#fe6100", "#b58cff", "#f5f07a", "#9be0ff")
"""One a label value from 1, told apart by colour-blind readers too; more labels begin again."""

_WORLD_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: a shape and an affine.

    Args:
        shape: number of voxels along ``(D, H, W)``.
        affine: 4×4, ``(d, h, w)`` index → RAS millimetres.

    Raises:
        InputError: the affine is not 4×4, not finite, or singular.
    """

    shape: IntTriple
    affine: Affine

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InputError(f"an affine must be a finite 4×4 matrix; got shape {affine.shape}: {affine.tolist()}")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-12 or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise InputError(f"an affine must be invertible with last row 0 0 0 1; got {affine.tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @cached_property
    def spacing_mm(self) -> FloatTriple:
        """Distance between voxel centres along ``(D, H, W)``, in millimetres."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def origin_mm(self) -> FloatTriple:
        """Centre of voxel ``(0, 0, 0)``, RAS millimetres."""
        x, y, z = self.affine[:3, 3]
        return float(x), float(y), float(z)

    @cached_property
    def direction(self) -> Affine:
        """3×3 matrix whose columns are the unit vectors of the D, H and W axes in RAS."""
        return np.asarray(self.affine[:3, :3] / np.asarray(self.spacing_mm), dtype=np.float64)

    @property
    def orientation(self) -> str:
        """Three letters: where D, H and W point, each the nearest of R/L, A/P, S/I (for example ``"SPL"``)."""
        world_axes = closest_world_axes(self.direction)
        return "".join(
            _WORLD_LETTERS[axis][int(self.direction[axis, column] > 0)] for column, axis in enumerate(world_axes)
        )

    @property
    def is_orthogonal(self) -> bool:
        """Whether the axes are at right angles (to 1e-3); a sheared grid (gantry tilt) is not."""
        return bool(np.allclose(self.direction.T @ self.direction, np.eye(3), atol=1e-3))

    def is_close(self, other: Grid, *, tolerance: float = 1e-3) -> bool:
        """Tell whether two grids coincide: equal shape, corners nearer than ``tolerance`` voxels."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1.0], indexing="ij")).reshape(4, -1)
        distance = np.linalg.norm((self.affine - other.affine) @ corners, axis=0).max()
        return bool(distance <= tolerance * min(self.spacing_mm))

    def index_to_world(self, index: Sequence[float] | Array) -> Array:
        """Map ``(d, h, w)`` indices, shape ``(..., 3)``, to RAS millimetres, same shape."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def world_to_index(self, point_mm: Sequence[float] | Array) -> Array:
        """Map RAS millimetres, shape ``(..., 3)``, to fractional ``(d, h, w)`` indices, same shape."""
        inverse = np.linalg.inv(self.affine)
        index: Array = np.asarray(point_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
        return index

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """Return the grid of the box of ``shape`` voxels whose first voxel is ``start`` (which may lie outside)."""
        affine = self.affine.copy()
        affine[:3, 3] = self.index_to_world(np.asarray(start, dtype=np.float64))
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def closest_world_axes(direction: Affine) -> IntTriple:
    """Assign each array axis the world axis (0 = R/L, 1 = A/P, 2 = S/I) it runs along, one to one.

    Args:
        direction: 3×3, columns are unit vectors of the array axes in RAS.

    Returns:
        The assignment that maximises the summed absolute cosines, so that an oblique grid gets a permutation too.
    """
    from itertools import permutations

    cosines = np.abs(direction)
    best = max(permutations(range(3)), key=lambda axes: sum(cosines[axis, column] for column, axis in enumerate(axes)))
    return best[0], best[1], best[2]


@dataclass(frozen=True, eq=False)
class Volume:
    """An image: intensities on a grid. Resampling interpolates it.

    Args:
        array: ``(C, D, H, W)``, real numbers.
        affine: 4×4, ``(d, h, w)`` index → RAS millimetres.

    Raises:
        InputError: the array is not 4-D or empty, or the affine is not usable.

    Examples:
        >>> volume = Volume(np.zeros((1, 4, 5, 6), np.float32), np.diag([3.0, 2.0, 1.0, 1.0]))
        >>> volume.shape, volume.spacing_mm
        ((4, 5, 6), (3.0, 2.0, 1.0))
    """

    array: Array
    affine: Affine

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or 0 in self.array.shape:
            raise InputError(f"a volume's array must be a non-empty (C, D, H, W); got shape {self.array.shape}")
        object.__setattr__(self, "affine", self.grid.affine)

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine: where the voxels lie."""
        return Grid(self.shape, self.affine)

    @property
    def shape(self) -> IntTriple:
        """Number of voxels along ``(D, H, W)``."""
        d, h, w = self.array.shape[1:]
        return int(d), int(h), int(w)

    @property
    def num_channels(self) -> int:
        """Number of channels C."""
        return int(self.array.shape[0])

    @property
    def spacing_mm(self) -> FloatTriple:
        """Distance between voxel centres along ``(D, H, W)``, in millimetres."""
        return self.grid.spacing_mm

    @property
    def orientation(self) -> str:
        """Where D, H and W point, see :attr:`Grid.orientation`."""
        return self.grid.orientation


class LabelMap(Volume):
    """A label map: ``(1, D, H, W)`` integers. Resampling never mixes its values.

    Raises:
        InputError: the array is not of an integer type or has more than one channel.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not np.issubdtype(self.array.dtype, np.integer) or self.array.shape[0] != 1:
            raise InputError(
                f"a label map's array must be integers of shape (1, D, H, W); got {self.array.dtype} {self.array.shape}"
            )
