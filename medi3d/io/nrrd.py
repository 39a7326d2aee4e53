"""NRRD: attached (``.nrrd``) and detached (``.nhdr`` + data files), raw, text, gzip or bzip2.

Read here, not by SimpleITK, which takes every space that is not anatomical for LPS and every missing origin for 0.
The format: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from medi3d.errors import InputError
from medi3d.io.detached import TextHeader, find_data_files, lines_of, parse_floats, parse_integers, parts_of, read_text
from medi3d.io.raw import checked_grid, reverse_axes, scale_world
from medi3d.io.streams import describe_content
from medi3d.io.voxels import ImageFile, Voxels
from medi3d.volume import Affine

_MAGIC = re.compile(rb"NRRD000[1-6]\r?\n")

_TYPES = {
    name: dtype
    for dtype, names in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": (
            "longlong",
            "long long",
            "long long int",
            "signed long long",
            "signed long long int",
            "int64",
            "int64_t",
        ),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}
_ENCODINGS = {
    "raw": "raw", "txt": "ascii", "text": "ascii", "ascii": "ascii", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2",
    "bzip2": "bzip2",
}  # fmt: skip
_ENDIANS = {"little": "<", "big": ">"}

_SPACES = {
    "right-anterior-superior": (1.0, 1.0, 1.0), "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0), "las": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0), "lps": (-1.0, -1.0, 1.0),
}  # fmt: skip
"""Anatomical space → what turns its axes into RAS."""

_MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "cm": 10.0, "m": 1000.0}

_KNOWN_FIELDS = {
    "dimension", "type", "blocksize", "encoding", "endian", "content", "min", "max", "oldmin", "oldmax", "datafile",
    "lineskip", "byteskip", "number", "sampleunits", "space", "spacedimension", "spaceunits", "spaceorigin",
    "spacedirections", "measurementframe", "sizes", "spacings", "thicknesses", "axismins", "axismaxs", "centers",
    "centerings", "labels", "units", "kinds",
}  # fmt: skip
"""All fields of the format, without blanks: a field that is none of them is a damaged one."""

_SPATIAL_KINDS = {"domain", "space", "???", "none"}
_VALUE_KINDS = {
    "domain", "list", "time", "point", "vector", "covariant-vector", "normal", "scalar", "stub", "2-vector", "3-vector",
    "4-vector", "3-gradient", "3-normal", "???", "none",
}  # fmt: skip
"""Kinds of an axis without a direction, whose entries are taken for channels. The others are colours, tensors, ...."""


class _Header(TextHeader):
    def required(self, name: str) -> str:
        if name.replace(" ", "") not in self.fields:
            raise InputError(f"{self.path}: damaged NRRD header: it has no {name!r} field")
        return self.fields[name.replace(" ", "")]


def open_nrrd(path: Path) -> ImageFile:
    """Read and check the header of a NRRD file.

    Raises:
        InputError: no NRRD file, a damaged one, data files elsewhere, no grid of three dimensions in an anatomical
            space, colours, tensors or complex voxels.
    """
    header = _read_header(path)
    sizes = parse_integers(header.required("sizes"), "sizes", path)
    dimension = parse_integers(header.required("dimension"), "dimension", path)
    if dimension != [len(sizes)] or min(sizes) < 1:
        raise InputError(f"{path}: damaged NRRD header: dimension {dimension[0]}, sizes {sizes}")
    shape = " x ".join(map(str, sizes))
    if len(sizes) < 3:
        raise InputError(f"{path}: a {len(sizes)}-D image ({shape}); a volume of three spatial axes is needed")
    directions = _directions(header, len(sizes))
    spatial = [axis for axis, direction in enumerate(directions) if direction is not None]
    _check_kinds(header, len(sizes), spatial)
    if len(spatial) != 3:
        raise InputError(f"{path}: {len(spatial)} spatial axes among {shape}; a volume of three is needed")
    kept = [axis for axis in range(len(sizes)) if axis in spatial or sizes[axis] > 1]
    if len(kept) > 4:
        raise InputError(
            f"{path}: a {len(sizes)}-D image ({shape}); at most one axis beside the spatial "
            "three may be longer than 1: save each time point or component as a file"
        )
    slowest_first = kept[::-1]
    channel_axis = next((n for n, axis in enumerate(slowest_first) if axis not in spatial), None)
    voxels = _voxels(header, tuple(sizes[axis] for axis in slowest_first), channel_axis)
    grid = checked_grid(voxels.spatial_shape, _affine(header, directions), path, what="space of the header")
    files = tuple(dict.fromkeys([path, *(part.path for part in voxels.parts)]))
    return ImageFile(grid, voxels, files)


def _read_header(path: Path) -> _Header:
    content = read_text(path)
    if not _MAGIC.match(content):
        raise InputError(f"{path}: not a NRRD file ({describe_content(content[:64])})")
    end = re.search(rb"\r?\n\r?\n", content)
    text = content[: end.start()] if end else content
    header = _Header(path, size=end.end() if end else len(content))
    lines = lines_of(text)[1:]
    for number, line in enumerate(lines):
        if line.startswith("#") or ":=" in line or (not line and end is None):
            continue
        name, colon, value = line.partition(": ")
        name = name.strip().lower().replace(" ", "")
        name = {"centers": "centerings"}.get(name, name)
        if not colon or name not in _KNOWN_FIELDS or name in header.fields:
            raise InputError(
                f"{path}: damaged NRRD header: line {number + 2} is no field of the format, or a second one"
            )
        header.fields[name] = value.strip()
        if name == "datafile":
            header.following = lines[number + 1 :]
            if value.split()[:1] == ["LIST"]:
                break
    if end is None and "datafile" not in header.fields:
        raise InputError(f"{path}: cut short: its NRRD header does not end")
    return header


def _directions(header: _Header, dimension: int) -> list[list[float] | None]:
    """Return the step along each axis, in the header's space; ``None`` for an axis that is not spatial."""
    path = header.path
    space = header.fields.get("space", "").lower()
    if space not in _SPACES:
        raise InputError(
            f"{path}: expected the space left-posterior-superior, right-anterior-superior or left-anterior-superior, "
            f"got {space or 'none'!r}: left, right, front and back are not known (programs guess LPS); write the space "
            "into the header"
        )
    words = re.findall(r"none|\([^()]*\)|\S+", header.required("space directions"))
    directions = [None if word == "none" else _vector(word, "space directions", path) for word in words]
    if len(directions) != dimension:
        raise InputError(f"{path}: damaged NRRD header: {len(directions)} space directions for {dimension} axes")
    return directions


