"""A picture of a layer's filters across depth, as figure 4 of the I3D paper (Carreira & Zisserman 2017)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medi3d.errors import InputError
from medi3d.report.figures import save_figure
from medi3d.types import Array, FloatArray, PathLike

_TILE_PIXELS = 24
_GAP_PIXELS = 4
_WIDTH_INCHES = 7.0


def draw_filters(kernel: Array, path: PathLike, *, title: str, max_filters: int = 64) -> Path:
    """Draw the filters of a convolution: a row a filter, its depth taps from left to right.

    Kernels of three input channels are shown in colour, of any other number in grey as the mean over the channels.
    Mid grey is 0, and all filters share one scale, symmetric about it. The rows stand in blocks side by side, so that
    the sheet is about square.

    Args:
        kernel: (O, I, T, kH, kW).
        path: of the PNG file.
        title: above the picture.
        max_filters: of more filters than this the first ones are drawn, and the title says so.

    Raises:
        InputError: the kernel does not have five axes.

    Examples:
        >>> draw_filters(stem_weight, "filters.png", title="resnet18, overshoot")  # doctest: +SKIP
    """
    if kernel.ndim != 5:
        raise InputError(f"expected a kernel (O, I, T, kH, kW) to draw; got shape {kernel.shape}")
    shown = kernel[:max_filters].astype(float)
    if len(kernel) > len(shown):
        title += f" (the first {len(shown)} of {len(kernel)} filters)"
    pixels = np.moveaxis(shown, 1, -1) if kernel.shape[1] == 3 else shown.mean(1)[..., None]  # (O, T, kH, kW, 3 or 1)
    largest = float(np.abs(pixels).max()) or 1.0
    sheet = _lay_out(0.5 + pixels / (2 * largest))
    height = _WIDTH_INCHES * sheet.shape[0] / sheet.shape[1]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height + 0.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.broadcast_to(sheet, (*sheet.shape[:2], 3)), interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"depth taps from left to right; mid grey is 0, black and white are ±{largest:.2g}", fontsize=8)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return save_figure(figure, path)


def _lay_out(pixels: FloatArray) -> FloatArray:
    """Put filters (O, T, kH, kW, C) in [0, 1] on one white sheet (rows, columns, C)."""
    scale = max(1, _TILE_PIXELS // max(pixels.shape[2:4]))
    tiles = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    count, taps, height, width, channels = tiles.shape
    blocks = max(1, round((count / taps) ** 0.5))
    rows = -(-count // blocks)
    blocks = -(-count // rows)
    row_height, tap_width = height + _GAP_PIXELS, width + _GAP_PIXELS
    block_width = taps * tap_width + 4 * _GAP_PIXELS
    sheet = np.ones((rows * row_height - _GAP_PIXELS, blocks * block_width - 5 * _GAP_PIXELS, channels))
    for number, tap in np.ndindex(count, taps):
        block, row = divmod(number, rows)
        y, x = row * row_height, block * block_width + tap * tap_width
        sheet[y : y + height, x : x + width] = tiles[number, tap]
    return sheet
