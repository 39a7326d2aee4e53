"""Slices → one grid: order, step from slice to slice, and what does not belong together.

Image Position and Image Orientation (Patient), PS3.3 C.7.6.2.1.1, alone decide; file names and Instance Numbers do
not. Slices are sorted along the normal of the first row and column direction. The step from slice to slice is kept as
it was scanned: a tilted gantry gives a sheared grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from medi3d.errors import InputError
from medi3d.io.dicom.frames import Frame
from medi3d.io.raw import LPS_TO_RAS
from medi3d.types import Array
from medi3d.volume import Affine

_UNIT_TOLERANCE = 2e-3
"""By how much direction cosines may miss unit length and a right angle: they are often written with three digits."""
_SAME_PLACE_MM = 1e-3
_POSITION_TOLERANCE_MM = 0.05
"""Positions are often rounded to 0.1 mm; a missing slice moves others by far more, see :func:`_check_even`."""
_STEP_SHARE = 0.01

_TRAITS: dict[str, Callable[[Frame], Hashable]] = {
    "matrix size": lambda frame: (frame.format.rows, frame.format.columns),
    "pixel format": lambda frame: frame.format,
    "frame of reference": lambda frame: frame.file.tags.text("FrameOfReferenceUID"),
    "patient, study or series": lambda frame: tuple(
        frame.file.tags.texts(keyword) for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
    ),
    "modality": lambda frame: frame.file.tags.text("Modality"),
    "photometric interpretation": lambda frame: frame.file.tags.text("PhotometricInterpretation"),
}
"""What all slices of a volume have in common."""

_VECTORS: dict[str, tuple[Callable[[Frame], Sequence[float]], float]] = {
    "pixel spacing": (lambda frame: frame.spacing, 1e-4),
    "orientation": (lambda frame: frame.orientation, 1e-3),
}
"""Likewise, and the largest difference from the median that is rounding."""


def stack_frames(frames: Sequence[Frame], where: str) -> tuple[list[Frame], Affine]:
    """Order the slices of one volume and tell where they lie.

    Args:
        frames: at least one, in any order.
        where: how messages name the series.

    Returns:
        The slices along their normal, and the 4×4 ``(d, h, w)`` index → RAS millimetres affine.

    Raises:
        InputError: one slice, a foreign slice, several volumes at one place, a gap.
    """
    if len(frames) == 1:
        raise InputError(f"{where}: one slice ({frames[0].name}); a volume needs at least two")
    for trait, of in _TRAITS.items():
        _check_common(frames, trait, of, where)
    for trait in _VECTORS:
        _check_close(frames, trait, where)
    row, column = _axes(frames[0], where)
    normal = np.cross(row, column)
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    ordered, positions = [frames[index] for index in order], positions[order]
    _check_doubled(ordered, positions @ normal, where)
    _check_even(ordered, positions, normal, where)
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / (len(frames) - 1)
    affine[:3, 1] = column * frames[0].spacing[0]
    affine[:3, 2] = row * frames[0].spacing[1]
    affine[:3, 3] = positions[0]
    return ordered, LPS_TO_RAS @ affine


def _check_common(frames: Sequence[Frame], trait: str, of: Callable[[Frame], Hashable], where: str) -> None:
    traits = [of(frame) for frame in frames]
    usual = Counter(traits).most_common(1)[0][0]
    _refuse_foreign([frame for frame, own in zip(frames, traits, strict=True) if own != usual], trait, frames, where)


def _check_close(frames: Sequence[Frame], trait: str, where: str) -> None:
    of, tolerance = _VECTORS[trait]
    vectors = np.array([of(frame) for frame in frames])
    off = np.abs(vectors - np.median(vectors, axis=0)).max(axis=1) > tolerance
    _refuse_foreign([frame for frame, other in zip(frames, off, strict=True) if other], trait, frames, where)


def _refuse_foreign(foreign: Sequence[Frame], trait: str, frames: Sequence[Frame], where: str) -> None:
    if not foreign:
        return
    named = ", ".join(frame.name for frame in foreign[:3]) + (", …" if len(foreign) > 3 else "")
    raise InputError(
        f"{where}: another {trait} in {len(foreign)} of {len(frames)} slices: {named}; leave them out or put them in a "
        "folder of their own"
    )


def _axes(frame: Frame, where: str) -> tuple[Array, Array]:
    """Return the unit vectors of a row and of a column, LPS."""
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    off = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    if not off <= 2 * _UNIT_TOLERANCE:
        raise InputError(f"{where}: ImageOrientationPatient holds no two unit vectors at a right angle ({frame.name})")
    if min(frame.spacing) <= 0 or max(frame.spacing) > 1000:
        raise InputError(f"{where}: PixelSpacing must be above 0 and at most 1000 mm; got {frame.spacing}")
    return row / np.linalg.norm(row), column / np.linalg.norm(column)


def _check_doubled(frames: list[Frame], depths: Array, where: str) -> None:
    doubled = np.flatnonzero(np.diff(depths) < _SAME_PLACE_MM)
    if not len(doubled):
        return
    places = 1 + int(np.count_nonzero(np.diff(depths) >= _SAME_PLACE_MM))
    if len(frames) % places == 0 and len(frames) // places > 1:
        teller = _what_tells_apart(frames, depths, len(frames) // places)
        raise InputError(
            f"{where}: {len(frames) // places} volumes of {places} slices at the same places"
            f"{f', told apart by {teller}' if teller else ''}; put each in a folder of its own"
        )
    first, second = frames[doubled[0]], frames[doubled[0] + 1]
    raise InputError(
        f"{where}: {len(doubled)} of {len(frames)} slices lie where another one does (for example {first.name} and "
        f"{second.name}); the folder holds more than one volume"
    )


def _what_tells_apart(frames: list[Frame], depths: Array, volumes: int) -> str | None:
    """Name the element by which slices at the same place fall into volumes of one slice a place."""
    place = np.concatenate([[0], np.cumsum(np.diff(depths) >= _SAME_PLACE_MM)])
    for keyword in frames[0].volume:
        values = [frame.volume.get(keyword) for frame in frames]
        pairs = set(zip(values, place.tolist(), strict=True))
        if len(set(values)) == volumes and len(pairs) == len(frames):
            return keyword
    return None


def _check_even(frames: list[Frame], positions: Array, normal: Array, where: str) -> None:
    """Refuse a gap, an extra slice, and slices that are not on a line.

    A slice that is missing among n moves the positions off the straight line by at least half a step.
    """
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    tolerance = min(_POSITION_TOLERANCE_MM + _STEP_SHARE * typical, 0.25 * typical)
    worst = int(np.abs(gaps - typical).argmax())
    if abs(gaps[worst] - typical) > 2 * tolerance:
        missing = round(float(gaps[worst]) / typical) - 1
        reason = f": {missing} slice{'s' * (missing > 1)} missing" if missing > 0 else ": slices of several series"
        raise InputError(
            f"{where}: uneven slice gaps: {gaps[worst]:.3f} mm between slices {worst + 1} and {worst + 2} of "
            f"{len(frames)} ({frames[worst].name} and {frames[worst + 1].name}), elsewhere {typical:.3f} mm{reason}"
        )
    line = np.linspace(positions[0], positions[-1], len(positions))
    off = np.linalg.norm(positions - line, axis=1)
    if off.max() > tolerance:
        raise InputError(
            f"{where}: the slices do not lie on an even line: {frames[int(off.argmax())].name} is {off.max():.3f} mm "
            "beside it"
        )
