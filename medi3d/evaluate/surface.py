"""Surfaces of masks: their elements and the distances between two of them, in millimetres.

Two definitions of a surface (:data:`SURFACES`):

- ``"elements"``, of Nikolov et al. 2018 (arXiv:1809.04430, deepmind/surface-distance, whose table of areas is used):
  every 2×2×2 neighbourhood that is neither full nor empty holds one element, whose area follows from the
  marching-cubes pattern and the spacing. Each counts by its area, so that unequal spacing does not tilt the scores.
- ``"voxels"``, of MONAI (and of most published Hausdorff distances): the voxels of the mask with a face on something
  else. Each counts alike, and percentiles are interpolated.

Along an axis of a single voxel there is no surface: a volume of one slice is compared by its contours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np

from medi3d.evaluate.nearest import nearest_mm, padding_of
from medi3d.registry import Registry
from medi3d.types import Array, FloatArray, FloatTriple


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between the surfaces of a prediction and a reference, of the elements that count.

    Args:
        prediction_mm: ``(M,)`` distance of each element of the prediction's surface to the reference's, ascending.
        prediction_areas: ``(M,)`` the areas of those elements, mm²; 1 for each surface voxel.
        reference_mm: ``(N,)`` distance of each element of the reference's surface to the prediction's, ascending.
        reference_areas: ``(N,)`` the areas of those elements.
        surface: which of :data:`SURFACES` was measured.
    """

    prediction_mm: FloatArray
    prediction_areas: FloatArray
    reference_mm: FloatArray
    reference_areas: FloatArray
    surface: str = "elements"

    def dice(self, tolerance_mm: float) -> float:
        """Return the share of both surfaces that lies within ``tolerance_mm`` of the other; NaN where none counts.

        A millionth of the tolerance is allowed for, so that no rounding decides whether two voxels 3 × 0.1 mm apart
        lie within 0.3 mm.
        """
        limit = tolerance_mm * (1 + 1e-6)
        return self._per_area(
            float(areas[: np.searchsorted(mm, limit, side="right")].sum()) for mm, areas in self._sides
        )

    def mean_mm(self) -> float:
        """Return the average symmetric surface distance: the mean over the area of both surfaces; NaN without any."""
        return self._per_area(float(mm @ areas) for mm, areas in self._sides)

    def hausdorff_mm(self, percent: float = 95.0) -> float:
        """Return the larger of the two directed distances that ``percent`` of a surface does not exceed.

        NaN where no element counts.
        """
        percentile = SURFACES[self.surface].percentile
        return max((percentile(*side, percent) for side in self._sides if len(side[0])), default=math.nan)

    @property
    def _sides(self) -> tuple[tuple[FloatArray, FloatArray], ...]:
        return (self.prediction_mm, self.prediction_areas), (self.reference_mm, self.reference_areas)

    def _per_area(self, sums: Iterable[float]) -> float:
        total = float(self.prediction_areas.sum() + self.reference_areas.sum())
        return sum(sums) / total if total else math.nan


def measure_surface_distances(
    prediction: Array,
    reference: Array,
    spacing_mm: FloatTriple,
    *,
    known: Array | None = None,
    surface: str = "elements",
) -> SurfaceDistances:
    """Measure how far two surfaces lie apart.

    Args:
        prediction: ``(D, H, W)`` mask, not empty.
        reference: mask of the same shape, not empty.
        spacing_mm: of ``(D, H, W)``; the axes are taken to be at right angles.
        known: mask of the voxels that count; elements that touch none of them are left out. ``None``: all do.
        surface: which of :data:`SURFACES`.

    Raises:
        ConfigError: there is no such surface.

    Examples:
        >>> cube = np.zeros((6, 8, 8), bool)
        >>> cube[2:4, 2:6, 2:6] = True
        >>> measure_surface_distances(np.roll(cube, 1, axis=0), cube, (2.0, 1.0, 1.0)).hausdorff_mm(100)
        2.0
    """
    definition = SURFACES[surface]
    margin = padding_of(spacing_mm)
    codes = [_with_margin(definition.encode(_closed(mask)), margin) for mask in (prediction, reference)]
    touched = None if known is None else _with_margin(definition.touch(_closed(known)), margin)
    areas = definition.areas(spacing_mm)
    sides: list[tuple[FloatArray, FloatArray]] = []
    for own, other in ((0, 1), (1, 0)):
        counted = np.flatnonzero(codes[own] if touched is None else (codes[own] != 0) & touched)
        distances = nearest_mm(counted, codes[other] != 0, spacing_mm)
        order = np.argsort(distances, kind="stable")
        sides.append((distances[order], areas[codes[own].reshape(-1)[counted]][order]))
    return SurfaceDistances(*sides[0], *sides[1], surface=surface)


