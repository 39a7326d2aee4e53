"""Scratch files: voxels on disk in place of memory, gone with the process that uses them, however it ends."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medi3d.io.atomic import name_the_disk
from medi3d.types import Array


def spool(blocks: Iterable[Array], folder: Path, *, dtype: np.dtype[Any], count: int) -> Array:
    """Write blocks to an unnamed file in a folder and map it.

    Args:
        blocks: pieces of the array, in order, ``count`` entries of ``dtype`` in all.
        folder: where the file lies; it has no name there, so that it is gone even when the process is killed.
        dtype: type of the entries.
        count: number of entries.

    Returns:
        A read-only memory map of shape ``(count,)``; the space is given back when the last view of it is.

    Raises:
        Medi3dError: the folder cannot be written, or its disk is full.

    Example:
        >>> mapped = spool([np.arange(3), np.arange(4)], Path(tempfile.gettempdir()), dtype=np.dtype(int), count=7)
        >>> mapped.tolist(), mapped.flags.writeable
        ([0, 1, 2, 0, 1, 2, 3], False)
    """
    with name_the_disk(folder), tempfile.TemporaryFile(prefix="medi3d-", dir=folder) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block).data.cast("B"))
        file.flush()
        return np.memmap(file, dtype=dtype, mode="r", shape=(count,))


def drop_pages(array: Array) -> None:
    """Let go of the memory that looking at a memory-mapped array took; of any other array this does nothing."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
