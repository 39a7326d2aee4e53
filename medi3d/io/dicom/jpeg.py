"""JPEG Lossless, process 14 (ITU-T T.81 annex H), the compression of most CT and MR archives; all of it checked.

libjpeg (GDCM, SimpleITK) fills what is missing of a damaged stream and only prints a line. Here every code must be one
of the table, and the codes must take the stream's bits exactly.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from medi3d.types import Array

_SOI, _EOI, _SOS, _DHT, _DRI, _SOF3 = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD, 0xC3
_WINDOW = 16


@dataclass
class _Scan:
    precision: int = 0
    shape: tuple[int, int] = (0, 0)
    tables: dict[int, bytes] = field(default_factory=dict)
    table: int = 0
    predictor: int = 0
    shift: int = 0


def decode_jpeg_lossless(content: bytes, shape: tuple[int, int]) -> Array:
    """Decode one grey frame.

    Args:
        content: the JPEG stream.
        shape: rows and columns ``(H, W)`` that it must have.

    Returns:
        ``(H, W)``, uint16.

    Raises:
        ValueError: the stream is damaged, of another shape, or uses a predictor other than the left neighbour.
    """
    scan, place = _read_markers(content)
    if scan.shape != shape:
        raise ValueError(f"a JPEG stream of {scan.shape[0]} × {scan.shape[1]} pixels")
    if scan.predictor != 1:
        raise ValueError(f"JPEG Lossless with predictor {scan.predictor}; predictor 1 (Selection Value 1) is read")
    if not 2 <= scan.precision <= 16 or scan.shift >= scan.precision or scan.table not in scan.tables:
        raise ValueError("a damaged JPEG header")
    differences = _decode_differences(_entropy_bytes(content[place:]), scan.tables[scan.table], shape[0] * shape[1])
    steps = differences.reshape(shape)
    steps[0, 0] += 1 << (scan.precision - scan.shift - 1)
    # first column from the pixel above, then along each row from the left, modulo 2^16 (T.81 H.1.2.1)
    steps[:, 0] = np.cumsum(steps[:, 0])
    pixels = np.cumsum(steps, axis=1) & 0xFFFF
    if (pixels >> (scan.precision - scan.shift)).any():
        raise ValueError(f"JPEG pixels beyond the {scan.precision} bits that the stream tells of")
    return (pixels << scan.shift).astype(np.uint16)


def _read_markers(content: bytes) -> tuple[_Scan, int]:
    """Parse the segments before the entropy-coded data (T.81 annex B); return what they tell and where it begins."""
    if content[:2] != bytes([0xFF, _SOI]):
        raise ValueError("no JPEG stream")
    scan, place = _Scan(), 2
    while place + 4 <= len(content):
        mark, kind, length = struct.unpack(">BBH", content[place : place + 4])
        segment = content[place + 4 : place + 2 + length]
        if mark != 0xFF or len(segment) != length - 2:
            break
        place += 2 + length
        if kind == _SOF3 and len(segment) == 9 and segment[5] == 1:
            scan.precision, scan.shape = segment[0], struct.unpack(">HH", segment[1:5])
        elif kind == _DHT:
            scan.tables.update(_split_tables(segment))
        elif kind == _SOS and len(segment) == 6 and segment[0] == 1:
            scan.table, scan.predictor, scan.shift = segment[2] >> 4, segment[3], segment[5] & 15
            return scan, place
        elif not (0xE0 <= kind <= 0xEF or kind == 0xFE or (kind == _DRI and not any(segment))):
            raise ValueError(f"JPEG segment {kind:02X} is not of a grey lossless stream without restarts")
    raise ValueError("a damaged JPEG header")


def _split_tables(segment: bytes) -> dict[int, bytes]:
    """Return the Huffman tables of a DHT segment: 16 counts of codes by length, then the values (T.81 B.2.4.2)."""
    tables = {}
    while segment:
        size = 17 + sum(segment[1:17])
        if len(segment) < size or segment[0] > 3:
            raise ValueError("a damaged JPEG Huffman table")
        tables[segment[0]], segment = segment[1:size], segment[size:]
    return tables


def _entropy_bytes(content: bytes) -> bytes:
    """Return the bytes up to the end marker, without the zero bytes that follow each FF (T.81 B.1.1.5)."""
    body = content[:-1] if content[-1:] == b"\0" else content  # a fragment has an even length
    if body[-2:] != bytes([0xFF, _EOI]):
        raise ValueError("the JPEG stream has no end marker: cut short")
    body = body[:-2]
    bits = np.frombuffer(body + b"\0", np.uint8)
    if (bits[1:][bits[:-1] == 0xFF] != 0).any() or body[-1:] == b"\xff":
        raise ValueError("a marker inside the JPEG stream's pixels")
    return body.replace(b"\xff\0", b"\xff")


def _decode_differences(body: bytes, table: bytes, count: int) -> Array:
    """Decode ``count`` differences (T.81 H.1.2.2), int64."""
    code_bits, sizes = _lookup(table)
    padded = np.frombuffer(body + bytes(8), np.uint8).astype(np.uint32)
    words = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    # the 16 bits that begin at every bit of the stream
    windows = ((words[:, None] >> np.arange(8, 0, -1, dtype=np.uint32)) & 0xFFFF).astype(np.uint16).reshape(-1)
    steps = (code_bits + np.where(sizes < 16, sizes, 0)).astype(np.uint8)[windows].tobytes()
    places, place = [0] * count, 0
    try:
        for index in range(count):
            places[index] = place
            place += steps[place]
    except IndexError:
        raise ValueError("the JPEG stream ends before its last pixel") from None
    at = np.array(places)
    left = 8 * len(body) - place
    if not 0 <= left < 8 or (code_bits[windows[at]] == 0).any():
        raise ValueError("the codes of the JPEG stream do not fit its length")
    size = sizes[windows[at]].astype(np.int64)
    extra = windows[at + code_bits[windows[at]]].astype(np.int64) >> (_WINDOW - size)
    low = (1 << size) >> 1
    differences = np.where(extra >= low, extra, extra - (1 << size) + 1)
    return np.where(size == 16, 32768, np.where(size == 0, 0, differences))


def _lookup(table: bytes) -> tuple[Array, Array]:
    """Return, for every 16 bits, the length of the code at their start (0 where there is none) and its value."""
    code_bits, values = np.zeros(1 << _WINDOW, np.uint8), np.zeros(1 << _WINDOW, np.uint8)
    start = taken = 0
    for length in range(1, 17):
        for value in table[16 + taken : 16 + taken + table[length - 1]]:
            stop = start + (1 << (_WINDOW - length))
            if stop > 1 << _WINDOW or value > 16:
                raise ValueError("a damaged JPEG Huffman table")
            code_bits[start:stop], values[start:stop] = length, value
            start = stop
        taken += table[length - 1]
    return code_bits, values
