"""Image files by suffix: a table of formats, and the checks that every image or label map passes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medi3d.errors import InputError
from medi3d.io.dicom import is_dicom, list_series, read_dicom, read_dicom_header, series_files
from medi3d.io.metaimage import open_metaimage
from medi3d.io.nifti import list_nifti_files, open_nifti, write_nifti
from medi3d.io.nrrd import open_nrrd
from medi3d.io.raw import Header, RawImage
from medi3d.io.streams import is_folder, open_file
from medi3d.io.values import check_finite, to_label_array
from medi3d.io.voxels import ImageFile
from medi3d.types import Array, PathLike
from medi3d.volume import LabelMap, Volume

FORMATS: dict[str, Callable[[Path], ImageFile]] = {
    ".nii": open_nifti,
    ".nii.gz": open_nifti,
    ".hdr": open_nifti,
    ".hdr.gz": open_nifti,
    ".img": open_nifti,
    ".img.gz": open_nifti,
    ".nrrd": open_nrrd,
    ".nhdr": open_nrrd,
    ".mha": open_metaimage,
    ".mhd": open_metaimage,
}
"""Suffix → what reads and checks a file's header; a DICOM series is :mod:`medi3d.io.dicom`'s."""

_BODIES = (".img", ".img.gz")
"""Read when they are named, but listed under their headers."""

_LISTERS: dict[str | None, Callable[[Path], tuple[Path, ...]]] = {
    suffix: list_nifti_files for suffix, opener in FORMATS.items() if opener is open_nifti
}
"""Suffix → what tells an image's files without its header."""

WRITERS: dict[str, Callable[[Volume, Path], None]] = {".nii": write_nifti, ".nii.gz": write_nifti}


