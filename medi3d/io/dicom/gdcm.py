"""JPEG 2000 and JPEG-LS frames: the stream's structure is checked here, then GDCM (through SimpleITK) decodes it.

GDCM is given a file of its own for each frame, with the few elements that decoding needs, so that a damaged header
meets one parser only and no patient's data lies in the temporary folder.
"""

from __future__ import annotations

import struct
import tempfile

import numpy as np
import SimpleITK as sitk

from medi3d.io.dicom.frames import PixelFormat
from medi3d.types import Array

_SECONDARY_CAPTURE = b"1.2.840.10008.5.1.4.1.1.7\0"
_INSTANCE = b"1.2.826.0.1.3680043.8.1"
_UNDEFINED = 0xFFFFFFFF
_SOC, _SIZ, _SOT, _SOD, _EOC = b"\xff\x4f", b"\xff\x51", b"\xff\x90", b"\xff\x93", b"\xff\xd9"


def decode_jpeg_2000(content: bytes, pixels: PixelFormat, syntax: str) -> Array:
    """Decode one JPEG 2000 frame to unsigned integers ``(H, W)``, the stored bits.

    Raises:
        ValueError: the stream is damaged or of another shape or type.
    """
    end = _check_jpeg_2000(content, pixels)
    return _decode(content[:end], pixels, syntax)


def decode_jpeg_ls(content: bytes, pixels: PixelFormat, syntax: str) -> Array:
    """Decode one JPEG-LS frame (ITU-T T.87) to unsigned integers ``(H, W)``, the stored bits.

    Raises:
        ValueError: the stream is damaged or of another shape.
    """
    _check_jpeg_ls(content, pixels)
    return _decode(content, pixels, syntax)


def _check_jpeg_2000(content: bytes, pixels: PixelFormat) -> int:
    """Follow the codestream from tile part to tile part up to its end (ITU-T T.800 annex A); return that."""
    if content[:4] != _SOC + _SIZ or len(content) < 51:
        raise ValueError("no JPEG 2000 stream")
    width, height, left, top = struct.unpack(">4L", content[8:24])
    components, depth = struct.unpack(">HB", content[40:43])
    if (height - top, width - left, components) != (pixels.rows, pixels.columns, 1):
        raise ValueError(f"a JPEG 2000 stream of {height - top} × {width - left} pixels, {components} components")
    if (depth & 0x7F) + 1 > pixels.bits_allocated:
        raise ValueError(f"a JPEG 2000 stream of {(depth & 0x7F) + 1} bits a pixel")
    place = 2
    while content[place : place + 2] != _SOT:
        if content[place : place + 1] != b"\xff" or place + 4 > len(content):
            raise ValueError("a damaged JPEG 2000 header")
        place += 2 + struct.unpack(">H", content[place + 2 : place + 4])[0]
    while content[place : place + 2] == _SOT and place + 12 <= len(content):
        length = struct.unpack(">L", content[place + 6 : place + 10])[0]
        if length == 0:  # the last tile part may run to the end of the stream
            place = content.rfind(_EOC)
            break
        if length < 14:
            break
        place += length
    if content[place : place + 2] != _EOC or content[place + 2 :].strip(b"\0"):
        raise ValueError("the tile parts of the JPEG 2000 stream do not end where it does: cut short")
    return place + 2


def _check_jpeg_ls(content: bytes, pixels: PixelFormat) -> None:
    place, shape = 2, None
    if content[:2] != b"\xff\xd8":
        raise ValueError("no JPEG-LS stream")
    while content[place : place + 2] != b"\xff\xda":
        if content[place : place + 1] != b"\xff" or place + 4 > len(content):
            raise ValueError("a damaged JPEG-LS header")
        kind, length = struct.unpack(">xBH", content[place : place + 4])
        if kind == 0xF7 and length == 11:
            shape = struct.unpack(">BHHB", content[place + 4 : place + 10])
        place += 2 + length
    if shape is None or shape[1:] != (pixels.rows, pixels.columns, 1) or shape[0] > pixels.bits_allocated:
        raise ValueError("a JPEG-LS stream of another shape")
    if content.rstrip(b"\0")[-2:] != b"\xff\xd9":
        raise ValueError("the JPEG-LS stream has no end marker: cut short")


def _decode(content: bytes, pixels: PixelFormat, syntax: str) -> Array:
    with tempfile.NamedTemporaryFile(prefix="medi3d-", suffix=".dcm") as file:
        file.write(_minimal_file(content, pixels, syntax))
        file.flush()
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(file.name)
        try:
            array: Array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError:
            raise ValueError("GDCM cannot decode the stream") from None
    unsigned = np.dtype(f"u{pixels.bits_allocated // 8}")
    if array.size != pixels.rows * pixels.columns or array.dtype.itemsize != unsigned.itemsize:
        raise ValueError(f"GDCM decoded {array.dtype} {array.shape}")
    return array.view(unsigned).reshape(pixels.rows, pixels.columns)


def _minimal_file(content: bytes, pixels: PixelFormat, syntax: str) -> bytes:
    """Return a DICOM file of one frame (PS3.10 section 7.1, explicit little endian)."""
    meta = _element(0x0002, 0x0001, b"OB", b"\0\1") + b"".join(
        _element(0x0002, tag, b"UI", _even(value))
        for tag, value in ((0x02, _SECONDARY_CAPTURE), (0x03, _INSTANCE), (0x10, syntax.encode()))
    )
    numbers = {
        0x0010: pixels.rows,
        0x0011: pixels.columns,
        0x0100: pixels.bits_allocated,
        0x0101: pixels.bits_stored,
        0x0102: pixels.high_bit,
        0x0103: int(pixels.signed),
    }
    return b"".join(
        (
            bytes(128) + b"DICM",
            _element(0x0002, 0x0000, b"UL", struct.pack("<L", len(meta))) + meta,
            _element(0x0008, 0x0016, b"UI", _SECONDARY_CAPTURE),
            _element(0x0008, 0x0018, b"UI", _even(_INSTANCE)),
            _element(0x0028, 0x0002, b"US", b"\1\0"),
            _element(0x0028, 0x0004, b"CS", b"MONOCHROME2 "),
            *(_element(0x0028, tag, b"US", struct.pack("<H", number)) for tag, number in numbers.items()),
            struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, _UNDEFINED),
            struct.pack("<HHL", 0xFFFE, 0xE000, 0),
            struct.pack("<HHL", 0xFFFE, 0xE000, len(_even(content))) + _even(content),
            struct.pack("<HHL", 0xFFFE, 0xE0DD, 0),
        )
    )


def _element(group: int, element: int, kind: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH2s", group, element, kind)
    size = struct.pack("<HL", 0, len(value)) if kind == b"OB" else struct.pack("<H", len(value))
    return head + size + value


def _even(value: bytes) -> bytes:
    return value + b"\0" * (len(value) % 2)
