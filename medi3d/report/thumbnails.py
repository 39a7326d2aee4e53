"""Small pictures of prepared cases: three slices with the label's contour, as PNG bytes, drawn by NumPy alone.

A figure library takes a tenth of a second a case; this takes some milliseconds. A picture has few grey levels and a
palette, so that it is small.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from medi3d.io.prepared import PreparedCase
from medi3d.types import Array, IntTriple

LONGEST_SIDE = 96
"""Pixels of a volume's longest side in its picture."""

_GREY_LEVELS = 40
_COLOURS = (
    (255, 86, 66), (64, 196, 255), (255, 214, 64), (120, 220, 100),
    (220, 120, 255), (255, 150, 50), (100, 240, 220), (255, 130, 180),
)  # fmt: skip
_MOST_CHANNELS = 4
_SMALL = 2**19
"""Voxels below which the whole array is read at once, which takes less than reading slices of it."""
_GAP = 2
_PERCENTILES = (1.0, 99.0)


def draw_thumbnail(case: PreparedCase) -> bytes:
    """Draw the three slices through the middle, or through the label where it is largest, and its contour.

    Args:
        case: a prepared case; only the chunks that hold the slices are read.

    Returns:
        A PNG: slices across D, H and W of the first channel, then across D of up to three others. Voxels keep their
        proportions in millimetres. Where D runs upwards, so does the picture.
    """
    image, label = _in_memory(case.image()), _in_memory(case.label())
    place = telling_place(case)
    extent = np.multiply(case.shape, case.record.prepared.spacing_mm)
    sides = np.maximum(np.round(extent * LONGEST_SIDE / extent.max()), 1).astype(int)
    planes = [(0, axis) for axis in range(3)]
    planes += [(channel, 0) for channel in range(1, min(image.shape[0], _MOST_CHANNELS))]
    slices = {plane: np.asarray(image[(plane[0], *_across(plane[1], place))]) for plane in planes}
    windows = {
        channel: _window([pixels for (other, _), pixels in slices.items() if other == channel])
        for channel in {channel for channel, _ in planes}
    }
    upwards = case.record.prepared.orientation[0] == "S"
    tiles = []
    for channel, axis in planes:
        size = np.delete(sides, axis)
        tile = _greys(_resized(slices[channel, axis], size), windows[channel])
        if label is not None:
            values = np.asarray(label[(0, *_across(axis, place))])
            _draw_contours(tile, values[_nearest(values.shape, size)])
        tiles.append(tile[::-1] if upwards and axis else tile)
    return encode_png(_side_by_side(tiles), _palette())


def telling_place(case: PreparedCase) -> IntTriple:
    """Return the index (d, h, w) whose slices show most of the label, or the middle of the volume."""
    if not len(case.foreground):
        d, h, w = (n // 2 for n in case.shape)
        return d, h, w
    voxels = np.concatenate(list(case.foreground.values()))
    d, h, w = (int(np.bincount(voxels[:, axis]).argmax()) for axis in range(3))
    return d, h, w


def label_colour(value: int) -> tuple[int, int, int]:
    """Return the red, green and blue, 0 to 255, of a label's contour."""
    return _COLOURS[(value - 1) % len(_COLOURS)]


def encode_png(indices: Array, palette: Array) -> bytes:
    """Encode a picture with a palette (W3C PNG, 3rd edition: colour type 3, filter type 2 against the row above).

    Args:
        indices: ``(height, width)`` uint8, entries of the palette.
        palette: ``(n, 3)`` uint8, n up to 256.
    """
    height, width = indices.shape
    above = np.vstack([np.zeros((1, width), np.uint8), indices[:-1]])
    rows = np.hstack([np.full((height, 1), 2, np.uint8), indices - above])
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    pixels = zlib.compress(rows.tobytes(), 6)
    chunks = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _in_memory(stored: Any) -> Any:
    """Return a small stored array as one that is indexed at no cost, a large one as it is."""
    return stored if stored is None or stored.size > _SMALL else stored[:]


def _across(axis: int, place: IntTriple) -> tuple[int | slice, ...]:
    return tuple(place[axis] if other == axis else slice(None) for other in range(3))


def _nearest(shape: tuple[int, ...], size: Array) -> tuple[Array, Array]:
    """Return the rows and columns of ``(h, w)`` that a picture of ``size`` shows, for indexing."""
    rows, columns = (((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(shape, size, strict=True))
    return rows[:, None], columns[None]


def _resized(plane: Array, size: Array) -> Array:
    """Return the picture of a slice ``(h, w)``: means of the voxels in a pixel, or the pixel's voxel."""
    for axis in (0, 1):
        n, m = plane.shape[axis], int(size[axis])
        if n >= 2 * m:
            starts = np.arange(m) * n // m
            counts = np.diff([*starts, n])
            plane = np.add.reduceat(plane, starts, axis=axis) / np.expand_dims(counts, 1 - axis)
    picture: Array = plane[_nearest(plane.shape, size)]
    return picture


def _window(slices: list[Array]) -> Array:
    """Return the values that become black and white."""
    window: Array = np.percentile(np.concatenate([pixels.ravel() for pixels in slices]), _PERCENTILES)
    return window


def _greys(pixels: Array, window: Array) -> Array:
    low, high = window
    scaled = (pixels - low) * (_GREY_LEVELS - 1) / max(high - low, 1e-12)
    greys: Array = np.clip(np.rint(scaled), 0, _GREY_LEVELS - 1).astype(np.uint8)
    return greys


def _draw_contours(tile: Array, label: Array) -> None:
    """Colour, in place, the pixels of each label that have another one beside them."""
    padded = np.pad(label, 1)
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (label > 0) & np.any([other != label for other in neighbours], axis=0)
    tile[edge] = _GREY_LEVELS + (label[edge].astype(int) - 1) % len(_COLOURS)


def _side_by_side(tiles: list[Array]) -> Array:
    height = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(tile, [(0, height - tile.shape[0]), (0, _GAP)]) for tile in tiles]
    return np.hstack(padded)[:, :-_GAP]


def _palette() -> Array:
    greys = np.repeat(np.linspace(0, 255, _GREY_LEVELS).round().astype(np.uint8)[:, None], 3, axis=1)
    return np.vstack([greys, np.array(_COLOURS, dtype=np.uint8)])
