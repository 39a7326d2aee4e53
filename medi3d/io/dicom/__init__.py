"""DICOM: series of slices and multi-frame files, checked from the first tag to the last pixel.

A volume is what Image Position and Image Orientation (Patient) make of the slices (PS3.3 C.7.6.2.1.1), its voxels what
the rescale slope makes of the stored pixels (PS3.3 C.11.1). Messages name files, places and elements; never a value
that tells of a patient. pydicom and GDCM are imported when they are needed.
"""

from __future__ import annotations

from pathlib import Path

from medi3d.errors import InputError
from medi3d.io.dicom.frames import Frame, frames_of
from medi3d.io.dicom.geometry import stack_frames
from medi3d.io.dicom.opening import has_dicom_mark
from medi3d.io.dicom.pixels import check_syntax, decode_frames, voxel_type
from medi3d.io.dicom.series import find_series, holds_dicom, list_series, split_address
from medi3d.io.dicom.suv import to_suv
from medi3d.io.raw import Header, RawImage
from medi3d.volume import Affine, Grid

__all__ = [
    "is_dicom",
    "list_series",
    "read_dicom",
    "read_dicom_header",
    "series_files",
]

QUANTITIES = ("stored", "suv")


def is_dicom(path: Path) -> bool:
    """Tell whether a path is a DICOM file, a folder that itself holds DICOM files, or ``folder#N``."""
    folder, number = split_address(path)
    if number is not None or not folder.is_dir():
        return folder.is_dir() or has_dicom_mark(folder)
    return holds_dicom(folder)


def read_dicom_header(path: Path, *, quantity: str = "stored") -> Header:
    """Tell shape, place and voxel type of a series; no pixel is read, every check that the headers allow is made.

    Args:
        path: as for :func:`read_dicom`.
        quantity: as for :func:`read_dicom`.

    Raises:
        InputError: as :func:`read_dicom`.
    """
    frames, affine = _stack(path, quantity)
    first = frames[0].format
    return Header(1, Grid((len(frames), first.rows, first.columns), affine), voxel_type(frames))


def read_dicom(path: Path, *, quantity: str = "stored", scratch: Path | None = None) -> RawImage:
    """Read one volume, rescale slope and intercept applied.

    Args:
        path: a folder that holds one series; ``folder#N``, one of several (see :func:`list_series`); or a
            multi-frame file.
        quantity: ``"stored"``: what the rescale slope gives (HU, Bq/ml, ...); ``"suv"``: SUV by body weight, for PET.
        scratch: a folder for a memory-mapped file in place of memory.

    Returns:
        Voxels ``(1, D, H, W)``: int16 or uint16 where slope 1 and a whole intercept let them fit, int32 where whole
        numbers need it, else float32. D runs along the normal of the slices.

    Raises:
        InputError: no series or several; slices missing, doubled or of another kind; pixels that are damaged, coloured
            or in an encoding that cannot be decoded; something that SUV needs is missing.
    """
    frames, affine = _stack(path, quantity)
    return RawImage(decode_frames(frames, scratch)[None], affine)


def series_files(path: Path) -> list[Path]:
    """List the files of a series, sorted by name (see :func:`read_dicom` for the paths).

    Raises:
        InputError: no series or several, or a file that cannot be read.
    """
    return [file.path for file in find_series(path).files]


def _stack(path: Path, quantity: str) -> tuple[list[Frame], Affine]:
    if quantity not in QUANTITIES:
        raise InputError(f"{path}: quantity must be {' or '.join(QUANTITIES)}; got {quantity!r}")
    series = find_series(path)
    if series.is_multiframe and len(series.files) > 1:
        names = ", ".join(file.path.name for file in series.files[:3])
        raise InputError(
            f"{path}: {len(series.files)} files, each with frames of its own; name one of them: {names}, …"
        )
    for file in series.files:
        check_syntax(file)
    frames = [frame for file in series.files for frame in frames_of(file)]
    if len(frames) == 1 and path.is_file():
        raise InputError(f"{path}: one slice; give the folder that holds its series: {path.parent}")
    ordered, affine = stack_frames(frames, str(path))
    return to_suv(ordered, str(path)) if quantity == "suv" else ordered, affine
