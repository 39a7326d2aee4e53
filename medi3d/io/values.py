"""What every voxel of an image and of a label map must be, looked at block by block: no second array is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medi3d.errors import InputError
from medi3d.io.scratch import drop_pages, spool
from medi3d.types import Array

_BLOCK_VOXELS = 1 << 21
_LABEL_TYPES = (np.dtype(np.uint8), np.dtype(np.int32))


def check_finite(array: Array, path: Path) -> None:
    """Check every voxel of an image.

    Args:
        array: ``(C, D, H, W)``, in memory or memory-mapped.
        path: the file, for the message.

    Raises:
        InputError: voxels are NaN or infinite; the message counts them.
    """
    if array.dtype.kind != "f" or all(_is_finite(block) for block in _blocks(array)):
        return
    nan = sum(int(np.count_nonzero(np.isnan(block))) for block in _blocks(array))
    infinite = sum(int(np.count_nonzero(np.isinf(block))) for block in _blocks(array))
    if nan == array.size:
        raise InputError(f"{path}: all {nan} voxels are NaN; leave out the case")
    raise InputError(
        f"{path}: {nan + infinite} of {array.size} voxels are NaN or infinite ({nan} NaN, {infinite} infinite); mend "
        "or leave out the case"
    )


def to_label_array(array: Array, path: Path, *, scratch: Path | None = None) -> Array:
    """Return the values of a label map as integers.

    Args:
        array: ``(1, D, H, W)``, of any type of real numbers; uint8 comes back as it is.
        path: the file, for messages.
        scratch: a folder; the integers are written to a memory-mapped file there in place of memory.

    Returns:
        ``(1, D, H, W)`` uint8 where the values fit, else int32.

    Raises:
        InputError: voxels are NaN or infinite, not whole numbers, or do not fit 32 bits.
    """
    small, wide = _LABEL_TYPES
    if array.dtype == small:
        return array
    check_finite(array, path)
    if array.dtype.kind == "f":
        fractional = sum(int(np.count_nonzero(block != np.rint(block))) for block in _blocks(array))
        if fractional:
            raise InputError(
                f"{path}: {fractional} voxels of the label map are not whole numbers; was it resampled with "
                "interpolation?"
            )
    lowest = min(block.min() for block in _blocks(array))
    highest = max(block.max() for block in _blocks(array))
    limits = np.iinfo(wide)
    if lowest < limits.min or highest > limits.max:
        raise InputError(f"{path}: label values from {lowest:.0f} to {highest:.0f} do not fit 32 bits")
    dtype = small if lowest >= 0 and highest <= np.iinfo(small).max else wide
    if scratch is None or array.dtype == dtype:
        return array.astype(dtype, copy=False)
    converted = spool((block.astype(dtype) for block in _blocks(array)), scratch, dtype=dtype, count=array.size)
    return converted.reshape(array.shape)


def _is_finite(block: Array) -> bool:
    """Tell whether a block is finite: its extremes are NaN where any voxel is, and make no array."""
    return bool(np.isfinite(block.min()) and np.isfinite(block.max()))


def _blocks(array: Array) -> Iterator[Array]:
    """Yield slabs of ``(C, D, H, W)`` in order, and let go of each one's memory pages."""
    d = max(_BLOCK_VOXELS // max(array[0, 0].size, 1), 1)
    for channel in array:
        for start in range(0, channel.shape[0], d):
            yield channel[start : start + d]
            drop_pages(array)
