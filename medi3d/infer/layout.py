"""Where windows lie in a prepared volume, what they weigh, and which of them hold nothing but air."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from medi3d.preprocess.foreground import find_background
from medi3d.types import IntTriple

_SIGMA = 0.125
"""Standard deviation of the weights, in windows (Isensee et al. 2021, nnU-Net)."""
_LEAST_WEIGHT = 1e-3
_CELL = 8
"""Edge of the cells, in voxels, that are either body or air: noise above the threshold makes no body."""
_BODY_SHARE = 0.25


def window_starts(shape: IntTriple, size: IntTriple, overlap: float) -> list[IntTriple]:
    """Lay windows over a volume, as MONAI's ``sliding_window_inference`` does.

    Args:
        shape: of the volume.
        size: of a window.
        overlap: share of a window, below 1.

    Returns:
        The first voxel of each window, W running fastest, D slowest. Along an axis that is shorter than the window
        there is one, with the volume in its middle: it starts before voxel 0.

    Example:
        >>> window_starts((4, 10, 3), (4, 4, 6), 0.5)
        [(0, 0, -1), (0, 2, -1), (0, 4, -1), (0, 6, -1)]
    """
    depth, height, width = (_starts_along(*axis, overlap) for axis in zip(shape, size, strict=True))
    return list(product(depth, height, width))


def _starts_along(extent: int, size: int, overlap: float) -> list[int]:
    if extent <= size:
        return [-((size - extent) // 2)]
    step = max(int(size * (1 - overlap)), 1)
    return [*range(0, extent - size, step), extent - size]


def window_weights(size: IntTriple) -> Tensor:
    """Return a Gaussian around the middle of a window, ``(D, H, W)``, nowhere below a thousandth."""
    lines = [torch.arange(n) - (n - 1) / 2 for n in size]
    d, h, w = (torch.exp(-0.5 * (line / (_SIGMA * n)) ** 2) for line, n in zip(lines, size, strict=True))
    weights = d[:, None, None] * h[:, None] * w
    return weights.clamp_(min=max(float(weights.min()), _LEAST_WEIGHT))


def cut_window(image: Tensor, start: IntTriple, size: IntTriple) -> Tensor:
    """Cut a window ``(C, d, h, w)`` out of ``(C, D, H, W)``; beyond the volume there are zeros, as in training."""
    stop = [first + n for first, n in zip(start, size, strict=True)]
    box = tuple(slice(max(a, 0), b) for a, b in zip(start, stop, strict=True))
    beyond = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(start, stop, image.shape[1:], strict=True)]
    inner = image[(slice(None), *box)]
    return functional.pad(inner, [n for axis in reversed(beyond) for n in axis]) if any(map(any, beyond)) else inner


def leave_out_air(image: Tensor, starts: Sequence[IntTriple], size: IntTriple) -> list[IntTriple]:
    """Leave out windows without any body, see :func:`~medi3d.preprocess.foreground.find_background`.

    A cell of 8×8×8 voxels is body where a quarter of them is foreground in any channel.

    Args:
        image: ``(C, D, H, W)``, prepared.
        starts: of the windows.
        size: of a window.

    Returns:
        The starts of the others; all of them, where there would be none.
    """
    body = torch.zeros([-(-n // _CELL) for n in image.shape[1:]], dtype=torch.bool)
    for channel in image.cpu():
        foreground = find_background(channel.numpy()).foreground
        for row, start in enumerate(range(0, len(channel), _CELL)):
            mask = torch.from_numpy(foreground(channel[start : start + _CELL].numpy()))
            share = functional.avg_pool3d(mask[None].float(), (len(mask), _CELL, _CELL), ceil_mode=True)
            body[row] |= share[0, 0] >= _BODY_SHARE
    kept = [start for start in starts if body[_cells(start, size)].any()]
    return kept or list(starts)


def _cells(start: IntTriple, size: IntTriple) -> tuple[slice, ...]:
    return tuple(slice(max(a, 0) // _CELL, -(-(a + n) // _CELL)) for a, n in zip(start, size, strict=True))
