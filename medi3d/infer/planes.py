"""Room for planes that come and go: on the device, in memory or on disk, wherever there is enough of it.

A prediction runs through a volume along D. Planes are summed up, finished, put back onto the scanner's grid and
forgotten, so that a part of the volume is all that is held of it, however many classes there are.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medi3d.io.scratch import drop_pages, map_scratch
from medi3d.preprocess.scheduling.budget import SHARE, Budget
from medi3d.types import Array

logger = logging.getLogger(__name__)

HOST = torch.device("cpu")

BLOCK_BYTES = 2**26
"""Planes that are handed on together take about so much."""
_BLOCK_PLANES = 32
_MAPPED_BYTES = 2**28
"""Planes of a file that are in memory at a time take about so much."""


class Storage:
    """The places where planes may lie, and how much room is left there.

    Args:
        memory_bytes: host memory that all planes together may take; ``None`` takes 80 % of what is free.
        scratch: folder for what does not fit; ``None`` is the system's for temporary files.
    """

    def __init__(self, *, memory_bytes: int | None = None, scratch: Path | None = None) -> None:
        self._left = Budget.of(memory_bytes).total_bytes
        self._scratch = scratch or Path(tempfile.gettempdir())

    def allocate(self, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Array | None]:
        """Make an array of zeros: on the device if it has room, else on the host, else on disk.

        Returns:
            The float32 tensor, and where it lies on disk the memory map that it is a view of.

        Raises:
            Medi3dError: the disk has no room for it either.
        """
        size = 4 * int(np.prod(shape, dtype=np.int64))
        if device.type != "cpu" and size <= SHARE * free_on_device(device):
            return torch.zeros(shape, device=device), None
        if size <= self._left:
            self._left -= size
            return torch.zeros(shape), None
        logger.info("%.1f GB of sums over windows lie in a file in %s", size / 1e9, self._scratch)
        mapped = map_scratch(shape, self._scratch, dtype=np.dtype(np.float32))
        return torch.from_numpy(mapped), mapped


class PlaneBuffer:
    """Consecutive planes of a ``(C, D, H, W)`` array, new ones in the places of those no longer needed.

    Args:
        shape: ``(C, planes, H, W)``; so many planes are held at a time.
        storage: gives the room.
        device: where they would best lie.

    Example:
        >>> buffer = PlaneBuffer((2, 8, 5, 6), Storage())
        >>> list(buffer.pieces(slice(6, 11)))
        [(slice(6, 8, None), slice(0, 2, None)), (slice(0, 3, None), slice(2, 5, None))]
    """

    def __init__(self, shape: tuple[int, int, int, int], storage: Storage, device: torch.device = HOST) -> None:
        self.tensor, self._mapped = storage.allocate(shape, device)

    def pieces(self, planes: slice) -> Iterator[tuple[slice, slice]]:
        """Yield where planes lie in :attr:`tensor`, in one piece or two, and which of ``planes`` each piece holds."""
        capacity, done = self.tensor.shape[1], planes.start
        while done < planes.stop:
            place = done % capacity
            count = min(planes.stop - done, capacity - place)
            yield slice(place, place + count), slice(done - planes.start, done - planes.start + count)
            done += count

    def portions(self, planes: int) -> Iterator[slice]:
        """Yield channels that may be touched in so many planes before :meth:`rest`: all, or on disk a few at a time.

        Whole planes count, however small the part of them that is touched: Linux (6.18, ext4) maps a file by pieces of
        many pages, so that windows of 64×96×96 in planes of 512² and 100 classes, 0.2 GB, had 6 GB in memory at once.
        """
        channels = self.tensor.shape[0]
        step = channels
        if self._mapped is not None:
            step = max(1, _MAPPED_BYTES // (4 * planes * self.tensor[0, 0].numel()))
        for first in range(0, channels, step):
            yield slice(first, min(first + step, channels))

    def rest(self) -> None:
        """Let go of the memory of planes that lie on disk."""
        if self._mapped is not None:
            drop_pages(self._mapped)


def planes_at_a_time(channels: int, height: int, width: int) -> int:
    """Return how many planes of a ``(C, D, H, W)`` float32 array are handed on together."""
    return max(1, min(BLOCK_BYTES // (4 * channels * height * width), _BLOCK_PLANES))


def take_place(earlier: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a float32 tensor for a block of planes: that of an earlier one, if it has the same shape.

    A block that is made anew is cleared page by page by the system: 0.25 s for each GB.
    """
    return earlier if earlier is not None and earlier.shape == shape else torch.empty(shape, device=device)


def free_on_device(device: torch.device) -> int:
    """Return how much memory a GPU has left, bytes; 0 where that cannot be told."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
