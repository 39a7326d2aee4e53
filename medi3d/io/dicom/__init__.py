"""DICOM series: a folder that holds one series is one volume, read through GDCM.

Geometry comes from Image Position and Image Orientation (Patient), PS3.3 C.7.6.2.1.1, of every slice. Messages name
the folder and numbers, never a patient or a UID.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medi3d.errors import InputError
from medi3d.io.itk import itk_reason, raw_from_sitk
from medi3d.io.raw import LPS_TO_RAS, Header, RawImage
from medi3d.types import Array
from medi3d.volume import Grid

_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_GAP_TOLERANCE = 0.01
"""Share of the slice distance by which single gaps may differ."""


def is_dicom_file(path: Path) -> bool:
    """Tell whether a file bears the DICOM mark after its preamble (PS3.10 section 7.1)."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_dicom_folder(path: Path) -> bool:
    """Tell whether a folder itself holds DICOM files (any of its first eight files)."""
    if not path.is_dir():
        return False
    files = (entry for entry in sorted(path.iterdir()) if entry.is_file() and not entry.name.startswith("."))
    return any(is_dicom_file(file) for file in islice(files, 8))


def is_dicom(path: Path) -> bool:
    """Tell whether a path is a DICOM file, a folder that itself holds DICOM files, or one of its series."""
    return is_dicom_file(path) or is_dicom_folder(path)


def list_series(folder: Path) -> list[Path]:
    """List the series of a folder and of the folders in it, as paths for :func:`read_dicom`."""
    folders = [folder, *(entry for entry in sorted(folder.rglob("*")) if entry.is_dir())]
    return [entry for entry in folders if is_dicom_folder(entry)]


def series_files(path: Path) -> list[Path]:
    """List the files of a series in the order of its slices."""
    return [Path(file) for file in _series_files(path)]


def read_dicom_header(path: Path) -> Header:
    """Tell shape, place and voxel type of a series (see :func:`read_dicom`)."""
    raw = read_dicom(path)
    d, h, w = raw.array.shape[1:]
    return Header(raw.array.shape[0], Grid((d, h, w), raw.affine), raw.array.dtype)


def read_dicom(folder: Path, *, quantity: str = "stored", scratch: Path | None = None) -> RawImage:
    """Read the one series of a folder, rescale slope and intercept applied.

    Args:
        folder: a folder, or ``folder#N`` for one series of several.
        quantity: ``"stored"`` or, for PET, ``"suv"``.
        scratch: a folder where the voxels are decoded into a memory-mapped file.

    Raises:
        InputError: no series or several, slices missing or doubled, unreadable or colour pixels.
    """
    files = _series_files(folder)
    try:
        image = sitk.ReadImage(files if len(files) > 1 else files[0])
        raw = raw_from_sitk(image)
        if len(files) == 1:
            return raw
        positions, normal = _slice_positions(files, folder)
    except RuntimeError as error:
        raise InputError(f"{folder}: GDCM cannot read the series: {itk_reason(error)}") from None
    _check_gaps(positions @ normal, folder)
    affine = raw.affine.copy()
    # the step from slice to slice as it was scanned: a tilted gantry gives a sheared grid, which ITK would hide
    affine[:3, 0] = LPS_TO_RAS[:3, :3] @ (positions[-1] - positions[0]) / (len(files) - 1)
    affine[:3, 3] = LPS_TO_RAS[:3, :3] @ positions[0]
    return RawImage(raw.array, affine)


def _series_files(folder: Path) -> tuple[str, ...]:
    series = [
        sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    ]
    if not series:
        raise InputError(f"{folder}: no DICOM series found; give a folder that holds the .dcm files of one series")
    if len(series) > 1:
        sizes = ", ".join(str(size) for size in sorted((len(files) for files in series), reverse=True))
        raise InputError(
            f"{folder}: {len(series)} DICOM series in one folder (of {sizes} files); put each in a folder of its own"
        )
    return tuple(series[0])


def _slice_positions(files: tuple[str, ...], folder: Path) -> tuple[Array, Array]:
    """Return the slices' positions (n, 3) in LPS millimetres, in the files' order, and the slice normal (3,)."""
    reader = sitk.ImageFileReader()
    positions, orientations = [], []
    for file in files:
        reader.SetFileName(file)
        reader.ReadImageInformation()
        if not (reader.HasMetaDataKey(_POSITION) and reader.HasMetaDataKey(_ORIENTATION)):
            raise InputError(f"{folder}: a slice has no Image Position or Image Orientation (Patient); is it a scout?")
        positions.append([float(number) for number in reader.GetMetaData(_POSITION).split("\\")])
        orientations.append([float(number) for number in reader.GetMetaData(_ORIENTATION).split("\\")])
    if np.ptp(orientations, axis=0).max() > 1e-3:
        raise InputError(f"{folder}: the slices of the series are not parallel; split it into one folder a direction")
    return np.array(positions), np.cross(orientations[0][:3], orientations[0][3:])


def _check_gaps(depths_mm: Array, folder: Path) -> None:
    gaps = np.abs(np.diff(depths_mm))
    typical = float(np.median(gaps))
    if gaps.min() < 0.01 * max(typical, 1e-6):
        raise InputError(f"{folder}: several slices lie at the same place; the folder holds more than one volume")
    if np.abs(gaps - typical).max() > _GAP_TOLERANCE * typical + 0.01:
        raise InputError(
            f"{folder}: uneven slice gaps, {gaps.min():.3f} to {gaps.max():.3f} mm among {len(depths_mm)} slices: "
            "slices are missing or of several series"
        )
