"""Resampling between grids whose axes run parallel, as three products with banded matrices, box by box.

The native voxels stay as they are stored: a few slices at a time become float32 and are multiplied along W, then H; the
planes that are left are mixed along D. Linear and cubic cost the same; SimpleITK needs twice and thirty times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medi3d.preprocess.resampling.interpolation import axis_weights, is_inside
from medi3d.preprocess.threads import one_thread
from medi3d.types import Array, FloatArray

Box = tuple[slice, slice, slice]
"""A box of voxels along (D, H, W); starts and stops are given, steps are not."""

Read = Callable[[Box], Array]
"""Gives the native voxels of a box, ``(d, h, w)`` of any real type."""

_BLOCK = 32
"""Target voxels a product: smaller blocks waste calls, larger ones multiply more zeros; 32 was fastest of 16 … 358."""
_CHUNK_VOXELS = 2**19
"""Native voxels that are float32 at a time: they stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Interpolation along one axis.

    Args:
        at: ``(n,)``, the target voxels' centres as source indices.
        extent: number of source voxels.
        interpolation: see :func:`~medi3d.preprocess.resampling.interpolation.axis_weights`.
        sigma: likewise.
        extend: likewise.
    """

    at: Array
    extent: int
    interpolation: str
    sigma: float
    extend: bool

    @cached_property
    def weights(self) -> Array:
        """All weights, ``(n, extent)``."""
        return axis_weights(
            self.at, self.extent, interpolation=self.interpolation, sigma=self.sigma, extend=self.extend
        )

    @cached_property
    def inside(self) -> Array:
        """Which target voxels have a value that does not come from the fill, ``(n,)`` bool."""
        return np.ones(len(self.at), dtype=bool) if self.extend else is_inside(self.at, self.extent)

    @cached_property
    def bounds(self) -> Array:
        """First source voxel with weight and one past the last, for each target voxel: ``(n, 2)``; (0, 0) if none."""
        used = self.weights != 0.0
        first, last = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
        return np.asarray(np.stack([first, last], axis=1) * used.any(axis=1)[:, None])

    def sources(self, targets: slice) -> slice:
        """Return the source voxels that a range of target voxels needs; at least one."""
        bounds = self.bounds[targets]
        bounds = bounds[bounds[:, 1] > 0]
        return slice(int(bounds[:, 0].min()), int(bounds[:, 1].max())) if len(bounds) else slice(0, 1)

    def targets(self, sources: slice) -> slice:
        """Return the target voxels to which a range of source voxels contributes; it may be empty."""
        touched = np.flatnonzero((self.bounds[:, 0] < sources.stop) & (self.bounds[:, 1] > sources.start))
        return slice(int(touched[0]), int(touched[-1]) + 1) if touched.size else slice(0, 0)

    def blocks(self, targets: slice) -> list[Block]:
        """Cut the rows ``targets`` of the matrix into blocks, relative to ``targets`` and :meth:`sources`."""
        first = self.sources(targets).start
        rows = range(targets.start, targets.stop, _BLOCK)
        blocks = []
        for start in rows:
            here = slice(start, min(start + _BLOCK, targets.stop))
            there = self.sources(here)
            matrix = np.ascontiguousarray(self.weights[here, there], dtype=np.float32)
            blocks.append(
                Block(
                    slice(here.start - targets.start, here.stop - targets.start),
                    slice(there.start - first, there.stop - first),
                    matrix,
                )
            )
        return blocks

    def is_plain(self, targets: slice) -> bool:
        """Tell whether the target voxels are the source voxels of :meth:`sources`, one by one."""
        here = self.weights[targets, self.sources(targets)]
        return here.shape[0] == here.shape[1] and bool((np.diagonal(here) == 1.0).all())


@dataclass(frozen=True, eq=False)
class Block:
    """A block of a banded matrix: these target rows are ``matrix`` @ these source voxels."""

    rows: slice
    columns: slice
    matrix: FloatArray


@dataclass(frozen=True, eq=False)
class SeparableMap:
    """Interpolation between two grids whose axes run parallel.

    Args:
        axes: one :class:`Axis` along each of (D, H, W).
        fill: value outside the source, where the axes do not extend it.
    """

    axes: tuple[Axis, Axis, Axis]
    fill: float

    def sources(self, targets: Box) -> Box:
        """Return the box of source voxels that a box of target voxels needs."""
        d, h, w = (axis.sources(target) for axis, target in zip(self.axes, targets, strict=True))
        return d, h, w

    def targets(self, sources: Box) -> Box:
        """Return the box of target voxels to which a box of source voxels contributes."""
        d, h, w = (axis.targets(source) for axis, source in zip(self.axes, sources, strict=True))
        return d, h, w

    def copied(self, targets: Box) -> Box | None:
        """Return the box of source voxels that a box of the target is, where it is one; else ``None``."""
        plain = all(axis.is_plain(target) for axis, target in zip(self.axes, targets, strict=True))
        return self.sources(targets) if plain else None

    def interpolate(self, read: Read, targets: Box) -> FloatArray:
        """Compute a box of the target.

        Args:
            read: gives native voxels.
            targets: the box, not empty.

        Returns:
            ``(d, h, w)`` float32, a new array.
        """
        # kernels of small matrices also multiply the memory beside them, which raises flags and spoils nothing
        with one_thread(), np.errstate(invalid="ignore", over="ignore"):
            return self._filled(self._multiply(read, targets), targets)

    def _multiply(self, read: Read, targets: Box) -> FloatArray:
        d, h, w = self.sources(targets)
        across = _Across(self.axes[1], targets[1], self.axes[2], targets[2])
        planes = np.empty((d.stop - d.start, *across.shape), dtype=np.float32)
        chunk = max(_CHUNK_VOXELS // ((h.stop - h.start) * (w.stop - w.start)), 1)
        for start in range(d.start, d.stop, chunk):
            stop = min(start + chunk, d.stop)
            across(read((slice(start, stop), h, w)), planes[start - d.start : stop - d.start])
        return planes if self.axes[0].is_plain(targets[0]) else _mix_planes(self.axes[0], targets[0], planes)

    def _filled(self, box: FloatArray, targets: Box) -> FloatArray:
        """Put the fill where one axis or another lies outside the source."""
        if self.fill != 0.0:
            for number, (axis, target) in enumerate(zip(self.axes, targets, strict=True)):
                np.moveaxis(box, number, 0)[~axis.inside[target]] = self.fill
        return box


class _Across:
    """The products along W and H, on a few planes at a time."""

    def __init__(self, height: Axis, rows: slice, width: Axis, columns: slice) -> None:
        self.shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._height = None if height.is_plain(rows) else height.blocks(rows)
        self._width = None if width.is_plain(columns) else width.blocks(columns)

    def __call__(self, native: Array, planes: FloatArray) -> None:
        """Resample native planes ``(d, h, w)`` into ``(d, h', w')``."""
        if self._height is None and self._width is None:
            planes[:] = native
            return
        voxels: FloatArray = np.ascontiguousarray(native, dtype=np.float32)
        if self._width is not None:
            mixed = planes if self._height is None else np.empty((*voxels.shape[:2], self.shape[1]), np.float32)
            lines, out = voxels.reshape(-1, voxels.shape[2]), mixed.reshape(-1, self.shape[1])
            for block in self._width:
                np.matmul(lines[:, block.columns], block.matrix.T, out=out[:, block.rows])
            voxels = mixed
        if self._height is not None:
            for block in self._height:
                np.matmul(block.matrix, voxels[:, block.columns], out=planes[:, block.rows])


def _mix_planes(depth: Axis, targets: slice, planes: FloatArray) -> FloatArray:
    """Multiply along D: planes ``(d, h', w')`` to ``(d', h', w')``."""
    mixed = np.empty((targets.stop - targets.start, *planes.shape[1:]), dtype=np.float32)
    flat, out = planes.reshape(len(planes), -1), mixed.reshape(len(mixed), -1)
    for block in depth.blocks(targets):
        np.matmul(block.matrix, flat[block.columns], out=out[block.rows])
    return mixed
