"""Which DICOM files make up a series, and how each series is addressed.

A series is the files of one Series Instance UID in one folder; ``folder#N`` addresses it where a folder holds several.
N is the Series Number, or the rank by Series Number and file name where numbers are absent or not unique. A series
that was split over sister folders belongs to their parent, so that half of it is never taken for all.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medi3d.errors import InputError
from medi3d.io.dicom.frames import frames_of
from medi3d.io.dicom.geometry import stack_frames
from medi3d.io.dicom.opening import DicomFile, has_dicom_mark, open_dicom

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?s)(.*)#(\d+)")
_DIRECTORY_NAME = "DICOMDIR"
_DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
_OTHER_SUFFIXES = {".nii", ".gz", ".nrrd", ".mha", ".mhd", ".json", ".csv"}
"""Not looked into: a folder may hold thousands of such files."""

_SCOUT = "LOCALIZER"
"""Image Type value 3 of a scout (PS3.3 C.8.2.1.1.1)."""


@dataclass(frozen=True, eq=False)
class Series:
    """The image files of one series, in the order of their names."""

    folder: Path
    files: tuple[DicomFile, ...]

    @property
    def number(self) -> int | None:
        """Series Number, ``None`` where it is absent or negative."""
        number = self.files[0].tags.number("SeriesNumber")
        return None if number is None or number < 0 else int(number)

    @property
    def is_multiframe(self) -> bool:
        """Whether one of its files holds several frames, so that each file is a volume."""
        return any(file.num_frames > 1 for file in self.files)

    def describe(self) -> str:
        """Tell kind and size; nothing else of a header is fit for a message."""
        modality = re.sub("[^A-Z]", "", self.files[0].tags.text("Modality"))[:8] or "unknown modality"
        unit = "file" if self.is_multiframe else "slice"
        return f"{len(self.files)} {unit}{'' if len(self.files) == 1 else 's'} {modality}"


def split_address(path: Path) -> tuple[Path, int | None]:
    """Split ``folder#N``; a path that exists as it stands is no such address.

    Example:
        >>> split_address(Path("study#3"))
        (PosixPath('study'), 3)
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None or path.exists():
        return path, None
    return Path(found[1]), int(found[2])


def holds_dicom(folder: Path) -> bool:
    """Tell whether a folder itself holds DICOM files, or files that are named so."""
    try:
        return any(path.suffix.lower() in _DICOM_SUFFIXES or has_dicom_mark(path) for path in _candidates(folder))
    except InputError:
        return False


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that may be DICOM, sorted by name."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from None
    for path in (folder / name for name in names if not name.startswith(".") and name.upper() != _DIRECTORY_NAME):
        if path.suffix.lower() not in _OTHER_SUFFIXES and path.is_file():
            yield path


def _dicom_paths(folder: Path) -> list[Path]:
    """List the DICOM files that a folder itself holds, sorted by name.

    Raises:
        InputError: the folder cannot be listed, or a file is named as DICOM and bears no DICOM mark.
    """
    found = []
    for path in _candidates(folder):
        if has_dicom_mark(path):
            found.append(path)
        elif path.suffix.lower() in _DICOM_SUFFIXES:
            reason = "bears no DICOM mark" if os.access(path, os.R_OK) else "no permission to read it"
            raise InputError(f"{path}: named as a DICOM file, but {reason}; fetch it again or leave it out")
    return found


def series_of_folder(folder: Path) -> list[Series]:
    """Sort the image files that a folder itself holds into series; reports, plans and scouts are left out.

    Raises:
        InputError: a file cannot be read.
    """
    files = [open_dicom(path, str(path)) for path in _dicom_paths(folder)]
    images = [file for file in files if file.is_image]
    kept = [file for file in images if _SCOUT not in file.tags.texts("ImageType")[2:3]]
    if len(kept) < len(images):
        logger.info("%s: %d scout images left out", folder, len(images) - len(kept))
    groups: dict[str, list[DicomFile]] = defaultdict(list)
    for file in kept:
        groups[file.tags.text("SeriesInstanceUID")].append(file)
    return [Series(folder, tuple(_without_copies(group))) for group in groups.values()]


