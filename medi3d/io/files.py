"""Image files by suffix: a table of readers, and the checks that every image or label map passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from medi3d.errors import InputError
from medi3d.io.dicom import is_dicom_file, is_dicom_folder, read_dicom
from medi3d.io.itk import read_itk
from medi3d.io.nifti import read_nifti, write_nifti
from medi3d.io.raw import RawImage
from medi3d.types import Array, PathLike
from medi3d.volume import LabelMap, Volume

V = TypeVar("V", bound=Volume)

READERS: dict[str, Callable[[Path], RawImage]] = {
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".nrrd": read_itk,
    ".mha": read_itk,
    ".mhd": read_itk,
}
"""Suffix → reader; a folder of DICOM files is read by :func:`medi3d.io.dicom.read_dicom`."""

WRITERS: dict[str, Callable[[Volume, Path], None]] = {".nii": write_nifti, ".nii.gz": write_nifti}


def image_suffix(path: Path) -> str | None:
    """Return the suffix by which a file's name makes it an image, or ``None``."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(READERS, key=len, reverse=True) if name.endswith(suffix)), None)


def is_image(path: Path) -> bool:
    """Tell whether a path is an image file that can be read, or a folder of DICOM files; hidden ones are not."""
    if path.name.startswith("."):
        return False
    return (path.is_file() and image_suffix(path) is not None) or is_dicom_folder(path)


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
        path: an image file; a folder of DICOM files (one image); or a folder of images and of DICOM folders.

    Returns:
        Paths for :func:`read_volume`, sorted by name.

    Raises:
        InputError: there is no such path, or no image in it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file() and is_dicom_file(path):
        raise InputError(f"{path}: a single DICOM file; give the folder that holds its series: {path.parent}")
    if path.is_file() or is_dicom_folder(path):
        return [path]
    found = [entry for entry in sorted(path.iterdir()) if is_image(entry)]
    if not found:
        raise InputError(f"{path}: no image in it; expected {', '.join(READERS)} files or folders of DICOM series")
    return found


def read_volume(path: PathLike, *, dtype: npt.DTypeLike = np.float32, channels: int | None = None) -> Volume:
    """Read an image file or a folder with one DICOM series, on its own grid and in its own axis order.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha``, ``.mhd``, or a folder of DICOM files.
        dtype: type of the voxels.
        channels: number of channels C that is expected. Without it, C must be 1: a fourth axis may as well be time.

    Returns:
        A volume ``(C, D, H, W)``; stored intensity scaling is applied.

    Raises:
        InputError: no such file, a format that is not known, a damaged file, another number of channels, voxels that
            are NaN or infinite.
    """
    path = Path(path)
    raw = _read_raw(path)
    expected = channels or 1
    if raw.array.shape[0] != expected:
        raise InputError(
            f"{path}: expected {_plural(expected)} in the file, got {raw.array.shape[0]} (its fourth axis)"
        )
    array = np.ascontiguousarray(raw.array, dtype=dtype)
    _check_finite(array, path)
    return _on_grid(Volume, array, raw, path)


def read_label_map(path: PathLike) -> LabelMap:
    """Read a label map; whole numbers stored as floats are taken, interpolated ones refused.

    Returns:
        A label map ``(1, D, H, W)``, uint8 where the values fit, else int32.

    Raises:
        InputError: as :func:`read_volume`, or values that are not whole numbers.
    """
    path = Path(path)
    raw = _read_raw(path)
    if raw.array.shape[0] != 1:
        raise InputError(f"{path}: a label map has one value a voxel, got {_plural(raw.array.shape[0])}")
    _check_finite(raw.array, path)
    if raw.array.dtype.kind == "f" and not np.array_equal(raw.array, np.rint(raw.array)):
        fractional = int(np.count_nonzero(raw.array != np.rint(raw.array)))
        raise InputError(
            f"{path}: {fractional} voxels of the label map are not whole numbers; was it resampled with interpolation?"
        )
    lowest, highest = float(raw.array.min()), float(raw.array.max())
    if lowest < -(2**31) or highest >= 2**31:
        raise InputError(f"{path}: label values from {lowest:.0f} to {highest:.0f} do not fit 32 bits")
    stored = np.uint8 if lowest >= 0 and highest <= 255 else np.int32
    return _on_grid(LabelMap, np.ascontiguousarray(raw.array, dtype=stored), raw, path)


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


def _read_raw(path: Path) -> RawImage:
    if is_dicom_folder(path):
        return read_dicom(path)
    if not path.is_file():
        kind = "a folder without DICOM files" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {kind}")
    suffix = image_suffix(path)
    if suffix is None:
        raise InputError(f"{path}: not a known image format; expected {', '.join(READERS)} or a folder of DICOM files")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    return READERS[suffix](path)


def _on_grid(kind: type[V], array: Array, raw: RawImage, path: Path) -> V:
    try:
        return kind(array, raw.affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _check_finite(array: Array, path: Path) -> None:
    if array.dtype.kind != "f":
        return
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise InputError(f"{path}: {bad} of {array.size} voxels are NaN or infinite; mend or leave out the case")


def _plural(channels: int) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"
