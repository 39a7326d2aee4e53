"""How far each voxel of one surface lies from the nearest voxel of another: exact, and quick where they are near.

Two surfaces that are worth comparing run side by side. So the offsets to the voxels around are tried in ascending
length, and the first that meets the other surface is the distance; what is left after :data:`NEAR_OFFSETS` of them, a
few voxels away, is asked of a k-d tree (Bentley 1975; scipy's). Neither needs a distance map of the volume, whose cost
grows with the box around both surfaces and not with the surfaces.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from medi3d.types import Array, FloatArray, FloatTriple, IntTriple

NEAR_OFFSETS = 250
"""Offsets tried before the tree is asked; from 60 to 500, the time of two surfaces changed by a quarter at most."""


@lru_cache(maxsize=64)
def near_offsets(spacing_mm: FloatTriple) -> tuple[Array, FloatArray]:
    """Return the shortest offsets between voxels in ascending length: ``(K, 3)`` voxels and ``(K,)`` mm.

    No offset that is left out is shorter than one that is returned.

    Example:
        >>> near_offsets((2.0, 1.0, 1.0))[1][:6].tolist()
        [0.0, 1.0, 1.0, 1.0, 1.0, 1.4142135623730951]
    """
    # A ball of half as many voxels again as are wanted; a flat one where slices are further apart than its radius.
    radius = float(np.cbrt(1.5 * NEAR_OFFSETS * np.prod(spacing_mm) * 3 / (4 * np.pi)))
    reach = [min(int(radius / mm), NEAR_OFFSETS) for mm in spacing_mm]
    axes = np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij")
    offsets = np.stack([axis.ravel() for axis in axes], axis=1)
    lengths = length_mm(offsets, spacing_mm)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius][:NEAR_OFFSETS]
    return offsets[order], lengths[order]


def padding_of(spacing_mm: FloatTriple) -> IntTriple:
    """Return how many voxels the near offsets reach along ``(D, H, W)``."""
    d, h, w = np.abs(near_offsets(spacing_mm)[0]).max(axis=0).tolist()
    return d, h, w


def nearest_mm(points: Array, surface: Array, spacing_mm: FloatTriple) -> FloatArray:
    """Return how far points lie from a surface.

    Args:
        points: ``(N,)`` flat indices into ``surface``, none nearer to its edge than :func:`padding_of` says.
        surface: ``(D, H, W)`` mask, not empty, false that near to its edge; contiguous.
        spacing_mm: of ``(D, H, W)``.

    Returns:
        ``(N,)`` mm between voxel centres.

    Example:
        >>> surface = np.zeros((20, 20, 20), bool)
        >>> surface[9, 10, 10] = True
        >>> nearest_mm(np.ravel_multi_index(([9, 10], [10, 13], [10, 10]), surface.shape), surface, (2.0, 1.0, 1.0))
        array([0.        , 3.60555128])
    """
    offsets, lengths = near_offsets(spacing_mm)
    steps = offsets @ np.array([surface.shape[1] * surface.shape[2], surface.shape[2], 1])
    flat = surface.reshape(-1)
    distances = np.empty(len(points))
    open_points, places = np.arange(len(points)), points
    for step, length in zip(steps, lengths, strict=True):
        met = flat[places + step]
        distances[open_points[met]] = length
        open_points, places = open_points[~met], places[~met]
        if not len(places):
            return distances
    distances[open_points] = _ask_tree(places, surface, spacing_mm)
    return distances


def length_mm(offsets: Array, spacing_mm: FloatTriple) -> FloatArray:
    """Return the lengths of ``(N, 3)`` voxel offsets; equal offsets get equal bits, however they were found."""
    lengths: FloatArray = np.sqrt(((offsets * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    return lengths


def _ask_tree(places: Array, surface: Array, spacing_mm: FloatTriple) -> FloatArray:
    from scipy.spatial import cKDTree

    voxels = np.argwhere(surface)
    asked = np.stack(np.unravel_index(places, surface.shape), axis=1)
    # Unbalanced, with large leaves: built in less than half the time, which few questions do not earn back.
    tree = cKDTree(voxels * np.asarray(spacing_mm), leafsize=64, balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(asked * np.asarray(spacing_mm))
    return length_mm(asked - voxels[nearest], spacing_mm)
