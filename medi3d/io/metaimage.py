"""MetaImage: ``.mha``, and ``.mhd`` + data files, raw, text or zlib.

Read here, not by SimpleITK, which takes a missing position for 0 and a missing direction for LPS. The format:
https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from medi3d.errors import InputError
from medi3d.io.detached import TextHeader, find_data_files, lines_of, parse_floats, parse_integers, parts_of, read_text
from medi3d.io.raw import check_spacing, checked_grid, reverse_axes, scale_world
from medi3d.io.streams import describe_content
from medi3d.io.voxels import ImageFile, Voxels
from medi3d.volume import Affine

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
"""A ``long`` has four bytes in MetaImage, on every machine."""

_ALIASES = {
    "Rotation": "TransformMatrix", "Orientation": "TransformMatrix", "Position": "Offset", "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}  # fmt: skip
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_UNSCALED = {"ElementToIntensityFunctionSlope": 1.0, "ElementToIntensityFunctionOffset": 0.0}
_UNIT_TOLERANCE = 1e-3


class _Header(TextHeader):
    def required(self, name: str) -> str:
        if name not in self.fields:
            raise InputError(f"{self.path}: damaged MetaImage header: it has no {name}; programs would guess it")
        return self.fields[name]

    def integers(self, name: str) -> list[int]:
        return parse_integers(self.required(name), name, self.path)

    def floats(self, name: str, count: int) -> list[float]:
        numbers = parse_floats(self.required(name), name, self.path)
        if len(numbers) != count:
            raise InputError(
                f"{self.path}: damaged MetaImage header: {name} has {len(numbers)} numbers, expected {count}"
            )
        return numbers

    def boolean(self, name: str) -> bool:
        value = self.required(name)
        if value.lower() not in _BOOLEANS:
            raise InputError(f"{self.path}: damaged MetaImage header: {name} must be True or False, got {value[:80]!r}")
        return _BOOLEANS[value.lower()]


def open_metaimage(path: Path) -> ImageFile:
    """Read and check the header of a MetaImage file.

    Raises:
        InputError: no MetaImage file, a damaged one, data files elsewhere, no grid of three dimensions.
    """
    header = _read_header(path)
    sizes = header.integers("DimSize")
    (dimension, *_) = header.integers("NDims")
    shape = " x ".join(map(str, sizes))
    if dimension != len(sizes) or min(sizes) < 1:
        raise InputError(f"{path}: damaged MetaImage header: NDims {dimension}, DimSize {shape}")
    if dimension < 3:
        raise InputError(f"{path}: a {dimension}-D image ({shape}); a volume of three axes is needed")
    (components, *_) = parse_integers(
        header.fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels", path
    )
    rest = [n for n in (*sizes[3:], components) if n != 1]
    if len(rest) > 1 or components < 1:
        raise InputError(
            f"{path}: a {dimension}-D image ({shape}) of {components} components; at most one axis beside "
            "the spatial three may be longer than 1: save each time point or component as a file"
        )
    x, y, z = sizes[:3]
    stored_shape = (*rest, z, y, x) if components == 1 else (z, y, x, components)
    channel_axis = None if not rest else 0 if components == 1 else 3
    grid = checked_grid((z, y, x), _affine(header, dimension), path, what="geometry of the header")
    voxels = _voxels(header, stored_shape, channel_axis)
    files = tuple(dict.fromkeys([path, *(part.path for part in voxels.parts)]))
    return ImageFile(grid, voxels, files)


def _read_header(path: Path) -> _Header:
    content = read_text(path)
    if not content.lstrip().startswith((b"ObjectType", b"NDims", b"Comment")):
        raise InputError(f"{path}: not a MetaImage file ({describe_content(content[:64])})")
    header, position = _Header(path), 0
    while "ElementDataFile" not in header.fields:
        end = content.find(b"\n", position)
        line = content[position : end if end >= 0 else len(content)].decode("utf-8", errors="replace").strip()
        name, equals, value = line.partition("=")
        name = _ALIASES.get(name.strip(), name.strip())
        if (line and not equals) or name in header.fields or (end < 0 and name != "ElementDataFile"):
            raise InputError(f"{path}: damaged MetaImage header: at byte {position} is no field, or a second one")
        if line:
            header.fields[name] = value.strip()
        position = end + 1 if end >= 0 else len(content)
    header.size = position
    if header.fields["ElementDataFile"].split()[:1] == ["LIST"]:
        header.following = lines_of(content[position:])
    return header


def _affine(header: _Header, dimension: int) -> Affine:
    """Return the affine of the first three axes; the rows of the matrix are the directions of the axes, in LPS."""
    path = header.path
    matrix = np.reshape(header.floats("TransformMatrix", dimension**2), (dimension, dimension))
    spacing = header.floats("ElementSpacing", dimension)[:3]
    check_spacing((spacing[2], spacing[1], spacing[0]), path, what="header (ElementSpacing)")
    if matrix[:3, 3:].any() or matrix[3:, :3].any():
        raise InputError(f"{path}: the TransformMatrix mixes space with the fourth axis; such a grid cannot be read")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(matrix[:3, :3], axis=1)
    if np.isfinite(matrix).all() and np.abs(lengths - 1).max() > _UNIT_TOLERANCE:
        raise InputError(f"{path}: the rows of TransformMatrix must have length 1, got {lengths.round(4).tolist()}")
    affine = np.eye(4)
    affine[:3, :3] = matrix[:3, :3].T * spacing
    affine[:3, 3] = header.floats("Offset", dimension)[:3]
    return scale_world(reverse_axes(affine), -1.0, -1.0, 1.0)


def _voxels(header: _Header, shape: tuple[int, ...], channel_axis: int | None) -> Voxels:
    path, fields = header.path, header.fields
    for name, neutral in _UNSCALED.items():
        if parse_floats(fields.get(name, str(neutral)), name, path) != [neutral]:
            raise InputError(
                f"{path}: {name} is {fields[name]}, which programs ignore or apply; store the values scaled"
            )
    element_type = header.required("ElementType")
    if element_type not in _TYPES:
        raise InputError(
            f"{path}: voxels must be real numbers, got ElementType {element_type[:40]!r}; convert the file"
        )
    stored = np.dtype(_TYPES[element_type])
    is_binary = header.boolean("BinaryData") if "BinaryData" in fields else True
    if is_binary and stored.itemsize > 1:
        stored = stored.newbyteorder(">" if header.boolean("BinaryDataByteOrderMSB") else "<")
    is_compressed = "CompressedData" in fields and header.boolean("CompressedData")
    encoding = "zlib" if is_compressed else "raw" if is_binary else "ascii"
    (skip, *_) = parse_integers(fields.get("HeaderSize", "0"), "HeaderSize", path)
    if skip < -1 or (skip != 0 and (encoding != "raw" or fields["ElementDataFile"] == "LOCAL")):
        raise InputError(f"{path}: HeaderSize {skip} is not read here; write the data file without a header of its own")
    if fields["ElementDataFile"].upper() == "LOCAL":
        parts = parts_of([path], skip=header.size, share=None)
    else:
        files = find_data_files(fields["ElementDataFile"], header.following, path)
        parts = parts_of(files, skip=skip, share=math.prod(shape) * stored.itemsize // len(files))
    if is_compressed and "CompressedDataSize" in fields:
        (expected, *_) = header.integers("CompressedDataSize")
        found = sum(part.size for part in parts)
        if found != expected:
            raise InputError(
                f"{path}: {'cut short' if found < expected else 'too long'}: the header tells of {expected} "
                f"compressed bytes, there are {found}; fetch or write it again"
            )
    return Voxels(parts, encoding, stored, shape, channel_axis)
