"""Small pictures of predictions for TensorBoard: one plane of a case, the contours of truth and prediction on it.

NumPy only: the figures of :mod:`medi3d.report`, which are for reading, need Matplotlib.
"""

from __future__ import annotations

import numpy as np

from medi3d.types import Array, FloatTriple
from medi3d.volume import LABEL_COLORS

_SIDE = 320
"""Pixels of the longer side, at least."""

_TRUTH_COLOR = (255, 255, 255)
_DASH = 4
"""Pixels of a dash, and of the gap behind it."""


def draw_plane(image: Array, truth: Array, prediction: Array, *, spacing_mm: FloatTriple) -> Array:
    """Draw the plane through the middle of the foreground: beside it, the same with contours.

    The truth is a dashed white line, the prediction a full line in the colour of its label.

    Args:
        image: ``(C, D, H, W)``, prepared; the first channel is shown.
        truth: ``(D, H, W)`` label values.
        prediction: ``(D, H, W)`` label values.
        spacing_mm: of the prepared grid along ``(D, H, W)``.

    Returns:
        ``(height, 2 · width, 3)`` uint8, rows along H and columns along W.
    """
    d = middle_plane(truth if truth.any() else prediction)
    rows, columns = _pixels(image.shape[2:], spacing_mm[1:])
    gray = _to_gray(np.asarray(image[0, d]))[rows][:, columns]
    plain = np.repeat(gray[..., None], 3, axis=-1)  # (height, width, 3)
    drawn = plain.copy()
    labels = sorted(set(np.unique(truth[d]).tolist() + np.unique(prediction[d]).tolist()) - {0})
    dashes = np.add.outer(np.arange(len(rows)), np.arange(len(columns))) // _DASH % 2 == 0
    for value in labels:
        drawn[_outline((prediction[d] == value)[rows][:, columns])] = _color(value)
    for value in labels:
        drawn[_outline((truth[d] == value)[rows][:, columns]) & dashes] = _TRUTH_COLOR
    return np.concatenate([plain, drawn], axis=1)


def middle_plane(labels: Array) -> int:
    """Return the index along D that has as many foreground voxels below it as above; the middle where there are none.

    Examples:
        >>> label = np.zeros((9, 4, 4), np.uint8)
        >>> label[5:8, 1, 1] = 1
        >>> middle_plane(label)
        6
    """
    counts = np.count_nonzero(labels, axis=(1, 2)).cumsum()
    return int(np.searchsorted(counts, counts[-1] / 2)) if counts[-1] else len(labels) // 2


def _pixels(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> tuple[Array, Array]:
    """Return which row and which column of voxels each row and column of pixels shows, at the aspect of the spacing."""
    extents = np.multiply(shape, spacing_mm)
    scale = max(_SIDE / extents.max(), float((np.divide(shape, extents)).max()))  # pixels a millimetre
    sizes = np.maximum(np.round(extents * scale).astype(int), 1)
    rows, columns = (np.arange(size) * n // size for size, n in zip(sizes, shape, strict=True))
    return rows, columns


def _to_gray(plane: Array) -> Array:
    low, high = np.percentile(plane, (1, 99))
    gray: Array = (np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return gray


def _outline(mask: Array) -> Array:
    """Return the pixels of a mask that are within two of its border."""
    inner = np.pad(mask, 2)
    height, width = mask.shape
    shifts = [(0, 0), (1, 0), (2, 0), (-1, 0), (-2, 0), (0, 1), (0, 2), (0, -1), (0, -2)]
    kept = [inner[2 + y : 2 + y + height, 2 + x : 2 + x + width] for y, x in shifts]
    border: Array = mask & ~np.logical_and.reduce(kept)
    return border


def _color(value: int) -> tuple[int, int, int]:
    text = LABEL_COLORS[(value - 1) % len(LABEL_COLORS)]
    red, green, blue = (int(text[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue
