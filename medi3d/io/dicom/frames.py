"""One slice each: where it lies, how its pixels are stored and what they stand for.

A classic file holds one frame, described by the file's own elements; a multi-frame file holds many, described by
functional groups (PS3.3 C.7.6.16), shared by all frames or given for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from medi3d.errors import InputError
from medi3d.io.dicom.opening import DicomFile, PixelElement
from medi3d.io.dicom.tags import TAGS, Tags

_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66."
_GREY = ("MONOCHROME1", "MONOCHROME2")
_FLOAT_BITS = {"float32": 32, "float64": 64}

_CLASSIC_VOLUME = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "EchoTime",
    "TriggerTime",
    "ImageType",
    "AcquisitionTime",
    "ContentTime",
)
_ENHANCED_VOLUME = {
    "FrameContentSequence": ("FrameAcquisitionNumber", "TemporalPositionIndex"),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRDiffusionSequence": ("DiffusionBValue",),
}
"""What tells one volume from another at the same place, the most telling first."""

Vector: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class PixelFormat:
    """How the pixels of a frame are stored (PS3.5 section 8.1.1).

    Args:
        kind: ``"integer"``, ``"float32"`` or ``"float64"``.
        rows: number of rows H.
        columns: number of columns W.
        bits_allocated: bits that a pixel takes.
        bits_stored: bits of those that hold its value.
        high_bit: the highest of them.
        signed: whether they are two's complement.
    """

    kind: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, not compressed."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice.

    Args:
        file: the file that holds it.
        index: its number in the file, from 0.
        format: how its pixels are stored.
        position: centre of the first pixel, LPS millimetres (3).
        orientation: direction of the rows, then of the columns, LPS (6).
        spacing: distance between rows, then between columns, in millimetres (2).
        slope: value of a pixel = slope × stored + intercept.
        intercept: see ``slope``.
        volume: elements that differ between volumes of the same place, by keyword.
    """

    file: DicomFile
    index: int
    format: PixelFormat
    position: Vector
    orientation: Vector
    spacing: Vector
    slope: float
    intercept: float
    volume: Mapping[str, bytes | None]

    @property
    def name(self) -> str:
        """How messages name the slice."""
        own = self.file.path.name
        return own if self.index < 0 else f"{own}, frame {self.index + 1}"

    def scaled(self, factor: float) -> Frame:
        """Return the frame with its values multiplied by ``factor``."""
        return replace(self, slope=self.slope * factor, intercept=self.intercept * factor)


def frames_of(file: DicomFile) -> list[Frame]:
    """Describe the slices of a file: one with index -1 for a classic file, all frames of a multi-frame one.

    Raises:
        InputError: no grey-value image, pixels of a kind that is not read, no place for each slice, fewer or more
            bytes of pixels than the header tells of.
    """
    tags = file.tags
    if tags.text("SOPClassUID").startswith(_SEGMENTATION):
        raise InputError(f"{file.name}: a DICOM segmentation is not read; convert it to NIfTI")
    count = file.num_frames
    pixels = _pixel_format(file)
    _check_length(file, pixels, count)
    if any(group in tags for group in _GROUPS):
        return _enhanced_frames(file, pixels, count)
    if count != 1:
        raise InputError(
            f"{file.name}: {count} frames without functional groups: nothing tells where each lies; export the series "
            "as one file a slice or as an enhanced multi-frame file"
        )
    slope, intercept = _rescale([tags], tags)
    place = [_vector([tags], keyword, size, tags) for keyword, size in _PLACE.items()]
    volume = {keyword: tags.bytes_of(TAGS[keyword][0]) for keyword in _CLASSIC_VOLUME}
    return [Frame(file, -1, pixels, place[0], place[1], place[2], slope, intercept, volume)]


_PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}


def _enhanced_frames(file: DicomFile, pixels: PixelFormat, count: int) -> list[Frame]:
    shared = file.tags.item(_GROUPS[0])
    own = file.tags.items(_GROUPS[1])
    if len(own) != count:
        raise InputError(f"{file.name}: {count} frames, but functional groups for {len(own)}; the file is damaged")
    return [_enhanced_frame(file, pixels, index, [group, *([shared] if shared else [])])
            for index, group in enumerate(own)]  # fmt: skip


def _enhanced_frame(file: DicomFile, pixels: PixelFormat, index: int, groups: list[Tags]) -> Frame:
    def macro(keyword: str) -> list[Tags]:
        return [item for group in groups if (item := group.item(keyword)) is not None][:1]

    slope, intercept = _rescale(macro("PixelValueTransformationSequence"), file.tags)
    position = _vector(macro("PlanePositionSequence"), "ImagePositionPatient", 3, file.tags)
    orientation = _vector(macro("PlaneOrientationSequence"), "ImageOrientationPatient", 6, file.tags)
    spacing = _vector(macro("PixelMeasuresSequence"), "PixelSpacing", 2, file.tags)
    volume = {
        keyword: item.bytes_of(TAGS[keyword][0])
        for sequence, keywords in _ENHANCED_VOLUME.items()
        for item in macro(sequence)
        for keyword in keywords
    }
    return Frame(file, index, pixels, position, orientation, spacing, slope, intercept, volume)


def _vector(items: list[Tags], keyword: str, size: int, tags: Tags) -> Vector:
    numbers = items[0].numbers(keyword, size) if items else None
    if numbers is None:
        raise InputError(f"{tags.where}: {keyword} is missing, so nothing tells where the slice lies; is it a scout?")
    return numbers


def _rescale(items: list[Tags], tags: Tags) -> tuple[float, float]:
    """Return slope and intercept (PS3.3 C.11.1), 1 and 0 where the file gives none."""
    if "ModalityLUTSequence" in tags:
        raise InputError(f"{tags.where}: a Modality LUT in place of a rescale slope is not read")
    slope, intercept = (items[0].number(keyword) if items else None for keyword in ("RescaleSlope", "RescaleIntercept"))
    if slope == 0:
        raise InputError(f"{tags.where}: RescaleSlope is 0, which makes every voxel the same")
    return 1.0 if slope is None else slope, intercept or 0.0


def _pixel_format(file: DicomFile) -> PixelFormat:
    tags, element = file.tags, _pixels(file)
    photometric = tags.text("PhotometricInterpretation")
    if tags.integer("SamplesPerPixel") != 1 or photometric not in _GREY:
        colour = f"{tags.integer('SamplesPerPixel')} samples a pixel, {photometric[:16] or 'no photometric'}"
        raise InputError(f"{file.name}: pixels must be grey values; got {colour}; leave out colour images")
    bits = tags.integer("BitsAllocated")
    if element.kind != "integer":
        stored, high, signed = bits, bits - 1, 1
        valid = bits == _FLOAT_BITS[element.kind]
    else:
        stored, high, signed = map(tags.integer, ("BitsStored", "HighBit", "PixelRepresentation"))
        valid = bits in (8, 16, 32) and 0 < stored <= high + 1 <= bits and signed in (0, 1)
    if not valid:
        raise InputError(
            f"{file.name}: pixels of {bits} bits, {stored} of them stored, the highest {high}, representation "
            f"{signed}: expected 8, 16 or 32 bits that hold the stored ones"
        )
    rows, columns = tags.integer("Rows"), tags.integer("Columns")
    if rows < 1 or columns < 1:
        raise InputError(f"{file.name}: an image of {rows} × {columns} pixels")
    return PixelFormat(element.kind, rows, columns, bits, stored, high, bool(signed))


def _pixels(file: DicomFile) -> PixelElement:
    if file.pixels is None:
        reason = "no Pixel Data; the file is cut short or damaged" if file.is_image else "a report, a plan or the like"
        raise InputError(f"{file.name}: holds no image: {reason}")
    return file.pixels


def _check_length(file: DicomFile, pixels: PixelFormat, count: int) -> None:
    """Compare the bytes of pixels with what the header tells of; compressed data is checked when it is decoded."""
    element = _pixels(file)
    if count < 1:
        raise InputError(f"{file.name}: NumberOfFrames is {count}")
    if element.length is None:
        return
    expected = count * pixels.frame_bytes
    if element.length != expected + expected % 2:  # a value has an even length, PS3.5 section 7.1.1
        raise InputError(
            f"{file.name}: {element.length} bytes of Pixel Data; {count} × {pixels.rows} × {pixels.columns} pixels of "
            f"{pixels.bits_allocated} bits take {expected}"
        )
    if element.content is None and (held := file.path.stat().st_size) < element.offset + element.length:
        raise InputError(f"{file.name}: cut short: the file holds {held} of {element.offset + element.length} bytes")