def _without_copies(files: Sequence[DicomFile]) -> Iterator[DicomFile]:
    """Leave out files that are copies, byte for byte, of another one: dropping them loses nothing.

    Raises:
        InputError: two files bear the same SOP Instance UID and differ.
    """
    seen: dict[str, DicomFile] = {}
    for file in files:
        instance = file.tags.text("SOPInstanceUID")
        first = seen.setdefault(instance, file) if instance else file
        if first is file:
            yield file
        elif first.path.read_bytes() != file.path.read_bytes():
            raise InputError(
                f"{file.name}: bears the SOP Instance UID of {first.path.name} and differs from it; keep one of them"
            )
        else:
            logger.info("%s: a copy of %s, left out", file.name, first.path.name)


def numbered(series: Sequence[Series]) -> dict[int, Series]:
    """Number the series of one folder."""
    numbers = [one.number for one in series]
    if None not in numbers and len(set(numbers)) == len(numbers):
        return dict(sorted((number, one) for number, one in zip(numbers, series, strict=True) if number is not None))
    ranked = sorted(series, key=lambda one: (one.number is None, one.number or 0, one.files[0].name))
    return dict(enumerate(ranked, start=1))


def find_series(path: Path) -> Series:
    """Find the series that a path stands for: a folder, ``folder#N``, or a multi-frame file.

    Raises:
        InputError: none, several, or a file that cannot be read.
    """
    folder, number = split_address(path)
    if folder.is_file():
        return Series(folder.parent, (open_dicom(folder, str(folder)),))
    if not folder.is_dir():
        raise InputError(f"{path}: no such file or folder")
    table = numbered(series_of_folder(folder) if number is None else _series_of_home(folder))
    if not table:
        raise InputError(f"{path}: no DICOM series found; give a folder that holds the .dcm files of one series")
    if number is None and len(table) == 1:
        return next(iter(table.values()))
    if number is not None and number in table:
        return table[number]
    listed = ", ".join(f"#{key}: {one.describe()}" for key, one in table.items())
    raise InputError(
        f"{path}: {len(table)} DICOM series in the folder ({listed}); name one of them, as in "
        f"{folder}#{next(iter(table))}"
    )


def list_series(folder: Path) -> list[Path]:
    """List the series in a folder and in the folders inside it, as paths for :func:`medi3d.io.dicom.read_dicom`.

    Args:
        folder: any folder; links to folders are followed once.

    Returns:
        Sorted paths: a folder that holds one series, ``folder#N`` for one of several, a file for each volume of a
        series of multi-frame files. A folder with a file that cannot be read is listed as it is, so that reading it
        tells what is wrong.
    """
    homes, unreadable = _sort_into_homes(folder)
    paths = list(unreadable)
    for home, series in homes.items():
        for number, one in numbered(series).items():
            if one.is_multiframe and len(one.files) > 1:
                paths += [file.path for file in one.files]
            elif len(series) == 1 and one.files[0].path.parent == home:
                paths.append(home)
            else:
                paths.append(Path(f"{home}#{number}"))
    return sorted(paths)


def _series_of_home(folder: Path) -> list[Series]:
    homes, unreadable = _sort_into_homes(folder)
    return series_of_folder(folder) if folder in unreadable else homes.get(folder, [])


def _sort_into_homes(folder: Path) -> tuple[dict[Path, list[Series]], list[Path]]:
    """Return the series of a tree by the folder that they belong to, and the folders with a file that is unreadable."""
    groups: dict[str, list[Series]] = defaultdict(list)
    unreadable = []
    for inner in _folders(folder):
        try:
            for one in series_of_folder(inner):
                groups[one.files[0].tags.text("SeriesInstanceUID")].append(one)
        except InputError:
            unreadable.append(inner)
    homes: dict[Path, list[Series]] = defaultdict(list)
    for parts in groups.values():
        for one in _joined(parts):
            homes[one.folder].append(one)
    return homes, unreadable


def _joined(parts: list[Series]) -> list[Series]:
    """Join the parts of a series that lie in several folders if together they are one even stack of slices."""
    files = tuple(file for part in parts for file in part.files)
    if len(parts) == 1 or any(part.is_multiframe for part in parts):
        return parts
    try:
        stack_frames([frame for file in files for frame in frames_of(file)], "")
    except InputError:
        return parts
    return [Series(Path(os.path.commonpath([part.folder for part in parts])), files)]


def _folders(top: Path) -> Iterator[Path]:
    """Yield a folder and all folders inside it; hidden ones are left out, links that lead in a circle are cut."""
    seen = set()
    for name, inner, _ in os.walk(top, followlinks=True):
        status = Path(name).stat()
        if (identity := (status.st_dev, status.st_ino)) in seen:
            inner.clear()
            continue
        seen.add(identity)
        inner[:] = sorted(entry for entry in inner if not entry.startswith("."))
        yield Path(name)
