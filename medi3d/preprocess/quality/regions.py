"""Where the labels of a raw case lie, how large they are, and what the image shows there.

Label maps are looked at 64 planes at a time, so that they may be memory maps. Volumes are exact; places and intensities
come from at most some 2^17 voxels of such a block, of which labels that are rare in it keep all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medi3d.io.foreground import count_labels, is_foreground
from medi3d.preprocess.foreground import Background
from medi3d.types import Array, FloatTriple, IntTriple
from medi3d.volume import CANONICAL_ORIENTATION, Grid, LabelMap, Volume

_VALUES = 256
_BLOCK_PLANES = 64
_BLOCK_VOXELS = 2**17
_RARE = 64
"""A label with fewer voxels in a block than this many steps of the sample keeps them all."""


@dataclass(frozen=True)
class _Block:
    """Voxels per label, and sums over them of (d, h, w) and then, per channel, of the value and of background voxels.

    Args:
        counts: ``(256,)``.
        sums: ``(256, 3 + 2C)``.
    """

    counts: Array
    sums: Array


def measure_labels(
    volume: Volume, label: LabelMap, backgrounds: Sequence[Background], *, ignore_label: int | None = None
) -> dict[str, dict[str, Any]]:
    """Measure each label of a raw case.

    Args:
        volume: native intensities ``(C, D, H, W)``.
        label: values from 0 to 255 on the same voxels.
        backgrounds: of each channel.
        ignore_label: value of voxels that nobody has annotated; it is not measured.

    Returns:
        Label value → ``voxels``, ``volume_ml``, ``center`` (0 to 1 through the field of view towards superior,
        posterior and left), ``offset_mm`` (from the middle of the field of view, RAS), ``means`` (of each channel),
        ``background_shares`` (of each channel: how much of the label lies on its constant background) and
        ``at_border`` (whether it touches the rim of the field of view).
    """
    array = label.array[0]
    blocks = [
        _measure_block(array[start : start + _BLOCK_PLANES], volume.array, backgrounds, start, ignore_label)
        for start in range(0, array.shape[0], _BLOCK_PLANES)
    ]
    counts = np.sum([block.counts for block in blocks], axis=0)
    sums = np.sum([block.sums for block in blocks], axis=0)
    at_border = _border_values(array)
    return {
        str(value): _describe(int(counts[value]), sums[value] / counts[value], label.grid, value in at_border)
        for value in np.flatnonzero(counts).tolist()
    }


def _measure_block(
    block: Array, channels: Array, backgrounds: Sequence[Background], start: int, ignore_label: int | None
) -> _Block:
    counts: Array = np.sum(count_labels(block), axis=0)
    counts[[0, ignore_label or 0]] = 0
    flat = _chosen_voxels(block, counts, ignore_label)
    values = np.ravel(block)[flat]
    plane_d, h, w = np.unravel_index(flat, block.shape)
    columns: list[Array] = [plane_d + start, h, w]
    for channel, background in zip(channels, backgrounds, strict=True):
        voxels = channel[columns[0], h, w]
        columns += [voxels, voxels == background.value]  # a dark place may be lung: no word on noisy air
    sampled = np.bincount(values, minlength=_VALUES)
    sums = np.stack([np.bincount(values, weights=column, minlength=_VALUES) for column in columns], axis=1)
    return _Block(counts, sums * (counts / np.maximum(sampled, 1))[:, None])


def _chosen_voxels(block: Array, counts: Array, ignore_label: int | None) -> Array:
    """Return flat indices of counted voxels: all, or some of the frequent labels' and all of the others'."""
    step = -(-int(counts.sum()) // _BLOCK_VOXELS)
    if step <= 1:
        return np.flatnonzero(is_foreground(block, ignore_label))
    while math.gcd(step, block.shape[2]) > 1:  # else a dense label map is seen in a few columns only
        step += 1
    flat = np.ravel(block)
    is_rare = (counts > 0) & (counts < _RARE * step)
    spread = np.arange(0, flat.size, step)
    spread = spread[is_foreground(flat[spread], ignore_label) & ~is_rare[flat[spread]]]
    return np.concatenate([spread, np.flatnonzero(is_rare[flat])]) if is_rare.any() else spread


def _border_values(array: Array) -> set[int]:
    faces = [np.take(array, (0, -1), axis=axis) for axis in range(3)]
    return {int(value) for face in faces if face.any() for value in np.flatnonzero(np.bincount(np.ravel(face)))}


def _describe(voxels: int, means: Array, grid: Grid, at_border: bool) -> dict[str, Any]:
    index = means[:3]
    middle = grid.index_to_world((np.asarray(grid.shape) - 1) / 2)
    return {
        "voxels": voxels,
        "volume_ml": voxels * abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000,
        "center": canonical_fractions(index, grid),
        "offset_mm": (grid.index_to_world(index) - middle).tolist(),
        "means": means[3::2].tolist(),
        "background_shares": means[4::2].tolist(),
        "at_border": at_border,
    }


def canonical_fractions(index: Array, grid: Grid) -> list[float]:
    """Return how far an index ``(d, h, w)`` lies through the field of view, 0 to 1, towards S, P and L."""
    shares = (np.asarray(index) + 0.5) / np.asarray(grid.shape)
    return [
        float(shares[axis]) if grid.orientation[axis] == letter else float(1 - shares[axis])
        for axis, letter in zip(axes_along(grid, CANONICAL_ORIENTATION), CANONICAL_ORIENTATION, strict=True)
    ]


def spacing_along(grid: Grid, orientation: str) -> FloatTriple:
    """Return the spacing, millimetres, along the axes of another orientation, such as ``"SPL"``."""
    d, h, w = (grid.spacing_mm[axis] for axis in axes_along(grid, orientation))
    return d, h, w


def axes_along(grid: Grid, orientation: str) -> IntTriple:
    """Return which of a grid's axes run along, or against, those of an orientation.

    Example:
        >>> axes_along(Grid((4, 5, 6), np.diag([3.0, 2.0, 1.0, 1.0])), "SPL")  # stored as RAS
        (2, 1, 0)
    """
    pairs = {letter: pair for pair in ("SI", "PA", "LR") for letter in pair}
    stored = [pairs[letter] for letter in grid.orientation]
    d, h, w = (stored.index(pairs[letter]) for letter in orientation)
    return d, h, w
