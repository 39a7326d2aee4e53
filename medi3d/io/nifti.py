"""NIfTI-1 and NIfTI-2: ``.nii``, ``.nii.gz`` and ``.hdr`` + ``.img`` pairs, either of these gzipped.

The header is read here, not by nibabel, which mends what it finds wrong in one and goes on; and reading thousands of
headers is 20 times faster. Field by field: https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields. Written
files are nibabel's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medi3d.errors import InputError
from medi3d.io import atomic
from medi3d.io.raw import check_spacing, checked_grid, reverse_axes, scale_world
from medi3d.io.streams import Part, Stream, describe_content, is_there, open_file, part_of
from medi3d.io.voxels import ImageFile, Voxels
from medi3d.types import Array
from medi3d.volume import Affine, Grid, Volume

MAX_SHIFT = 0.05
"""Share of a voxel by which sform and qform may put the first voxel apart."""

MAX_TURN = 2e-3
"""By how much their axes may differ, a tenth of a degree: near half a turn a float32 quaternion is no better."""

MAX_STRETCH = 1e-4
"""Share by which their spacings may differ."""

_HALF_TURN = 3 * float(np.finfo(np.float32).eps)
"""A quaternion's square real part that is nearer to 0 is rounding, as in nibabel."""

_COMPRESSION_LEVEL = 2
_STORED_TYPES = {"bool": "uint8", "float16": "float32", "int64": "int32", "uint64": "uint32"}
"""NIfTI types that other programs do not read, and what is written in their place."""

_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Code of the unit of length → millimetres; unknown ones are taken for millimetres, as every program does."""

_BYTE_ORDERS: tuple[Literal["<"], Literal[">"]] = ("<", ">")

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_UNUSABLE_TYPES = {
    1: "single bits", 32: "complex numbers", 128: "RGB colours", 1536: "128-bit floats", 1792: "complex numbers",
    2048: "complex numbers", 2304: "RGBA colours",
}  # fmt: skip
_COLOUR_INTENTS = {2003: "RGB colours", 2004: "RGBA colours"}


def _fields(size: int, rows: dict[str, tuple[int, str]]) -> np.dtype[Any]:
    offsets, formats = zip(*rows.values(), strict=True)
    layout = {"names": list(rows), "formats": list(formats), "offsets": list(offsets), "itemsize": size}
    dtype: np.dtype[Any] = np.dtype(layout)  # type: ignore[call-overload]  # numpy's stub knows literal keys only
    return dtype


@dataclass(frozen=True)
class _Version:
    fields: np.dtype[Any]
    magic_single: bytes
    magic_pair: bytes


_VERSIONS = {
    348: _Version(
        _fields(
            348,
            {
                "dim": (40, "8i2"), "intent_code": (68, "i2"), "datatype": (70, "i2"), "bitpix": (72, "i2"),
                "pixdim": (76, "8f4"), "vox_offset": (108, "f4"), "scl_slope": (112, "f4"), "scl_inter": (116, "f4"),
                "xyzt_units": (123, "u1"), "qform_code": (252, "i2"), "sform_code": (254, "i2"),
                "quatern": (256, "3f4"), "qoffset": (268, "3f4"), "srow": (280, "(3,4)f4"), "magic": (344, "S4"),
            },
        ),
        b"n+1",
        b"ni1",
    ),
    540: _Version(
        _fields(
            540,
            {
                "magic": (4, "S8"), "datatype": (12, "i2"), "bitpix": (14, "i2"), "dim": (16, "8i8"),
                "pixdim": (104, "8f8"), "vox_offset": (168, "i8"), "scl_slope": (176, "f8"), "scl_inter": (184, "f8"),
                "qform_code": (344, "i4"), "sform_code": (348, "i4"), "quatern": (352, "3f8"),
                "qoffset": (376, "3f8"), "srow": (400, "(3,4)f8"), "xyzt_units": (500, "i4"),
                "intent_code": (504, "i4"),
            },
        ),
        b"n+2\0\r\n\x1a\n",
        b"ni2\0\r\n\x1a\n",
    ),
}  # fmt: skip
"""Size of the header, its first field, which tells version and byte order → its layout."""


def open_nifti(path: Path) -> ImageFile:
    """Read and check the header of a NIfTI file; the image of a pair is opened by either of its files.

    Raises:
        InputError: no NIfTI file, a damaged one, one with a twin beside it, no grid of three dimensions with known
            orientation, sform and qform that disagree, colour or complex voxels.
    """
    header_path, data_path = _find_files(path)
    first = _first_bytes(header_path)
    fields, is_single = _parse(first, header_path)
    if is_single != (header_path == data_path):
        kind, files = ("a single file", ".nii") if is_single else ("the header of a pair", ".hdr and .img")
        raise InputError(f"{header_path}: its header says that it is {kind}; name it {files}")
    spatial, rest = _spatial_and_rest(fields, header_path)
    slope, intercept = _scaling(fields, header_path)
    part = part_of(data_path)
    voxels = Voxels(
        parts=(part,),
        encoding=_encoding(data_path),
        stored=_stored_type(fields, header_path),
        shape=(*([rest] if rest > 1 else []), *spatial[::-1]),
        channel_axis=0 if rest > 1 else None,
        skip=_offset(fields, is_single, part, header_path),
        slope=slope,
        intercept=intercept,
    )
    grid = _grid(fields, voxels.spatial_shape, header_path)
    return ImageFile(grid, voxels, (header_path,) if is_single else (header_path, data_path))


def list_nifti_files(path: Path) -> tuple[Path, ...]:
    """Return the one file or the pair of files of an image; their headers are not read.

    Raises:
        InputError: a file is missing or cannot be opened, or has a twin beside it.
    """
    files = _find_files(path)
    for file in set(files):
        open_file(file).close()
    return files[:1] if files[0] == files[1] else files


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as NIfTI-1, with several channels as a fourth axis; gzipped where the name ends in ``.gz``."""
    import nibabel as nib
    from isal import igzip

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


