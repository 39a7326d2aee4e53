"""Moving a patch: one pass of interpolation from the block of voxels that was read for it.

Image and labels share the place of every voxel: the cell of eight voxels that it lies in, and where. Labels are
interpolated as shares and the largest share wins, as if every label had a channel of its own: on ellipsoids of 2 to 14
voxels a quarter fewer voxels are wrong than with the nearest label. In cells whose eight corners agree there is nothing
to decide, so only the others are looked at, and the number of labels costs nothing.

On one core this takes a third of the time of :func:`torch.nn.functional.grid_sample`, which works voxel by voxel and
knows no labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medi3d.data.augment.draw import Warp
from medi3d.types import IntTriple

_MIXED = 255
"""Marks cells whose corners differ; where it is a label too, its cells are looked at needlessly."""
_SLAB_VOXELS = 2**17
"""A processor works on so many voxels at a time: what is read stays in its cache (96³: twice as fast)."""


def warp_patch(
    image: Tensor, label: Tensor | None, warp: Warp, *, offset: IntTriple, size: IntTriple
) -> tuple[Tensor, Tensor | None]:
    """Resample a patch from the block around it; beyond the block all is zero.

    Args:
        image: block ``(C, d, h, w)`` float32.
        label: ``(d, h, w)`` uint8, or ``None``.
        warp: where the patch's voxels come from.
        offset: first voxel of the block, from the first voxel of the patch.
        size: of the patch, ``(D, H, W)``.

    Returns:
        ``(C, D, H, W)`` and ``(D, H, W)``.
    """
    block = F.pad(image, _RIM)
    steps = block.stride(1), block.stride(2), 1
    moved = image.new_empty((len(image), *size))
    labels = None if label is None else F.pad(label, _RIM).flatten()
    marked = None if labels is None else _mark_mixed(labels, steps)
    voted = None if label is None else label.new_empty(size)
    for start, stop in _slabs(size, image.device):
        place = locate(warp, offset=offset, size=size, planes=(start, stop), device=image.device)
        cell, part = _find_cells(place, image.shape[1:], steps)
        for source, target in zip(block.flatten(1), moved, strict=True):
            _interpolate(source, cell, part, steps, out=target[start:stop].view(-1))
        if labels is not None and marked is not None and voted is not None:
            voted[start:stop] = _vote(labels, marked, cell, part, steps).view(stop - start, *size[1:])
    return moved, voted


_RIM = (1, 2, 1, 2, 1, 2)
"""Voxels of zeros around a block: places beyond it are moved to where all of their cell is zero."""


def locate(
    warp: Warp, *, offset: IntTriple, size: IntTriple, planes: tuple[int, int] | None = None, device: torch.device
) -> Tensor:
    """Return where each voxel of some planes of the patch, or all, lies in the block: ``(3, planes, H, W)`` voxels.

    Three broadcast sums a coordinate: a tenth of the time of :func:`torch.nn.functional.affine_grid`.
    """
    start, stop = planes or (0, size[0])
    half = (np.array(size) - 1) / 2
    origin = half + warp.shift - warp.matrix @ half - np.array(offset)
    d = torch.arange(start, stop, dtype=torch.float32, device=device)
    h, w = (torch.arange(n, dtype=torch.float32, device=device) for n in size[1:])
    place = torch.empty((3, stop - start, *size[1:]), device=device)
    for axis, ((a, b, c), begin) in enumerate(zip(warp.matrix.tolist(), origin.tolist(), strict=True)):
        plane = torch.add((d * a + begin)[:, None], h * b)  # (planes, H)
        torch.add(plane[:, :, None], w * c, out=place[axis])
    if warp.knots is not None:
        bend = torch.from_numpy(warp.knots.astype(np.float32)).to(device)  # (3, gd, gh, gw)
        for axis, n in enumerate(size):  # each axis in turn goes from the front to the back
            weights = spline_weights(n, warp.knot_voxels).to(device)
            bend = torch.tensordot(bend, weights if axis else weights[start:stop], dims=([1], [1]))
        place += bend
    return place


@lru_cache(maxsize=64)
def spline_weights(n: int, knot_voxels: float) -> Tensor:
    """Return the weights ``(n, knots)`` that a cubic B-spline gives its control points at each of ``n`` voxels."""
    position = torch.arange(n, dtype=torch.float64) / knot_voxels
    knots = int((n - 1) / knot_voxels) + 4
    away = (position[:, None] - (torch.arange(knots, dtype=torch.float64) - 1)).abs()
    near = 2 / 3 - away**2 + away**3 / 2
    far = (2 - away).clamp_min(0) ** 3 / 6
    return torch.where(away < 1, near, far).float()


def _slabs(size: IntTriple, device: torch.device) -> Iterator[tuple[int, int]]:
    planes = max(_SLAB_VOXELS // (size[1] * size[2]), 1) if device.type == "cpu" else size[0]
    for start in range(0, size[0], planes):
        yield start, min(start + planes, size[0])


def _find_cells(place: Tensor, shape: torch.Size, steps: IntTriple) -> tuple[Tensor, list[Tensor]]:
    """Return the cell of each place, as the flat index ``(n,)`` of its first voxel in the padded block, and the way
    from there to the next voxel along each axis, three ``(n,)`` from 0 to 1."""
    inside = [torch.add(axis, 1).clamp_(0, n + 1) for axis, n in zip(place.flatten(1), shape, strict=True)]
    d, h, w = (axis.to(torch.int32) for axis in inside)
    return w.add_(h, alpha=steps[1]).add_(d, alpha=steps[0]), [axis.frac_() for axis in inside]


def _interpolate(block: Tensor, cell: Tensor, part: list[Tensor], steps: IntTriple, *, out: Tensor) -> None:
    """Interpolate the flat block linearly in each cell, into ``out`` ``(n,)``."""
    d, h, w = steps

    def along_w(step: int) -> Tensor:
        near, far = (torch.index_select(block[at:], 0, cell) for at in (step, step + w))
        return near.lerp_(far, part[2])

    near = along_w(0).lerp_(along_w(h), part[1])
    far = along_w(d).lerp_(along_w(d + h), part[1])
    torch.lerp(near, far, part[0], out=out)


def _vote(labels: Tensor, marked: Tensor, cell: Tensor, part: list[Tensor], steps: IntTriple) -> Tensor:
    """Return the label with the largest share in each cell, ``(n,)`` uint8."""
    voted = torch.index_select(marked, 0, cell)
    if voted.device.type == "cpu":
        where = torch.from_numpy(np.flatnonzero(voted.numpy() == _MIXED))  # six times as fast as torch.nonzero
    else:  # looks everywhere: to find where would have the device waited for
        where = torch.arange(len(voted), device=voted.device)
    corners = [i * steps[0] + j * steps[1] + k for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    around = torch.index_select(cell, 0, where) + cell.new_tensor(corners)[:, None]  # (8, n)
    found = torch.index_select(labels, 0, around.flatten()).reshape(around.shape)
    mixed = _largest_share(found, torch.stack([torch.index_select(axis, 0, where) for axis in part]))
    return voted.index_copy_(0, where, mixed)


def _mark_mixed(labels: Tensor, steps: IntTriple) -> Tensor:
    """Return the flat labels with a mark at cells whose corners differ: those that begin there, a step along each axis.

    Cells that wrap around the end of a row are marked at random; no place lies in them.
    """
    low = high = labels
    for step in steps:
        low, high = torch.minimum(low[:-step], low[step:]), torch.maximum(high[:-step], high[step:])
    marked = labels.clone()
    # as numbers: torch.where takes 70 times as long
    marked[: len(low)].bitwise_or_((low != high).view(torch.uint8) * _MIXED)
    return marked


def _largest_share(found: Tensor, part: Tensor) -> Tensor:
    """Return the label ``(n,)`` with most weight among corners ``(8, n)`` at fractions ``(3, n)`` of the cell."""
    near_far = torch.stack([1 - part, part])  # (2, 3, n)
    weights = near_far[:, None, None, 0] * near_far[None, :, None, 1] * near_far[None, None, :, 2]
    weights = weights.flatten(0, 2)  # (8, n)
    shares = torch.stack([((found == one) * weights).sum(0) for one in found])
    # max, because torch.argmax takes 25 times as long along this axis
    return found.gather(0, shares.max(0, keepdim=True).indices)[0]
