"""Scratch files: voxels on disk in place of memory, gone with the process that uses them, however it ends."""

from __future__ import annotations

import mmap
import os
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


def map_scratch(shape: tuple[int, ...], folder: Path, *, dtype: np.dtype[Any]) -> Array:
    """Map an array of zeros on disk that can be written to.

    Args:
        shape: of the array.
        folder: as for :func:`spool`.
        dtype: type of the entries.

    Returns:
        A memory map; the space is given back when the last view of it is.

    Raises:
        Medi3dError: the folder cannot be written, or its disk has no room for all of it.

    Example:
        >>> float(map_scratch((2, 3), Path(tempfile.gettempdir()), dtype=np.dtype("f4")).sum())
        0.0
    """
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with name_the_disk(folder), tempfile.TemporaryFile(prefix="medi3d-", dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a write to a map finds no way to say that the disk is full
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def drop_pages(array: Array) -> None:
    """Let go of the memory that a memory-mapped array took; what was written stays. Other arrays stay as they are."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
