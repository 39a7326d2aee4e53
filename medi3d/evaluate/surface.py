"""Surfaces of masks: their area elements and the distances between two of them, in millimetres.

A surface is that of Nikolov et al. 2018 (arXiv:1809.04430, deepmind/surface-distance): every 2×2×2 neighbourhood that
is neither full nor empty holds one element, whose area follows from the marching-cubes pattern and the spacing. MONAI
holds that paper's table of areas. Each element counts by its area, so that unequal spacing does not tilt the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import cast

import numpy as np
from scipy.ndimage import distance_transform_edt

from medi3d.types import Array, FloatArray, FloatTriple


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between the surfaces of a prediction and a reference, of the elements that count.

    Args:
        prediction_mm: ``(M,)`` distance of each element of the prediction's surface to the reference's, ascending.
        prediction_areas: ``(M,)`` the areas of those elements, mm².
        reference_mm: ``(N,)`` distance of each element of the reference's surface to the prediction's, ascending.
        reference_areas: ``(N,)`` the areas of those elements, mm².
    """

    prediction_mm: FloatArray
    prediction_areas: FloatArray
    reference_mm: FloatArray
    reference_areas: FloatArray

    def dice(self, tolerance_mm: float) -> float:
        """Return the share of both surfaces that lies within ``tolerance_mm`` of the other; NaN where none counts."""
        near = (
            self.prediction_areas[self.prediction_mm <= tolerance_mm].sum()
            + self.reference_areas[self.reference_mm <= tolerance_mm].sum()
        )
        total = float(self.prediction_areas.sum() + self.reference_areas.sum())
        return float(near) / total if total else math.nan

    def hausdorff_mm(self, percent: float = 95.0) -> float:
        """Return the larger of the two directed distances that ``percent`` of a surface's area does not exceed.

        NaN where no element counts.
        """
        sides = ((self.prediction_mm, self.prediction_areas), (self.reference_mm, self.reference_areas))
        return max((_weighted_percentile(*side, percent) for side in sides if len(side[0])), default=math.nan)


def measure_surface_distances(
    prediction: Array, reference: Array, spacing_mm: FloatTriple, *, known: Array | None = None
) -> SurfaceDistances:
    """Measure how far two surfaces lie apart.

    Args:
        prediction: ``(D, H, W)`` mask, not empty.
        reference: mask of the same shape, not empty.
        spacing_mm: of ``(D, H, W)``; the axes are taken to be at right angles.
        known: mask of the voxels that count; elements that touch none of them are left out. ``None``: all do.

    Examples:
        >>> cube = np.zeros((6, 8, 8), bool)
        >>> cube[2:4, 2:6, 2:6] = True
        >>> measure_surface_distances(np.roll(cube, 1, axis=0), cube, (2.0, 1.0, 1.0)).hausdorff_mm(100)
        2.0
    """
    areas = _element_areas(spacing_mm)
    # A border of zeros closes the surface of a mask that touches the volume's edge.
    codes = [_neighbourhood_codes(np.pad(mask.astype(bool), 1)) for mask in (prediction, reference)]
    on_surface = [(code != 0) & (code != 255) for code in codes]
    counted = (
        on_surface if known is None else [mask & (_neighbourhood_codes(np.pad(known, 1)) > 0) for mask in on_surface]
    )
    sides = []
    for own, other in ((0, 1), (1, 0)):
        distances = distance_transform_edt(~on_surface[other], sampling=spacing_mm)[counted[own]]
        order = np.argsort(distances, kind="stable")
        sides += [distances[order], areas[codes[own][counted[own]]][order]]
    return SurfaceDistances(*sides)


def _neighbourhood_codes(mask: Array) -> Array:
    """Number each 2×2×2 neighbourhood by which of its voxels are set: ``(D, H, W)`` → ``(D-1, H-1, W-1)`` uint8."""
    d, h, w = (n - 1 for n in mask.shape)
    codes = np.zeros((d, h, w), np.uint8)
    for bit, (i, j, k) in enumerate(product((1, 0), repeat=3)):
        codes |= mask[i : i + d, j : j + h, k : k + w].astype(np.uint8) << np.uint8(bit)
    return codes


@lru_cache(maxsize=8)
def _element_areas(spacing_mm: FloatTriple) -> FloatArray:
    """Return the area of the surface element of each of the 256 neighbourhoods, ``(256,)`` mm²."""
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area  # takes seconds to import

    table, _ = create_table_neighbour_code_to_surface_area(spacing_mm)
    return cast(FloatArray, table.numpy().astype(np.float64))


def _weighted_percentile(ascending: FloatArray, weights: FloatArray, percent: float) -> float:
    share = np.cumsum(weights) / weights.sum()
    # 1e-9 keeps rounding in the sum from choosing the next element.
    position = int(np.searchsorted(share, percent / 100 - 1e-9))
    return float(ascending[min(position, len(ascending) - 1)])