def _find_files(path: Path) -> tuple[Path, Path]:
    """Return the files of header and voxels, after checking that no other image goes by the same name."""
    suffix = next(
        suffix for suffix in (".nii", ".hdr", ".img") if path.name.lower().removesuffix(".gz").endswith(suffix)
    )
    stem = path.name[: path.name.lower().rindex(suffix)]
    in_case = str.upper if path.suffix.isupper() else str.lower

    def find(*suffixes: str) -> list[Path]:
        ends = [in_case(suffix + end) for suffix in suffixes for end in ("", ".gz")]
        return [path.with_name(stem + end) for end in ends if is_there(path.with_name(stem + end))]

    images, bodies = find(".nii", ".hdr"), find(".img") if suffix != ".nii" else []
    for twins in (images, bodies):
        if len(twins) > 1:
            raise InputError(
                f"{path}: {' and '.join(twin.name for twin in twins)} lie side by side, and programs read the voxels "
                "of one under the header of the other; keep one of them"
            )
    if suffix == ".nii":
        return path, path
    for found, what in ((images, ".hdr"), (bodies, ".img")):
        if not found:
            raise InputError(
                f"{path}: expected {stem}{what} or {stem}{what}.gz beside it, there is none; copy both files"
            )
    return images[0], bodies[0]


def _encoding(path: Path) -> str:
    return "gzip" if path.name.lower().endswith(".gz") else "raw"


def _first_bytes(path: Path) -> bytes:
    with Stream(part_of(path), _encoding(path)) as stream:
        return stream.read(max(_VERSIONS))