def _closed(mask: Array) -> Array:
    """Add a border of zeros, which closes the surface at the volume's edge; an axis of one voxel repeats it instead."""
    mask = np.pad(mask.astype(bool, copy=False), [(int(n > 1),) * 2 for n in mask.shape])
    if 1 in mask.shape:
        mask = np.pad(mask, [(int(n == 1),) * 2 for n in mask.shape], mode="edge")
    return mask


def _with_margin(array: Array, margin: tuple[int, ...]) -> Array:
    return np.pad(array, [(n, n) for n in margin])


def _encode_elements(mask: Array) -> Array:
    """Number each 2×2×2 neighbourhood by which of its voxels are set: ``(D, H, W)`` → ``(D-1, H-1, W-1)`` uint8.

    0 stands for the full neighbourhood too, which holds no surface.
    """
    codes = mask.view(np.uint8)
    for axis, bits in ((2, 1), (1, 2), (0, 4)):
        before, after = _neighbours(codes, axis)
        codes = after | (before << np.uint8(bits))
    codes[codes == 255] = 0
    return codes


def _touched_elements(known: Array) -> Array:
    """Tell which 2×2×2 neighbourhoods hold a known voxel."""
    for axis in range(3):
        known = np.logical_or(*_neighbours(known, axis))
    return known


def _neighbours(array: Array, axis: int) -> tuple[Array, Array]:
    """Return the array without its last and without its first entry along an axis."""
    along = np.moveaxis(array, axis, 0)
    return np.moveaxis(along[:-1], 0, axis), np.moveaxis(along[1:], 0, axis)


def _inside(mask: Array) -> Array:
    return mask[1:-1, 1:-1, 1:-1]


def _encode_voxels(mask: Array) -> Array:
    """Mark the voxels with a face on something else: ``(D, H, W)`` → ``(D-2, H-2, W-2)`` uint8."""
    deep = mask.copy()
    for axis in range(3):
        along, whole = np.moveaxis(deep, axis, 0), np.moveaxis(mask, axis, 0)
        along[1:] &= whole[:-1]
        along[:-1] &= whole[1:]
    return (_inside(mask) & ~_inside(deep)).view(np.uint8)


@lru_cache(maxsize=8)
def _element_areas(spacing_mm: FloatTriple) -> FloatArray:
    """Return the area of the surface element of each of the 256 neighbourhoods, ``(256,)`` mm²."""
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

    return cast(FloatArray, create_table_neighbour_code_to_surface_area(spacing_mm).astype(np.float64))


def _weighted_percentile(ascending: FloatArray, weights: FloatArray, percent: float) -> float:
    share = np.cumsum(weights) / weights.sum()
    # 1e-9 keeps rounding in the sum from choosing the next element.
    position = int(np.searchsorted(share, percent / 100 - 1e-9))
    return float(ascending[min(position, len(ascending) - 1)])


@dataclass(frozen=True)
class Surface:
    """A definition of the surface of a mask.

    Args:
        encode: closed mask ``(D+2, H+2, W+2)`` → uint8, 0 where there is no element, else its row of ``areas``.
        touch: closed mask of known voxels → which places of ``encode``'s array touch one.
        areas: spacing → how much the element of each code counts, ``(256,)``.
        percentile: of ascending distances, their areas and a percentage.
    """

    encode: Callable[[Array], Array]
    touch: Callable[[Array], Array]
    areas: Callable[[FloatTriple], FloatArray]
    percentile: Callable[[FloatArray, FloatArray, float], float]


SURFACES: Registry[Surface] = Registry("surface")
"""Name → definition."""

SURFACES.add("elements", Surface(_encode_elements, _touched_elements, _element_areas, _weighted_percentile))
SURFACES.add(
    "voxels",
    Surface(
        _encode_voxels,
        _inside,
        lambda spacing_mm: np.ones(256),
        lambda ascending, areas, percent: float(np.percentile(ascending, percent)),
    ),
)