def _vector(text: str, name: str, path: Path) -> list[float]:
    inner = re.fullmatch(r"\s*\(([^()]*)\)\s*", text)
    numbers = parse_floats(inner[1].replace(",", " "), name, path) if inner else []
    if len(numbers) != 3 or (inner and inner[1].count(",") != 2):
        raise InputError(f"{path}: damaged NRRD header: {name!r} must be vectors like (1,0,0), got {text[:80]!r}")
    return numbers


def _check_kinds(header: _Header, dimension: int, spatial: list[int]) -> None:
    kinds = header.fields.get("kinds", "none " * dimension).lower().split()
    if len(kinds) != dimension:
        raise InputError(f"{header.path}: damaged NRRD header: {len(kinds)} kinds for {dimension} axes")
    for axis, kind in enumerate(kinds):
        if kind not in (_SPATIAL_KINDS if axis in spatial else _VALUE_KINDS):
            raise InputError(
                f"{header.path}: voxels must be real numbers, got an axis of the kind {kind!r}; convert the file"
            )


def _affine(header: _Header, directions: list[list[float] | None]) -> Affine:
    path = header.path
    units = re.findall(r'"([^"]*)"', header.fields.get("spaceunits", '"mm"'))
    unknown = [unit for unit in units if unit not in _MILLIMETRES]
    if unknown or len(set(units)) != 1:
        raise InputError(
            f"{path}: space units must be one of {', '.join(_MILLIMETRES)}, got {', '.join(units) or 'none'}"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.array([direction for direction in directions if direction is not None]).T
    affine[:3, 3] = _vector(header.required("space origin"), "space origin", path)
    unit = _MILLIMETRES[units[0]]
    return scale_world(reverse_axes(affine), *(unit * sign for sign in _SPACES[header.fields["space"].lower()]))


def _voxels(header: _Header, shape: tuple[int, ...], channel_axis: int | None) -> Voxels:
    path, fields = header.path, header.fields
    type_name, encoding = header.required("type").lower(), header.required("encoding").lower()
    if type_name not in _TYPES:
        raise InputError(f"{path}: voxels must be real numbers, got the NRRD type {type_name!r}; convert the file")
    if encoding not in _ENCODINGS:
        raise InputError(f"{path}: the encoding {encoding!r} is not read; write the file raw or gzip")
    stored = np.dtype(_TYPES[type_name])
    if stored.itemsize > 1 and _ENCODINGS[encoding] != "ascii":
        endian = header.required("endian").lower()
        if endian not in _ENDIANS:
            raise InputError(f"{path}: damaged NRRD header: endian {endian!r}; expected little or big")
        stored = np.dtype(_ENDIANS[endian] + _TYPES[type_name])
    skips = [parse_integers(fields.get(name, "0"), name, path)[0] for name in ("lineskip", "byteskip")]
    if skips[0] != 0 or skips[1] < -1 or (skips[1] != 0 and _ENCODINGS[encoding] != "raw"):
        raise InputError(
            f"{path}: 'line skip' {skips[0]} and 'byte skip' {skips[1]} are not read with the encoding {encoding}; "
            "write the data file without a header of its own"
        )
    if "datafile" in fields:
        files = find_data_files(fields["datafile"], header.following, path)
        parts = parts_of(files, skip=skips[1], share=math.prod(shape) * stored.itemsize // len(files))
    else:
        parts = parts_of([path], skip=header.size + max(skips[1], 0), share=None)
    return Voxels(parts, _ENCODINGS[encoding], stored, shape, channel_axis)