def _parse(first: bytes, path: Path) -> tuple[np.void, bool]:
    """Return the header's fields, and whether the voxels lie in the same file."""
    for order in _BYTE_ORDERS:
        version = _VERSIONS.get(int(np.frombuffer(first[:4].ljust(4, b"\0"), f"{order}i4")[0]))
        if version is None:
            continue
        if len(first) < version.fields.itemsize:
            raise InputError(f"{path}: cut short: {len(first)} bytes are less than a NIfTI header")
        fields = np.frombuffer(first, version.fields.newbyteorder(order), count=1)[0]
        magic = bytes(fields["magic"])
        if magic not in (version.magic_single, version.magic_pair):
            raise InputError(
                f"{path}: no NIfTI mark in its header: an Analyze file, of unknown orientation, or a damaged one; "
                "convert it to .nii.gz"
            )
        return fields, magic == version.magic_single
    raise InputError(f"{path}: not a NIfTI file ({describe_content(first[:64])})")


def _spatial_and_rest(fields: np.void, path: Path) -> tuple[tuple[int, int, int], int]:
    """Return the numbers of voxels along i, j and k, and along the one other axis there may be."""
    dim = [int(n) for n in fields["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise InputError(f"{path}: unreadable NIfTI header (dimensions {dim})")
    shape = dim[1 : dim[0] + 1]
    if len(shape) < 3:
        raise InputError(f"{path}: a {len(shape)}-D image ({' x '.join(map(str, shape))}); a volume is needed")
    rest = [n for n in shape[3:] if n > 1]
    if len(rest) > 1:
        raise InputError(
            f"{path}: a {len(shape)}-D image ({' x '.join(map(str, shape))}); at most one axis beyond the third may be "
            "longer than 1: save each time point or component as a file"
        )
    return (shape[0], shape[1], shape[2]), math.prod(rest)


def _stored_type(fields: np.void, path: Path) -> np.dtype[Any]:
    code, bits, intent = int(fields["datatype"]), int(fields["bitpix"]), int(fields["intent_code"])
    unusable = _UNUSABLE_TYPES.get(code) or _COLOUR_INTENTS.get(intent)
    if unusable:
        raise InputError(f"{path}: voxels must be real numbers, got {unusable}; convert the file")
    if code not in _TYPES:
        raise InputError(f"{path}: unreadable NIfTI header (data type {code})")
    stored = np.dtype(_TYPES[code]).newbyteorder(fields.dtype["datatype"].byteorder)
    if bits != 8 * stored.itemsize:
        raise InputError(
            f"{path}: damaged NIfTI header: {bits} bits a voxel (bitpix), but its data type is {stored.name}"
        )
    return stored


def _scaling(fields: np.void, path: Path) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0:  # the standard's way to say that there is none
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(
            f"{path}: the intensity scaling is not finite (scl_slope {slope}, scl_inter {intercept}); set scl_slope to "
            "0 where there is none"
        )
    return slope, intercept


def _offset(fields: np.void, is_single: bool, part: Part, path: Path) -> int:
    """Return the byte at which the voxels begin."""
    offset, header_size = float(fields["vox_offset"]), fields.dtype.itemsize
    lowest = header_size + 4 if is_single else 0
    if not (math.isfinite(offset) and offset.is_integer() and lowest <= offset < 2**40):
        raise InputError(f"{path}: unreadable NIfTI header (voxels begin at byte {offset}; expected {lowest} or more)")
    return int(offset)


def _grid(fields: np.void, shape: tuple[int, int, int], path: Path) -> Grid:
    """Return the grid that sform and qform agree on, or the one of the two that is set."""
    unit_code = int(fields["xyzt_units"]) & 7
    if unit_code not in _MILLIMETRES:
        raise InputError(f"{path}: unreadable NIfTI header (unit of length {unit_code}; expected 0 to 3)")
    unit = _MILLIMETRES[unit_code]
    codes = {name: int(fields[f"{name}_code"]) for name in ("sform", "qform")}
    if not all(0 <= code <= 5 for code in codes.values()):
        raise InputError(f"{path}: unreadable NIfTI header (sform and qform code {codes['sform']}, {codes['qform']})")
    x, y, z = (float(spacing) * unit for spacing in fields["pixdim"][1:4])
    check_spacing((z, y, x), path, what="header (pixdim)")
    affines = {"sform": _sform, "qform": _qform}
    grids = {
        name: checked_grid(
            shape, scale_world(reverse_axes(affines[name](fields, path)), unit, unit, unit), path, what=name
        )
        for name, code in codes.items()
        if code > 0
    }
    if not grids:
        raise InputError(
            f"{path}: neither sform nor qform is set, so left, right, front and back are not known (programs guess "
            "differently); set the right affine, for example with nibabel's image.set_sform(affine, code=1)"
        )
    if len(grids) == 2:
        _check_agreement(grids["sform"], grids["qform"], codes, path)
    elif "sform" in grids:
        _check_pixdim(grids["sform"], (z, y, x), path)
    return next(iter(grids.values()))


def _sform(fields: np.void, path: Path) -> Affine:
    return np.vstack([fields["srow"], [0, 0, 0, 1]]).astype(np.float64)


def _qform(fields: np.void, path: Path) -> Affine:
    """Return the affine of the quaternion (method 2 of the standard)."""
    b, c, d = (float(number) for number in fields["quatern"])
    rest = 1.0 - (b * b + c * c + d * d)
    mirror = float(fields["pixdim"][0])
    if not rest > -1e-5 or mirror not in (-1.0, 0.0, 1.0):
        raise InputError(
            f"{path}: damaged qform: quaternion ({b:.6g}, {c:.6g}, {d:.6g}), pixdim[0] {mirror:g}; write the "
            "header again"
        )
    a = math.sqrt(rest) if rest > _HALF_TURN else 0.0
    length = math.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = a / length, b / length, c / length, d / length
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    spacing = fields["pixdim"][1:4].astype(np.float64) * [1, 1, -1 if mirror < 0 else 1]
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = fields["qoffset"]
    return affine


def _check_agreement(sform: Grid, qform: Grid, codes: dict[str, int], path: Path) -> None:
    shift = np.linalg.norm(sform.affine[:3, 3] - qform.affine[:3, 3]) / min(sform.spacing_mm)
    turn = np.abs(sform.direction - qform.direction).max()
    if (
        shift <= MAX_SHIFT
        and turn <= MAX_TURN
        and np.allclose(sform.spacing_mm, qform.spacing_mm, rtol=MAX_STRETCH, atol=0)
    ):
        return
    raise InputError(
        f"{path}: sform (code {codes['sform']}: {_describe(sform)}) and qform (code {codes['qform']}: "
        f"{_describe(qform)}) disagree, and programs choose differently; find out which one is right and set the code "
        "of the other to 0, for example with nibabel's image.set_qform(None, code=0)"
    )


def _check_pixdim(sform: Grid, pixdim_mm: tuple[float, float, float], path: Path) -> None:
    """Where the sform is alone, nibabel takes the spacing from it and ITK from pixdim: they must be the same."""
    if sform.is_orthogonal and not np.allclose(sform.spacing_mm, pixdim_mm, rtol=1e-2, atol=0):
        raise InputError(
            f"{path}: the spacing of the sform, {_numbers(sform.spacing_mm)} mm (D, H, W), and of the header (pixdim), "
            f"{_numbers(pixdim_mm)} mm, disagree, and programs choose differently; write the right one into both"
        )


def _describe(grid: Grid) -> str:
    return f"{_numbers(grid.spacing_mm)} mm, {grid.orientation}, origin {_numbers(grid.origin_mm)}"


def _numbers(values: tuple[float, float, float]) -> str:
    return " x ".join(f"{value:.5g}" for value in values)


def _cast_exactly(array: Array, stored: str, path: Path) -> Array:
    cast = array.astype(stored, copy=False)
    if cast.dtype != array.dtype and not np.array_equal(cast, array):
        raise InputError(f"{path}: {array.dtype} values do not fit {stored}, the type NIfTI readers know")
    return cast
