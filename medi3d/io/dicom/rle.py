"""RLE Lossless frames (PS3.5 annex G): byte planes, each packed in runs."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np

from medi3d.io.dicom.frames import PixelFormat
from medi3d.types import Array

_HEADER_BYTES = 64


def decode_rle(content: bytes, pixels: PixelFormat) -> Array:
    """Decode one frame to unsigned integers ``(H, W)``.

    Raises:
        ValueError: the stream does not unpack to exactly the pixels of a frame.
    """
    if len(content) < _HEADER_BYTES:
        raise ValueError("no RLE header")
    count, *offsets = struct.unpack("<16L", content[:_HEADER_BYTES])
    size = pixels.bits_allocated // 8
    starts = [*offsets[:count], len(content)]
    if count != size or starts[0] != _HEADER_BYTES or sorted(starts) != starts or any(offsets[count:]):
        raise ValueError(f"RLE header does not tell of {size} byte planes, one after the other")
    planes = [unpack_bits(content[start:stop], pixels.rows * pixels.columns) for start, stop in pairwise(starts)]
    # the most significant byte comes first, PS3.5 G.2
    joined = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=-1)
    return joined.view(f">u{size}").reshape(pixels.rows, pixels.columns).astype(f"u{size}")


def unpack_bits(content: bytes, size: int) -> bytes:
    """Unpack one segment (PS3.5 G.3.2).

    Args:
        content: the packed bytes, padded to an even number.
        size: number of bytes that it must hold.

    Raises:
        ValueError: it holds another number of bytes.

    Example:
        >>> unpack_bits(bytes([254, 7, 1, 8, 9]) + bytes(1), 5)
        b'\\x07\\x07\\x07\\x08\\t'
    """
    parts: list[bytes] = []
    place = held = 0
    end = len(content)
    while held < size and place < end:
        head = content[place]
        if head < 128:
            part = content[place + 1 : place + 2 + head]
            place += 2 + head
        elif head > 128:
            part = content[place + 1 : place + 2] * (257 - head)
            place += 2
        else:
            part = b""
            place += 1
        parts.append(part)
        held += len(part)
    if held != size or end - place not in (0, 1):
        raise ValueError(f"an RLE byte plane does not unpack to {size} bytes")
    return b"".join(parts)
