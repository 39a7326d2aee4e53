"""How voxels lie in files, and the one way in which those of every format but DICOM are read.

A format's own module reads a header and says where the voxels lie; from there on all formats share the checks, the
decompression and the memory: an array in memory, or a memory map of the file itself or of a scratch file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medi3d.errors import InputError
from medi3d.io.raw import Header, RawImage
from medi3d.io.scratch import spool
from medi3d.io.streams import ENCODINGS, Part, Stream
from medi3d.types import Array
from medi3d.volume import Grid

_BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class Voxels:
    """Where voxels lie and how they are coded.

    Args:
        parts: pieces of files that hold equal shares of the voxels, one after another.
        encoding: ``"raw"``, ``"ascii"`` (numbers as text) or a row of :data:`medi3d.io.streams.ENCODINGS`.
        stored: type of the stored numbers, byte order included.
        shape: three axes, or four with the channels, the slowest first.
        channel_axis: which of the four is the channels'.
        skip: decoded bytes of each part that come before its voxels.
        slope: what stored numbers are multiplied with.
        intercept: what is added then.

    Raises:
        InputError: the files cannot hold these voxels, or raw files hold more.
    """

    parts: tuple[Part, ...]
    encoding: str
    stored: np.dtype[Any]
    shape: tuple[int, ...]
    channel_axis: int | None = None
    skip: int = 0
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        share, rest = divmod(self.count, len(self.parts))
        if rest:
            raise InputError(
                f"{self.parts[0].path}: {self.count} numbers cannot lie in {len(self.parts)} files of equal size"
            )
        needed = share * self.stored.itemsize + self.skip
        for part in self.parts:
            if self.encoding == "ascii":
                self._check_text_size(part, share)
            elif self.encoding == "raw":
                _check_raw_size(part, needed)
            elif needed > part.size * ENCODINGS[self.encoding].max_ratio:
                raise InputError(
                    f"{part.path}: cut short: the header tells of {needed} bytes, which {part.size} bytes of "
                    f"{self.encoding} cannot hold; fetch or write it again"
                )

    @property
    def count(self) -> int:
        """Number of stored numbers."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return 1 if self.channel_axis is None else self.shape[self.channel_axis]

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Numbers of voxels along ``(D, H, W)``."""
        d, h, w = (n for axis, n in enumerate(self.shape) if axis != self.channel_axis)
        return d, h, w

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as handed out.

        The stored type in this machine's byte order. Scaled voxels are float32 where the stored type has up to 16 bits
        or is float32 (exact up to float32's own rounding, and wholly so where slope and intercept are whole), float64
        otherwise.
        """
        if not self._is_scaled:
            return self.stored.newbyteorder("=")
        narrow = self.stored.itemsize <= 2 or self.stored.newbyteorder("=") == np.float32
        return np.dtype(np.float32 if narrow else np.float64)

    def read(self, scratch: Path | None = None) -> Array:
        """Read all voxels.

        Args:
            scratch: a folder; the voxels are memory-mapped: in place where they lie ready in the file, else in an
                unnamed file in this folder.

        Returns:
            ``(C, D, H, W)`` of :attr:`dtype`; a view in which the channels may be the innermost axis.

        Raises:
            InputError: a file is damaged, or there is no room for the voxels.
        """
        if scratch is None:
            flat = self._in_memory()
        elif self._lie_ready:
            part = self.parts[0]
            flat = np.memmap(part.path, dtype=self.dtype, mode="r", offset=part.offset + self.skip, shape=(self.count,))
        else:
            flat = spool(self._blocks(), scratch, dtype=self.dtype, count=self.count)
        array = flat.reshape(self.shape)
        return array[None] if self.channel_axis is None else np.moveaxis(array, self.channel_axis, 0)

    @property
    def _is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def _lie_ready(self) -> bool:
        """Whether the voxels can be used as they lie in the file."""
        aligned = (self.parts[0].offset + self.skip) % self.stored.itemsize == 0
        plain = self.encoding == "raw" and len(self.parts) == 1 and not self._is_scaled
        return plain and aligned and self.stored == self.dtype

    def _in_memory(self) -> Array:
        try:
            flat = np.empty(self.count, self.dtype)
        except MemoryError:
            gigabytes = self.count * self.dtype.itemsize / 1e9
            raise InputError(
                f"{self.parts[0].path}: the header tells of {gigabytes:.1f} GB of voxels, more than there is memory; "
                "is the header right?"
            ) from None
        start = 0
        for block in self._blocks():
            flat[start : start + block.size] = block
            start += block.size
        return flat

    def _blocks(self) -> Iterator[Array]:
        """Yield all voxels in order, as pieces that are overwritten by the next one."""
        share = self.count // len(self.parts)
        for part in self.parts:
            if self.encoding == "ascii":
                yield self._finish(_parse_text(part, self.stored, share))
                continue
            with Stream(part, self.encoding) as stream:
                stream.skip(self.skip)
                buffer = np.empty(min(_BLOCK_BYTES // self.stored.itemsize, share), self.stored)
                for start in range(0, share, buffer.size):
                    block = buffer[: share - start]
                    stream.fill(block.data.cast("B"))
                    yield self._finish(block)
                stream.check_end()

    def _finish(self, block: Array) -> Array:
        """Return a block in the byte order of this machine, scaled."""
        if not self._is_scaled:
            return block.astype(self.dtype, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and found as such
            return (block * np.float64(self.slope) + self.intercept).astype(self.dtype)

    def _check_text_size(self, part: Part, share: int) -> None:
        if 2 * share > part.size + 1:
            raise InputError(f"{part.path}: cut short: the header tells of {share} numbers, the text cannot hold them")


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image file whose header has been read and checked.

    Args:
        grid: where the voxels lie.
        voxels: how they are stored.
        files: all files that the image is made of.
    """

    grid: Grid
    voxels: Voxels
    files: tuple[Path, ...]

    @property
    def header(self) -> Header:
        """What is known without the voxels."""
        return Header(self.voxels.channels, self.grid, self.voxels.dtype)

    def read(self, scratch: Path | None = None) -> RawImage:
        """Read the voxels, see :meth:`Voxels.read`."""
        return RawImage(self.voxels.read(scratch), self.grid.affine)


def _check_raw_size(part: Part, needed: int) -> None:
    if part.size == needed:
        return
    shorter = part.size < needed
    raise InputError(
        f"{part.path}: {'cut short' if shorter else 'too long'}: the header tells of {part.offset + needed} bytes, the "
        f"file holds {part.offset + part.size}; "
        + ("fetch or write it again" if shorter else "the header is of another image, or something was appended")
    )


def _parse_text(part: Part, dtype: np.dtype[Any], count: int) -> Array:
    with Stream(part, "raw") as stream:
        words = stream.read(part.size).split()
    if len(words) != count:
        raise InputError(f"{part.path}: the header tells of {count} numbers, the text holds {len(words)}")
    try:
        numbers = [float(word) for word in words] if dtype.kind == "f" else [int(word) for word in words]
        return np.array(numbers, dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{part.path}: not a list of {dtype.name} numbers ({error})") from None