@dataclass(frozen=True)
class _DicomSeries:
    """A DICOM series, with what an :class:`ImageFile` has."""

    path: Path

    @property
    def header(self) -> Header:
        return read_dicom_header(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(series_files(self.path))


def image_suffix(path: Path) -> str | None:
    """Return the suffix by which a file's name makes it an image, or ``None``."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(FORMATS, key=len, reverse=True) if name.endswith(suffix)), None)


def is_image(path: Path) -> bool:
    """Tell whether a path is an image file, or a folder of DICOM files; hidden ones are not.

    A link that leads nowhere counts where its name is an image's, so that reading it says what is wrong.
    """
    if path.name.startswith("."):
        return False
    if is_folder(path):
        return is_dicom(path)
    return image_suffix(path) not in (None, *_BODIES) and os.path.lexists(path)


def case_name(path: PathLike) -> str:
    """Return a file's name without the image suffix, a folder's name as it is.

    Example:
        >>> case_name("images/liver_12_0000.nii.gz")
        'liver_12_0000'
    """
    name = Path(path).name
    suffix = image_suffix(Path(path))
    return name[: -len(suffix)] if suffix else name


def image_files(path: PathLike) -> list[Path]:
    """List the images that a path stands for.

    Args:
        path: an image file; a DICOM series; or a folder of images, of DICOM series, or of folders of DICOM series.

    Returns:
        Paths for :func:`read_volume`, sorted by name; one for each DICOM series.

    Raises:
        InputError: there is no such path, or no image in it.
    """
    path = Path(path)
    if not is_folder(path):
        if image_suffix(path) is not None or not is_dicom(path):
            open_file(path).close()
        return [path]
    if is_dicom(path):
        return list_series(path)
    try:
        entries = list(path.iterdir())
    except OSError as error:
        raise InputError(f"{path}: the folder cannot be listed ({error.strerror})") from None
    found = [entry for entry in entries if not is_folder(entry) and is_image(entry)]
    found += list_series(path)
    if not found:
        raise InputError(f"{path}: no image in it; expected {', '.join(FORMATS)} files or folders of DICOM series")
    return sorted(found)


def read_header(path: PathLike) -> Header:
    """Tell what a file holds without its voxels; what :func:`read_volume` can refuse by the header is refused here.

    Raises:
        InputError: as :func:`read_volume`.
    """
    return _open(Path(path)).header


def source_files(path: PathLike) -> list[Path]:
    """List every file whose bytes make up an image: header and data files, or the slices of a DICOM series.

    Raises:
        InputError: as :func:`read_header`, but that headers are read only where they name other files.
    """
    path = Path(path)
    suffix = image_suffix(path)
    if suffix in _LISTERS and not is_folder(path):
        return list(_LISTERS[suffix](path))
    return list(_open(path).files)


def read_volume(
    path: PathLike,
    *,
    dtype: npt.DTypeLike | None = np.float32,
    channels: int | None = None,
    frame: int | None = None,
    quantity: str = "stored",
    scratch: PathLike | None = None,
) -> Volume:
    """Read an image file or a DICOM series, on its own grid and in its own axis order.

    Args:
        path: a file of :data:`FORMATS`, or a DICOM file, folder, or ``folder#N``.
        dtype: type of the voxels; ``None`` keeps the file's own, and makes no copy.
        channels: number of channels C that is expected. Without it, C must be 1: a fourth axis may as well be time.
        frame: the entry of the fourth axis to take, as a volume of one channel.
        quantity: ``"stored"``; ``"suv"`` for PET in DICOM.
        scratch: a folder; voxels are memory-mapped, in place or in a file there that has no name, so that memory does
            not depend on the size of the file. The file must not be changed while the volume is in use.

    Returns:
        A volume ``(C, D, H, W)``; stored intensity scaling is applied.

    Raises:
        InputError: no such file, a format that is not known, a damaged file, another number of channels, voxels that
            are NaN or infinite.
    """
    path = Path(path)
    raw = _read_raw(path, quantity=quantity, scratch=scratch)
    array = raw.array if frame is None else _take_frame(raw.array, frame, path)
    expected = channels or 1
    if array.shape[0] != expected:
        raise InputError(f"{path}: expected {_plural(expected)} in the file, got {array.shape[0]} (its fourth axis)")
    check_finite(array, path)
    if dtype is not None and np.dtype(dtype) != array.dtype:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype=dtype)
        check_finite(array, path)
    return Volume(array, raw.affine)


def read_label_map(path: PathLike, *, frame: int | None = None, scratch: PathLike | None = None) -> LabelMap:
    """Read a label map; whole numbers stored as floats are taken, interpolated ones refused.

    Args:
        path: as for :func:`read_volume`.
        frame: the entry of the fourth axis to take.
        scratch: as for :func:`read_volume`.

    Returns:
        A label map ``(1, D, H, W)``, uint8 where the values fit, else int32.

    Raises:
        InputError: as :func:`read_volume`, or values that are not whole numbers.
    """
    path = Path(path)
    raw = _read_raw(path, quantity="stored", scratch=scratch)
    array = raw.array if frame is None else _take_frame(raw.array, frame, path)
    if array.shape[0] != 1:
        raise InputError(f"{path}: a label map has one value a voxel, got {_plural(array.shape[0])}")
    labels = to_label_array(array, path, scratch=None if scratch is None else Path(scratch))
    return LabelMap(labels, raw.affine)


def write_volume(volume: Volume, path: PathLike) -> None:
    """Write a volume on its own grid as ``.nii`` or ``.nii.gz``; the file appears whole or not at all.

    Raises:
        InputError: another suffix, or values that the file's type cannot hold.
    """
    path = Path(path)
    suffix = image_suffix(path)
    if suffix not in WRITERS:
        raise InputError(f"{path}: cannot write this format; name the file {' or '.join(WRITERS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[suffix](volume, path)


def write_label_map(label: LabelMap, path: PathLike) -> None:
    """Write a label map on its own grid, see :func:`write_volume`."""
    write_volume(label, path)


def _open(path: Path) -> ImageFile | _DicomSeries:
    suffix = image_suffix(path)
    if suffix is not None and not is_folder(path):
        return FORMATS[suffix](path)
    if is_dicom(path):
        return _DicomSeries(path)
    if is_folder(path):
        raise InputError(f"{path}: a folder without DICOM files; expected an image file or a DICOM series")
    open_file(path).close()
    raise InputError(f"{path}: not a known image format; expected {', '.join(FORMATS)} or a DICOM series")


def _read_raw(path: Path, *, quantity: str, scratch: PathLike | None) -> RawImage:
    opened = _open(path)
    folder = None if scratch is None else Path(scratch)
    if isinstance(opened, _DicomSeries):
        return read_dicom(path, quantity=quantity, scratch=folder)
    if quantity != "stored":
        raise InputError(f"{path}: only DICOM holds what {quantity!r} is computed from; give the PET series as DICOM")
    return opened.read(folder)


def _take_frame(array: Array, frame: int, path: Path) -> Array:
    if not 0 <= frame < array.shape[0]:
        raise InputError(f"{path}: frame {frame} of {array.shape[0]}: there is no such frame (they are counted from 0)")
    return array[frame : frame + 1]


def _plural(channels: int) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"
