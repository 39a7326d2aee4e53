"""Text headers of NRRD and MetaImage: their numbers, and the data files that they name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from medi3d.errors import InputError
from medi3d.io.streams import Part, Stream, part_of

_MAX_HEADER_BYTES = 1 << 18
_MAX_FILES = 100_000
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*(e[-+]?[0-9]+)?|\.[0-9]+(e[-+]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
_PATTERN = re.compile(r"(?P<before>[^%]*)%(?P<zero>0?)(?P<width>[0-9]{0,2})d(?P<after>[^%\s]*)\s+(?P<range>[-+0-9\s]+)")


@dataclass
class TextHeader:
    """A text header as it is parsed.

    Args:
        path: the file that holds it.
        fields: name → value.
        following: lines after the field that announces a list of data files.
        size: bytes up to the voxels.
    """

    path: Path
    fields: dict[str, str] = field(default_factory=dict)
    following: list[str] = field(default_factory=list)
    size: int = 0


def read_text(path: Path) -> bytes:
    """Return the first bytes of a file, enough for any header.

    Raises:
        InputError: the file cannot be opened, or is empty.
    """
    with Stream(part_of(path), "raw") as stream:
        return stream.read(_MAX_HEADER_BYTES)


def lines_of(text: bytes) -> list[str]:
    """Return the lines of a header, in UTF-8, whichever way they end."""
    return [line.rstrip("\r") for line in text.decode("utf-8", errors="replace").split("\n")]


def parse_integers(text: str, field: str, path: Path) -> list[int]:
    """Read whole numbers between blanks.

    Raises:
        InputError: there are none, or something else is among them.
    """
    words = text.split()
    if not words or not all(_INTEGER.fullmatch(word) for word in words):
        raise InputError(f"{path}: damaged header: {field!r} must be whole numbers, got {text[:80]!r}")
    return [int(word) for word in words]


def parse_floats(text: str, field: str, path: Path) -> list[float]:
    """Read numbers between blanks, NaN and infinity among them."""
    words = text.split()
    if not words or not all(_NUMBER.fullmatch(word) for word in words):
        raise InputError(f"{path}: damaged header: {field!r} must be numbers, got {text[:80]!r}")
    return [float(word) for word in words]


def find_data_files(value: str, lines: list[str], path: Path) -> list[Path]:
    """Return the data files that a header names: one, a list, or a pattern with a range.

    Args:
        value: ``name``, ``LIST`` or ``name%03d.raw first last step``.
        lines: what follows in the header, the names of a ``LIST``.
        path: the header.

    Raises:
        InputError: no file is named, or one that does not lie in the header's folder or below it.
    """
    pattern = _PATTERN.fullmatch(value)
    if value.split()[:1] == ["LIST"]:
        names = [line for line in lines if line.strip()]
    elif pattern:
        names = _numbered(pattern, path)
    else:
        names = [value]
    if not names:
        raise InputError(f"{path}: damaged header: it names no data file")
    return [_beside(name.strip(), path) for name in names]


def parts_of(files: list[Path], *, skip: int, share: int | None) -> tuple[Part, ...]:
    """Return where the voxels lie in data files.

    Args:
        files: the data files.
        skip: bytes before the voxels; -1 for voxels at the end of the file.
        share: bytes of voxels of each file, for ``skip`` -1.
    """
    parts = []
    for file in files:
        whole = part_of(file)
        offset = max(whole.size - (share or 0), 0) if skip == -1 else skip
        parts.append(part_of(file, offset))
    return tuple(parts)


def _numbered(pattern: re.Match[str], path: Path) -> list[str]:
    numbers = parse_integers(pattern["range"], "data files", path)
    first, last, step = (*numbers, 0, 0)[:3] if len(numbers) in (3, 4) else (0, 0, 0)
    count = (last - first) // step + 1 if step else 0
    if not 1 <= count <= _MAX_FILES:
        raise InputError(f"{path}: damaged header: its data files are numbered {pattern['range'].strip()!r}")
    width = int(pattern["width"] or 0)
    fill = "0" if pattern["zero"] else " "
    return [
        f"{pattern['before']}{str(number).rjust(width, fill)}{pattern['after']}"
        for number in range(first, first + count * step, step)
    ]


def _beside(name: str, path: Path) -> Path:
    """Return the path of a data file; a header from elsewhere must not make medi3d read other folders."""
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in re.split(r"[/\\]", name)
    if outside or not name or not name.isprintable():
        raise InputError(
            f"{path}: its data file must lie beside it or below it, got {name[:80]!r}; move the file there and name it "
            "by its path from the header"
        )
    return path.parent / name
