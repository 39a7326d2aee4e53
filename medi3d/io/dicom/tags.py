"""The elements of one DICOM file, parsed strictly from their bytes.

pydicom finds the elements; their values are parsed here, because pydicom warns where a value is malformed and this
reader has to refuse. An element that cannot be parsed is named by its keyword; its value is never repeated.
"""

from __future__ import annotations

import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medi3d.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

TAGS: dict[str, tuple[int, str]] = {
    "ImageType": (0x00080008, "CS"),
    "SOPClassUID": (0x00080016, "UI"),
    "SOPInstanceUID": (0x00080018, "UI"),
    "SeriesDate": (0x00080021, "DA"),
    "AcquisitionDate": (0x00080022, "DA"),
    "ContentDate": (0x00080023, "DA"),
    "AcquisitionDateTime": (0x0008002A, "DT"),
    "SeriesTime": (0x00080031, "TM"),
    "AcquisitionTime": (0x00080032, "TM"),
    "ContentTime": (0x00080033, "TM"),
    "Modality": (0x00080060, "CS"),
    "FrameType": (0x00089007, "CS"),
    "PatientID": (0x00100020, "LO"),
    "PatientWeight": (0x00101030, "DS"),
    "EchoTime": (0x00180081, "DS"),
    "EchoNumbers": (0x00180086, "IS"),
    "TriggerTime": (0x00181060, "DS"),
    "RadiopharmaceuticalStartTime": (0x00181072, "TM"),
    "RadionuclideTotalDose": (0x00181074, "DS"),
    "RadionuclideHalfLife": (0x00181075, "DS"),
    "RadiopharmaceuticalStartDateTime": (0x00181078, "DT"),
    "ActualFrameDuration": (0x00181242, "IS"),
    "EffectiveEchoTime": (0x00189082, "FD"),
    "DiffusionBValue": (0x00189087, "FD"),
    "MREchoSequence": (0x00189114, "SQ"),
    "MRDiffusionSequence": (0x00189117, "SQ"),
    "StudyInstanceUID": (0x0020000D, "UI"),
    "SeriesInstanceUID": (0x0020000E, "UI"),
    "SeriesNumber": (0x00200011, "IS"),
    "AcquisitionNumber": (0x00200012, "IS"),
    "ImagePositionPatient": (0x00200032, "DS"),
    "ImageOrientationPatient": (0x00200037, "DS"),
    "FrameOfReferenceUID": (0x00200052, "UI"),
    "TemporalPositionIdentifier": (0x00200100, "IS"),
    "FrameContentSequence": (0x00209111, "SQ"),
    "PlanePositionSequence": (0x00209113, "SQ"),
    "PlaneOrientationSequence": (0x00209116, "SQ"),
    "TemporalPositionIndex": (0x00209128, "UL"),
    "FrameAcquisitionNumber": (0x00209156, "US"),
    "SamplesPerPixel": (0x00280002, "US"),
    "PhotometricInterpretation": (0x00280004, "CS"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "Columns": (0x00280011, "US"),
    "PixelSpacing": (0x00280030, "DS"),
    "CorrectedImage": (0x00280051, "CS"),
    "BitsAllocated": (0x00280100, "US"),
    "BitsStored": (0x00280101, "US"),
    "HighBit": (0x00280102, "US"),
    "PixelRepresentation": (0x00280103, "US"),
    "RescaleIntercept": (0x00281052, "DS"),
    "RescaleSlope": (0x00281053, "DS"),
    "ModalityLUTSequence": (0x00283000, "SQ"),
    "PixelMeasuresSequence": (0x00289110, "SQ"),
    "PixelValueTransformationSequence": (0x00289145, "SQ"),
    "RadiopharmaceuticalInformationSequence": (0x00540016, "SQ"),
    "Units": (0x00541001, "CS"),
    "SUVType": (0x00541006, "CS"),
    "DecayCorrection": (0x00541102, "CS"),
    "FrameReferenceTime": (0x00541300, "DS"),
    "SharedFunctionalGroupsSequence": (0x52009229, "SQ"),
    "PerFrameFunctionalGroupsSequence": (0x52009230, "SQ"),
}
"""Keyword → tag and value representation (PS3.6 chapter 6)."""

PRIVATE_TAGS = (0x00090010, 0x0009100D, 0x70530010, 0x70531000, 0x70531009)
"""What :mod:`~medi3d.io.dicom.suv` needs of GE's and Philips's private groups."""

_DECIMAL = re.compile(rb" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *")
_INTEGER = re.compile(rb" *[+-]?\d+ *")
_PRINTABLE = re.compile(rb"[\x20-\x7e]*")
DAMAGE = (EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RecursionError,
          IndexError, OverflowError, OSError, struct.error, zlib.error)  # fmt: skip
"""What pydicom raises on bytes that make no sense, besides errors of its own."""


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from warning and logging, which repeats malformed values: they may be identifiers."""
    from pydicom.config import disable_value_validation

    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


class Tags:
    """The elements of a dataset, by keyword.

    Args:
        dataset: as pydicom read it, its values still bytes.
        where: how messages name the file.
    """

    def __init__(self, dataset: Dataset, where: str) -> None:
        self.where = where
        self._dataset = dataset

    def __contains__(self, keyword: str) -> bool:
        return TAGS[keyword][0] in self._dataset

    def raw(self, tag: int, keyword: str, kind: str) -> tuple[bytes, str] | None:
        """Return the bytes of an element and its byte order; ``None`` where it is absent or empty."""
        if tag not in self._dataset:
            return None
        element: Any = self._dataset.get_item(tag)
        value = element.value or b""
        if not isinstance(value, bytes) or element.VR not in (kind, "UN", None):
            raise self.unreadable(keyword)
        if not value.strip(b" \0" if kind not in _BINARY else b""):
            return None
        return value, "<" if element.is_little_endian else ">"

    def bytes_of(self, tag: int) -> bytes | None:
        """Return the bytes of an element as they are, without padding; ``None`` where it is absent."""
        element: Any = self._dataset.get_item(tag) if tag in self._dataset else None
        value = None if element is None else element.value
        return value.strip(b" \0") if isinstance(value, bytes) else None

    def unreadable(self, keyword: str) -> InputError:
        """Return the error for an element that cannot be parsed."""
        return InputError(f"{self.where}: {keyword} is unreadable; the file is damaged or was written wrongly")

    def missing(self, keyword: str) -> InputError:
        """Return the error for an element that has to be there."""
        return InputError(f"{self.where}: {keyword} is missing")

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return the values of a text element; none where it is absent."""
        tag, kind = TAGS[keyword]
        found = self.raw(tag, keyword, kind)
        if found is None:
            return ()
        value = found[0].strip(b" \0")
        if kind != "LO" and not _PRINTABLE.fullmatch(value):
            raise self.unreadable(keyword)
        return tuple(part.strip() for part in value.decode("latin-1").split("\\"))

    def text(self, keyword: str) -> str:
        """Return the first value of a text element, ``""`` where it is absent."""
        return (*self.texts(keyword), "")[0]

    def numbers(self, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
        """Return the values of a numeric element, ``None`` where it is absent.

        Raises:
            InputError: they are no numbers, or not ``count``.
        """
        tag, kind = TAGS[keyword]
        found = self.raw(tag, keyword, kind)
        if found is None:
            return None
        numbers = _PARSERS[kind](*found)
        if not numbers or (count is not None and len(numbers) != count):
            raise self.unreadable(keyword)
        return numbers

    def number(self, keyword: str) -> float | None:
        """Return the one value of a numeric element, ``None`` where it is absent."""
        numbers = self.numbers(keyword, 1)
        return None if numbers is None else numbers[0]

    def integer(self, keyword: str) -> int:
        """Return the one value of an integer element that has to be there."""
        number = self.number(keyword)
        if number is None:
            raise self.missing(keyword)
        return int(number)

    def items(self, keyword: str) -> list[Tags]:
        """Return the items of a sequence; none where it is absent."""
        tag, _ = TAGS[keyword]
        if tag not in self._dataset:
            return []
        from pydicom.errors import BytesLengthException

        try:
            with quiet_pydicom():
                element = self._dataset[tag]
                if element.VR != "SQ":
                    raise self.unreadable(keyword)
                return [Tags(item, self.where) for item in element.value]
        except (*DAMAGE, BytesLengthException):
            raise self.unreadable(keyword) from None

    def item(self, keyword: str) -> Tags | None:
        """Return the first item of a sequence, ``None`` where there is none."""
        return next(iter(self.items(keyword)), None)


def _decimals(value: bytes, order: str) -> tuple[float, ...]:
    parts = value.strip(b"\0").split(b"\\")
    numbers = tuple(float(part) for part in parts) if all(map(_DECIMAL.fullmatch, parts)) else ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def _integers(value: bytes, order: str) -> tuple[float, ...]:
    parts = value.strip(b"\0").split(b"\\")
    return tuple(int(part) for part in parts) if all(map(_INTEGER.fullmatch, parts)) else ()


def _packed(code: str) -> Callable[[bytes, str], tuple[float, ...]]:
    size = struct.calcsize(f"<{code}")

    def parse(value: bytes, order: str) -> tuple[float, ...]:
        count, rest = divmod(len(value), size)
        return () if rest else struct.unpack(f"{order}{count}{code}", value)

    return parse


_PARSERS: dict[str, Callable[[bytes, str], tuple[float, ...]]] = {
    "DS": _decimals,
    "IS": _integers,
    "US": _packed("H"),
    "UL": _packed("L"),
    "FD": _packed("d"),
}
_BINARY = ("US", "UL", "FD")
