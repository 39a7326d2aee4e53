"""Frames → voxels: fragments, decoders by transfer syntax, bits, slope and intercept.

Values are what the Modality transformation gives (PS3.3 C.11.1): slope × stored + intercept, slice by slice. Display
has no part in it: MONOCHROME1 is not inverted, and Pixel Padding Value stays the value that it is.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from medi3d.errors import InputError
from medi3d.io.dicom.frames import Frame, PixelFormat
from medi3d.io.dicom.opening import DicomFile, PixelElement, ends_with_elements
from medi3d.io.scratch import spool
from medi3d.types import Array

Decoder: TypeAlias = Callable[[bytes, PixelFormat, str], Array]
Content: TypeAlias = bytes | mmap.mmap

PLAIN_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
"""Implicit and explicit little endian, deflated, explicit big endian (PS3.5 section 10)."""

_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD
_INT16 = np.iinfo(np.int16)
_ITEM_HEAD = struct.Struct("<HHL")


class _DoesNotFit(Exception):
    """A voxel is outside the type that the header promised."""


def _decode_rle(content: bytes, pixels: PixelFormat, syntax: str) -> Array:
    from medi3d.io.dicom.rle import decode_rle

    return decode_rle(content, pixels)


def _decode_jpeg_lossless(content: bytes, pixels: PixelFormat, syntax: str) -> Array:
    from medi3d.io.dicom.jpeg import decode_jpeg_lossless

    decoded = decode_jpeg_lossless(content, (pixels.rows, pixels.columns))
    if pixels.bits_allocated < 16 and (decoded >> pixels.bits_allocated).any():
        raise ValueError(f"JPEG pixels beyond the {pixels.bits_allocated} bits that the header tells of")
    return decoded.astype(f"u{pixels.bits_allocated // 8}")


def _decode_jpeg_ls(content: bytes, pixels: PixelFormat, syntax: str) -> Array:
    from medi3d.io.dicom.gdcm import decode_jpeg_ls

    return decode_jpeg_ls(content, pixels, syntax)


def _decode_jpeg_2000(content: bytes, pixels: PixelFormat, syntax: str) -> Array:
    from medi3d.io.dicom.gdcm import decode_jpeg_2000

    return decode_jpeg_2000(content, pixels, syntax)


DECODERS: dict[str, Decoder] = {
    "1.2.840.10008.1.2.5": _decode_rle,
    "1.2.840.10008.1.2.4.57": _decode_jpeg_lossless,
    "1.2.840.10008.1.2.4.70": _decode_jpeg_lossless,
    "1.2.840.10008.1.2.4.80": _decode_jpeg_ls,
    "1.2.840.10008.1.2.4.81": _decode_jpeg_ls,
    "1.2.840.10008.1.2.4.90": _decode_jpeg_2000,
    "1.2.840.10008.1.2.4.91": _decode_jpeg_2000,
}
"""Compressed transfer syntax → decoder. JPEG Baseline and Extended are not here: no checked decoder is at hand."""


def check_syntax(file: DicomFile) -> None:
    """Refuse a transfer syntax that cannot be decoded, by its name."""
    compressed, element = file.syntax in DECODERS, file.pixels
    known = compressed or file.syntax in PLAIN_SYNTAXES
    if known and (element is None or (element.length is None) == compressed):
        return
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    if known:
        raise InputError(f"{file.name}: the pixels are not encoded as the transfer syntax tells; the file is damaged")
    uid = UID(file.syntax, validation_mode=IGNORE)
    name = "that is private or damaged" if uid.name == file.syntax else uid.name
    raise InputError(
        f"{file.name}: transfer syntax {name} cannot be decoded here; decompress the series first, for example with "
        "gdcmconv --raw or dcmdjpeg"
    )


def voxel_type(frames: Sequence[Frame]) -> np.dtype[Any]:
    """Return the smallest type that holds the volume's values, as far as the headers tell.

    Whole numbers of at most 16 bits become int16, or uint16 where they are unsigned and not shifted; int32 where they
    have more bits; all others float32. Where 16 stored bits and an intercept might leave int16, the values decide
    when they are decoded: if they do, the volume is float32.
    """
    whole = all(
        frame.format.kind == "integer" and frame.slope == 1 and float(frame.intercept).is_integer() for frame in frames
    )
    low, high = np.array([_stored_range(frame) for frame in frames]).T
    shift = max(abs(frame.intercept) for frame in frames)
    if not whole or shift > 1e9:
        return np.dtype(np.float32)
    if low.min() >= 0 and _INT16.max < high.max() <= np.iinfo(np.uint16).max and shift == 0:
        return np.dtype(np.uint16)
    if max(frame.format.bits_stored for frame in frames) <= 16 and shift < _INT16.max:
        return np.dtype(np.int16)
    fits = low.min() >= np.iinfo(np.int32).min and high.max() <= np.iinfo(np.int32).max
    return np.dtype(np.int32 if fits else np.float32)


def _stored_range(frame: Frame) -> tuple[float, float]:
    bits = frame.format.bits_stored - int(frame.format.signed)
    low = -(2.0**bits) if frame.format.signed else 0.0
    return low + frame.intercept, 2.0**bits - 1 + frame.intercept


def decode_frames(frames: Sequence[Frame], scratch: Path | None) -> Array:
    """Decode the slices of a volume, in order.

    Args:
        frames: slices of one shape.
        scratch: a folder, for a memory-mapped file in place of memory.

    Returns:
        ``(D, H, W)`` of :func:`voxel_type`, or float32.

    Raises:
        InputError: damaged pixel data.
    """
    shape = (len(frames), frames[0].format.rows, frames[0].format.columns)
    try:
        return _gather(frames, shape, voxel_type(frames), scratch)
    except _DoesNotFit:
        return _gather(frames, shape, np.dtype(np.float32), scratch)


def _gather(frames: Sequence[Frame], shape: tuple[int, int, int], dtype: np.dtype[Any], scratch: Path | None) -> Array:
    if scratch is not None:
        count = shape[0] * shape[1] * shape[2]
        return spool(_slices(frames, dtype), scratch, dtype=dtype, count=count).reshape(shape)
    array = np.empty(shape, dtype)
    for index, voxels in enumerate(_slices(frames, dtype)):
        array[index] = voxels
    return array


def _slices(frames: Sequence[Frame], dtype: np.dtype[Any]) -> Iterator[Array]:
    """Yield each frame's values ``(H, W)``; a file is opened once for frames that follow one another."""
    for _, group in groupby(frames, key=lambda frame: id(frame.file)):
        own = list(group)
        yield from _slices_of_file(own[0].file, own, dtype)


