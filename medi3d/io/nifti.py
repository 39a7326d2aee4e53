"""NIfTI-1 and NIfTI-2 files, plain or gzipped, through nibabel.

Gzip goes through isal, which checks the length and the checksum (SimpleITK and nibabel hand out the voxels of a damaged
file without a word), and the size is checked against the header before any voxel is read.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from medi3d.errors import InputError
from medi3d.io import atomic
from medi3d.io.raw import RawImage, reverse_axes
from medi3d.types import Array
from medi3d.volume import Volume

_MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_COMPRESSION_LEVEL = 2
_STORED_TYPES = {"bool": "uint8", "float16": "float32", "int64": "int32", "uint64": "uint32"}
"""NIfTI types that other programs do not read, and what is written in their place."""


def read_nifti(path: Path) -> RawImage:
    """Read a NIfTI file; axes beyond the third become channels.

    Raises:
        InputError: damaged gzip, file shorter than its header says, no NIfTI, colour or complex voxels.
    """
    image = _parse(_read_bytes(path), path)
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: voxels must be real numbers, got {image.get_data_dtype()}; convert the file")
    array = np.asanyarray(image.dataobj)
    spatial, rest = _spatial_and_rest(array.shape)
    # (i, j, k, ...) in Fortran order → (..., k, j, i) in C order: the same bytes
    array = array.reshape(*spatial, rest, order="F").transpose(3, 2, 1, 0)
    unit = _MILLIMETRES[image.header.get_xyzt_units()[0]]
    return RawImage(array, np.diag([unit, unit, unit, 1.0]) @ reverse_axes(image.affine))


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as NIfTI-1, with several channels as a fourth axis; gzipped where the name ends in ``.gz``."""
    stored = _STORED_TYPES.get(volume.array.dtype.name, volume.array.dtype.name)
    array = _cast_exactly(volume.array, stored, path).transpose(3, 2, 1, 0)  # (C, D, H, W) → (i, j, k, c)
    image = nib.Nifti1Image(array[..., 0] if volume.num_channels == 1 else array, reverse_axes(volume.affine))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    # a quaternion holds no shear, so a sheared grid (gantry tilt) is told by the sform alone
    image.set_qform(image.affine, code=1 if volume.grid.is_orthogonal else 0)
    content = image.to_bytes()
    gzipped = path.name.lower().endswith(".gz")
    atomic.write_bytes(path, igzip.compress(content, _COMPRESSION_LEVEL, mtime=0) if gzipped else content)


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if not path.name.lower().endswith(".gz"):
        return content
    try:
        return bytes(igzip.decompress(content))
    except (OSError, EOFError, igzip_lib.IsalError) as error:  # type: ignore[misc]  # isal's stub has an instance
        raise InputError(f"{path}: damaged gzip ({error}); fetch or write the file again") from None


def _parse(content: bytes, path: Path) -> nib.Nifti1Image:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        header_size = kind.header_class.sizeof_hdr
        if len(content) >= header_size and kind.header_class.may_contain_header(content[:header_size]):
            break
    else:
        raise InputError(f"{path}: not a NIfTI file (no NIfTI header in its first bytes)")
    try:
        image = kind.from_bytes(content)
        needed = int(image.dataobj.offset) + _data_bytes(image)
    except (HeaderDataError, ImageFileError, ValueError, OSError) as error:
        raise InputError(f"{path}: unreadable NIfTI header ({str(error).splitlines()[0]})") from None
    if min(image.shape) < 1:
        raise InputError(f"{path}: unreadable NIfTI header (dimensions {image.shape})")
    if len(content) < needed:
        raise InputError(f"{path}: cut short: the header tells of {needed} bytes, the file holds {len(content)}")
    return image


def _data_bytes(image: nib.Nifti1Image) -> int:
    return int(np.prod(image.shape, dtype=np.int64)) * int(image.get_data_dtype().itemsize)


def _spatial_and_rest(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    padded = (*shape, 1, 1, 1)
    return (padded[0], padded[1], padded[2]), int(np.prod(shape[3:], dtype=np.int64))


def _cast_exactly(array: Array, stored: str, path: Path) -> Array:
    cast = array.astype(stored, copy=False)
    if cast.dtype != array.dtype and not np.array_equal(cast, array):
        raise InputError(f"{path}: {array.dtype} values do not fit {stored}, the type NIfTI readers know")
    return cast
