"""Where a label map's foreground lies: an equal chance for every voxel of a label, from one slab of planes at a time.

The label map is seen twice: first every plane's voxels of every label are counted, then the voxels of the ranks that
were drawn are looked up. So memory is bounded by a plane, and the sample is what drawing from the whole map would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from medi3d.types import Array

MAX_SAMPLES = 2000
"""Voxels kept of each label."""


def count_labels(slab: Array) -> Array:
    """Count the voxels of each label in each plane of a uint8 slab ``(n, H, W)``; returns ``(n, 256)``, 0 for label 0.

    Example:
        >>> count_labels(np.array([[[0, 2, 2]]], np.uint8))[0, :4].tolist()
        [0, 0, 2, 0]
    """
    # only the foreground is counted: four times faster than np.bincount over whole planes that are mostly background
    return np.stack([np.bincount(plane[plane > 0], minlength=256) for plane in slab])


def sample_foreground(counts: Array, slabs: Iterable[tuple[int, int]], read: Callable[[int, int], Array]) -> Array:
    """Draw up to 2000 voxels of every label, each with the same chance, always the same ones.

    Args:
        counts: ``(D, 256)``, see :func:`count_labels`.
        slabs: (start, stop) along D of the slabs to read, in order.
        read: gives the planes of such a slab, ``(stop - start, H, W)``.

    Returns:
        Rows ``(value, d, h, w)``, uint16 where that holds them, sorted by value and place; none where there is no
        foreground.
    """
    generator = np.random.default_rng(0)
    found: dict[int, list[Array]] = {}
    drawn: dict[int, Array] = {}
    for value in np.flatnonzero(counts.sum(axis=0)).tolist():
        drawn[value] = _draw_ranks(int(counts[:, value].sum()), generator)
        found[value] = []
    before = counts.cumsum(axis=0) - counts
    for start, stop in slabs:
        if not counts[start:stop].any():
            continue
        for d, plane in enumerate(read(start, stop), start):
            for value in np.flatnonzero(counts[d]).tolist():
                first = before[d, value]
                low, high = np.searchsorted(drawn[value], (first, first + counts[d, value]))
                if low < high:
                    flat = np.flatnonzero(plane == value)[drawn[value][low:high] - first]
                    h, w = np.divmod(flat, plane.shape[1])
                    found[value].append(np.stack([np.full_like(h, value), np.full_like(h, d), h, w], axis=1))
    rows = [row for value in sorted(found) for row in found[value]]
    if not rows:
        return np.empty((0, 4), np.uint16)
    joined = np.concatenate(rows)
    return joined.astype(np.uint16 if joined.max() <= 65535 else np.int32)


def _draw_ranks(total: int, generator: np.random.Generator) -> Array:
    if total <= MAX_SAMPLES:
        return np.arange(total)
    return np.sort(generator.choice(total, MAX_SAMPLES, replace=False))