def _slices_of_file(file: DicomFile, frames: Sequence[Frame], dtype: np.dtype[Any]) -> Iterator[Array]:
    element = file.pixels
    assert element is not None  # frames_of has checked it
    try:
        with file.path.open("rb") as stream:
            content: Content = element.content or mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            stored = _plain_frame if element.length is not None else _CompressedFrames(content, file).frame
            for frame in frames:
                yield _rescale(_take_bits(stored(content, frame, element), frame.format), frame, dtype)
    except (ValueError, struct.error, IndexError) as error:
        reason = error if isinstance(error, ValueError) else "cut short"
        raise InputError(f"{file.name}: damaged pixel data ({reason}); fetch the file again") from None
    except OSError as error:
        raise InputError(f"{file.name}: cannot be read ({error.strerror})") from None


def _plain_frame(content: Content, frame: Frame, element: PixelElement) -> Array:
    pixels = frame.format
    order = ">" if frame.file.big_endian else "<"
    letter = "u" if pixels.kind == "integer" else "f"
    offset = element.offset + max(frame.index, 0) * pixels.frame_bytes
    flat = np.frombuffer(content[offset : offset + pixels.frame_bytes], f"{order}{letter}{pixels.bits_allocated // 8}")
    return flat.reshape(pixels.rows, pixels.columns)


class _CompressedFrames:
    """The frames of encapsulated pixel data (PS3.5 annex A.4)."""

    def __init__(self, content: Content, file: DicomFile) -> None:
        assert file.pixels is not None
        self._decode = DECODERS[file.syntax]
        table, fragments, end = _read_fragments(content, file.pixels.offset)
        if not ends_with_elements(content[end:], file.syntax):
            raise ValueError("what follows the pixels is no DICOM")
        self._frames = _group_fragments(table, fragments, file.num_frames)

    def frame(self, content: Content, frame: Frame, element: PixelElement) -> Array:
        parts = self._frames[max(frame.index, 0)]
        stream = b"".join(content[start : start + length] for start, length in parts)
        return self._decode(stream, frame.format, frame.file.syntax)


Fragment: TypeAlias = tuple[int, int]


def _read_fragments(content: Content, place: int) -> tuple[list[int], list[Fragment], int]:
    """Return the Basic Offset Table, (offset, length) of each fragment, and where the last one ends."""
    items: list[Fragment] = []
    while True:
        group, element, length = _ITEM_HEAD.unpack(content[place : place + 8])
        tag, place = group << 16 | element, place + 8
        if tag == _DELIMITER and length == 0:
            break
        if tag != _ITEM or place + length > len(content):
            raise ValueError("the fragments do not follow one another up to the end")
        items.append((place, length))
        place += length
    if not items or items[0][1] % 4:
        raise ValueError("no fragment table")
    start, size = items[0]
    return list(struct.unpack(f"<{size // 4}L", content[start : start + size])), items[1:], place


def _group_fragments(table: list[int], fragments: list[Fragment], count: int) -> list[list[Fragment]]:
    """Tell which fragments make up each frame."""
    # offsets count from the first fragment's item tag
    starts = {start - fragments[0][0]: index for index, (start, _) in enumerate(fragments)}
    if table:
        if len(table) != count or any(offset not in starts for offset in table) or table != sorted(set(table)):
            raise ValueError("the offset table does not fit the fragments")
        bounds = [*(starts[offset] for offset in table), len(fragments)]
    elif count == 1:
        bounds = [0, len(fragments)]
    else:
        bounds = list(range(len(fragments) + 1))
    if len(bounds) != count + 1 or bounds[0] != 0 or not fragments:
        raise ValueError(f"{len(fragments)} fragments for {count} frames")
    return [fragments[start:stop] for start, stop in pairwise(bounds)]


def _take_bits(stored: Array, pixels: PixelFormat) -> Array:
    """Return the stored bits as numbers: those above and below them are masked, the sign is spread."""
    if pixels.kind != "integer":
        return stored
    width = pixels.bits_allocated
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if pixels.bits_stored < width:
        native = native << (width - 1 - pixels.high_bit)  # the highest stored bit to the top
    number = native.view(f"{'i' if pixels.signed else 'u'}{width // 8}")
    return number >> (width - pixels.bits_stored) if pixels.bits_stored < width else number


def _rescale(stored: Array, frame: Frame, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return (stored * np.float64(frame.slope) + frame.intercept).astype(dtype)
    if frame.intercept == 0 and np.can_cast(stored.dtype, dtype):
        return stored.astype(dtype, copy=False)
    values = stored.astype(np.int64) + int(frame.intercept)
    limits = np.iinfo(dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise _DoesNotFit
    return values.astype(dtype)
