"""Back to the scanner's grid: the recorded preprocessing, undone, while the planes of the prepared grid come in.

Native slabs are interpolated as soon as the prepared planes beneath them are there, one class after the other, with a
running arg-max; planes that no further slab needs are forgotten. A class whose largest probability beneath a box is
below one by the number of classes cannot win there, since some class has at least as much, and is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medi3d.infer.planes import PlaneBuffer, Storage, planes_at_a_time
from medi3d.io.record import Record
from medi3d.preprocess.orient import align_axes
from medi3d.preprocess.resampling.mapping import map_between
from medi3d.preprocess.resampling.separable import Box
from medi3d.preprocess.threads import one_thread
from medi3d.types import Array
from medi3d.volume import LabelMap, Volume

_SLAB_BYTES = 2**28
"""Prepared planes of all classes beneath a native slab take about so much, unless one plane takes more."""
_SLAB_PLANES = 32
_BOX_VOXELS = 2**19
"""Native voxels that one thread interpolates at a time."""
_MARGIN = 1e-3
"""Share by which a class has to miss the least probability of a winner; rounding is far below it."""


def restore_labels(probabilities: Tensor, record: Record) -> LabelMap:
    """Turn class probabilities on the prepared grid into a label map on the native one, see :class:`Restorer`.

    Args:
        probabilities: ``(num_classes, D, H, W)`` on the prepared grid.
        record: what preprocessing did.
    """
    thickness = planes_at_a_time(len(probabilities), *record.prepared.shape[1:])
    restorer = Restorer(record, len(probabilities), thickness=thickness)
    for block in torch.split(probabilities, thickness, dim=1):
        restorer.add(block)
    return restorer.finish()[0]


@dataclass(frozen=True)
class _Slab:
    """Native planes that are restored together, and the prepared planes that they need."""

    targets: slice
    sources: slice


class Restorer:
    """A label map on the native grid, and probabilities of chosen labels, that grow with the prepared planes.

    What preprocessing cropped away is background.

    Args:
        record: what preprocessing did.
        num_classes: of the probabilities, which add up to 1 in each voxel.
        keep: labels whose probabilities are wanted as well.
        thickness: the most planes that are added at a time.
        storage: gives room for the planes that are under way.

    Example:
        >>> from medi3d.volume import Grid
        >>> coarse, fine = (Grid((1, 1, n), np.diag([1.0, 1.0, 4.0 / n, 1.0])) for n in (2, 4))
        >>> restorer = Restorer(Record(native=fine, prepared=coarse), 2, thickness=1)
        >>> restorer.add(torch.tensor([[[[0.8, 0.0]]], [[[0.2, 1.0]]]]))
        >>> restorer.finish()[0].array.ravel().tolist()
        [0, 1, 1, 1]
    """

    def __init__(
        self,
        record: Record,
        num_classes: int,
        *,
        keep: Sequence[int] = (),
        thickness: int,
        storage: Storage | None = None,
    ) -> None:
        native, prepared = record.native, record.prepared
        self._num_classes, self._keep = num_classes, tuple(keep)
        # uint8 holds 256 classes
        self._labels = LabelMap(
            np.zeros((1, *native.shape), np.uint8 if num_classes <= 256 else np.uint16), native.affine
        )
        self._kept = None
        if keep:
            kept = np.zeros((len(keep), *native.shape), np.float32)
            kept[[number for number, label in enumerate(keep) if label == 0]] = 1.0
            self._kept = Volume(kept, native.affine)
        # the same voxels with axes that run along those of the prepared grid: views that are written into
        aligned = align_axes(self._labels, prepared.direction)
        self._label_view = aligned.array[0]
        self._kept_view = None if self._kept is None else align_axes(self._kept, prepared.direction).array
        self._background, self._foreground = (
            map_between(prepared, aligned.grid, interpolation="linear", smoothing=1.0, fill=fill) for fill in (1.0, 0.0)
        )
        whole = slice(0, prepared.shape[0]), slice(0, prepared.shape[1]), slice(0, prepared.shape[2])
        self._inside = self._foreground.targets(whole)
        plane_bytes = 4 * num_classes * prepared.shape[1] * prepared.shape[2]
        self._slabs = list(self._cut_slabs(max(_SLAB_BYTES // plane_bytes, 1)))
        capacity = thickness + max((slab.sources.stop - slab.sources.start for slab in self._slabs), default=0)
        room = Storage() if storage is None else storage
        self._planes = PlaneBuffer((num_classes, capacity, *prepared.shape[1:]), room)
        self._peaks = np.zeros((num_classes, capacity, prepared.shape[1]), np.float32)
        self._added, self._restored = 0, 0

    def _cut_slabs(self, most: int) -> Iterator[_Slab]:
        """Cut the native planes that the prepared grid reaches, so that up to ``most`` prepared planes lie beneath."""
        depth, rows, columns = self._inside
        start = depth.start
        while start < depth.stop:
            stop, sources = start, slice(0, 0)
            while stop < depth.stop and stop - start < _SLAB_PLANES:
                needed = self._foreground.sources((slice(start, stop + 1), rows, columns))[0]
                if stop > start and needed.stop - needed.start > most:
                    break
                stop, sources = stop + 1, needed
            yield _Slab(slice(start, stop), sources)
            start = stop

    def add(self, block: Tensor) -> None:
        """Take the next planes of the prepared grid, and restore all native planes that these complete.

        Args:
            block: ``(num_classes, d, H, W)`` float32 on the host.
        """
        planes = slice(self._added, self._added + block.shape[1])
        for place, part in self._planes.pieces(planes):
            self._planes.tensor[:, place] = block[:, part]
            self._peaks[:, place] = block[:, part].amax(3).numpy()
        self._added = planes.stop
        with one_thread(), ThreadPoolExecutor(torch.get_num_threads()) as threads:
            while self._restored < len(self._slabs) and self._slabs[self._restored].sources.stop <= self._added:
                list(threads.map(self._restore_box, self._cut_boxes(self._slabs[self._restored].targets)))
                self._restored += 1
        self._planes.rest()

    def finish(self) -> tuple[LabelMap, Volume | None]:
        """Return the label map, uint8 (uint16 above 256 classes), and the probabilities ``(len(keep), D, H, W)``."""
        assert self._restored == len(self._slabs)
        return self._labels, self._kept

    def _cut_boxes(self, depth: slice) -> Iterator[Box]:
        _, rows, columns = self._inside
        step = max(_BOX_VOXELS // ((depth.stop - depth.start) * (columns.stop - columns.start)), 1)
        for start in range(rows.start, rows.stop, step):
            yield depth, slice(start, min(start + step, rows.stop)), columns

    def _restore_box(self, box: Box) -> None:
        rivals = self._find_rivals(box)
        highest: Array | None = None
        for value in sorted({*rivals, *self._keep} if len(rivals) > 1 else self._keep):
            here = self._interpolate(value, box)
            for channel, wanted in enumerate(self._keep):
                if wanted == value and self._kept_view is not None:
                    self._kept_view[(channel, *box)] = here
            if highest is None:
                highest = here
            elif value in rivals:
                higher = here > highest
                np.copyto(self._label_view[box], value, where=higher)
                np.copyto(highest, here, where=higher)

    def _find_rivals(self, box: Box) -> set[int]:
        """Return the classes that may win somewhere in a box; the background may wherever the prepared grid ends."""
        depth, rows, _ = self._foreground.sources(box)
        peaks = np.max(
            [self._peaks[:, place, rows].max(axis=(1, 2)) for place, _ in self._planes.pieces(depth)], axis=0
        )
        return {0, *np.flatnonzero(peaks >= (1.0 - _MARGIN) / self._num_classes).tolist()}

    def _interpolate(self, value: int, box: Box) -> Array:
        def read(sources: Box) -> Array:
            depth, rows, columns = sources
            plane = self._planes.tensor[value].numpy()
            pieces = [plane[place, rows, columns] for place, _ in self._planes.pieces(depth)]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        return (self._foreground if value else self._background).interpolate(read, box)
