"""One DICOM file: its elements up to the pixels, where the pixels lie, and whether the file ends as it should."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from medi3d.errors import InputError
from medi3d.io.dicom.tags import DAMAGE, PRIVATE_TAGS, TAGS, Tags, quiet_pydicom

_MARK_OFFSET, _MARK = 128, b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_IMPLICIT = "1.2.840.10008.1.2"
_PIXEL_TAGS = {(0x7FE0, 0x0010): "integer", (0x7FE0, 0x0008): "float32", (0x7FE0, 0x0009): "float64"}
_LONG_FORMS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations with a length of four bytes (PS3.5 table 7.1-1)."""
_UNDEFINED = 0xFFFFFFFF

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NOT_IMAGES = ("9.", "11.", "4.2", "66", "67", "79.1", "88.", "104.", "481.3", "481.4", "481.5", "481.6", "481.7",
               "481.8", "481.9", "481.10", "481.11")  # fmt: skip
"""Storage classes of objects without pixels (PS3.4 annex B.5): waveforms, presentation states, spectra, registrations,
reports, documents, RT structures, plans and records. A file that is none of these and has no pixels is damaged."""


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data of a file lies.

    Args:
        kind: ``"integer"``, ``"float32"`` or ``"float64"``, by the element's tag.
        offset: of the first byte of the value, in the file or in ``content``.
        length: in bytes; ``None`` for encapsulated (compressed) data, which says its own end.
        content: the bytes of a deflated file; ``None`` where the value is read from the file itself.
    """

    kind: str
    offset: int
    length: int | None
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class DicomFile:
    """One DICOM file: its elements and where its pixel data lies, which is not read yet."""

    path: Path
    name: str
    tags: Tags
    syntax: str
    pixels: PixelElement | None

    @property
    def big_endian(self) -> bool:
        """Whether the pixel data has its most significant byte first."""
        return self.syntax == _BIG_ENDIAN

    @property
    def num_frames(self) -> int:
        """Number of Frames; 1 where the element is absent."""
        number = self.tags.number("NumberOfFrames")
        return 1 if number is None else int(number)

    @cached_property
    def is_image(self) -> bool:
        """Whether the file holds an image, or should; reports, plans, waveforms and the like do not."""
        kind = self.tags.text("SOPClassUID").removeprefix(_STORAGE)
        return self.pixels is not None or "Rows" in self.tags or not kind.startswith(_NOT_IMAGES)


def has_dicom_mark(path: Path) -> bool:
    """Tell whether a file bears the DICOM mark after its preamble (PS3.10 section 7.1)."""
    try:
        with path.open("rb") as file:
            return file.read(_MARK_OFFSET + len(_MARK))[_MARK_OFFSET:] == _MARK
    except OSError:
        return False


def open_dicom(path: Path, name: str) -> DicomFile:
    """Read the elements of a file up to its pixel data.

    Args:
        path: the file.
        name: how messages name it.

    Raises:
        InputError: the file cannot be opened or parsed, or something other than elements follows its pixels.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{name}: cannot be opened ({error.strerror})") from None
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with file, quiet_pydicom():
            return _parse(file, path, name)
    except (*DAMAGE, BytesLengthException, InvalidDicomError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: not readable as DICOM; the file is damaged") from None


def _parse(file: BinaryIO, path: Path, name: str) -> DicomFile:
    import pydicom

    wanted: list[Any] = [*(tag for tag, _ in TAGS.values()), *PRIVATE_TAGS]
    dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=wanted)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax:
        raise InputError(f"{name}: TransferSyntaxUID is missing; the file is damaged")
    if syntax == _DEFLATED:
        pixels = _pixels_of_deflated(path)
    else:
        pixels = _pixels_at(file.read(12), file.tell(), syntax)
        if pixels is not None and pixels.length is not None:
            file.seek(pixels.offset + pixels.length)
            if not ends_with_elements(file.read(), syntax):
                raise InputError(f"{name}: what follows the pixels is no DICOM; the file is damaged")
    return DicomFile(path, name, Tags(dataset, name), syntax, pixels)


def ends_with_elements(rest: bytes, syntax: str) -> bool:
    """Tell whether what follows the pixels is nothing, or elements up to the last byte: padding, signatures."""
    place = 0
    while place < len(rest):
        tag, length, size = _element_head(rest[place : place + 12], syntax)
        if tag <= max(_PIXEL_TAGS):
            return False
        place += size + length
    return place == len(rest)


def _element_head(head: bytes, syntax: str) -> tuple[tuple[int, int], int, int]:
    """Parse tag, length of the value and length of the head itself (PS3.5 section 7.1); a tag of 0 is none."""
    order = ">" if syntax == _BIG_ENDIAN else "<"
    if len(head) < 8:
        return (0, 0), 0, 0
    group, element = struct.unpack(f"{order}HH", head[:4])
    if syntax == _IMPLICIT:
        return (group, element), struct.unpack("<L", head[4:8])[0], 8
    if head[4:6] not in _LONG_FORMS:
        return (group, element), struct.unpack(f"{order}H", head[6:8])[0], 8
    return ((group, element), struct.unpack(f"{order}L", head[8:12])[0], 12) if len(head) == 12 else ((0, 0), 0, 0)


def _pixels_at(head: bytes, end: int, syntax: str) -> PixelElement | None:
    """Parse the element at which pydicom stopped."""
    tag, length, size = _element_head(head, syntax)
    if tag not in _PIXEL_TAGS or (size == 8 and syntax != _IMPLICIT):
        return None
    return PixelElement(_PIXEL_TAGS[tag], end - len(head) + size, None if length == _UNDEFINED else length)


def _pixels_of_deflated(path: Path) -> PixelElement | None:
    import pydicom

    dataset = pydicom.dcmread(path)
    for tag, kind in _PIXEL_TAGS.items():
        if tag in dataset:
            content = bytes(dataset[tag].value)
            return PixelElement(kind, 0, len(content), content)
    return None
