"""Damage DICOM files in many ways and judge what the reader makes of them; run as a program by test_fuzz_dicom.py.

    python dicom_fuzzing.py ENCODING COUNT FOLDER

prints, as JSON, how often each outcome came: ``refused``, ``right``, ``excused`` (other voxels or another place, where
the format holds nothing to check it by), and a list of what went wrong. A crash of a decoder ends the program.
"""

from __future__ import annotations

import io
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from dicom_writing import draw_slices, make_enhanced, save, write_series
from pydicom.uid import ImplicitVRLittleEndian
from test_io_dicom_pixels import compress

from medi3d.errors import InputError
from medi3d.io import dicom
from medi3d.io.raw import RawImage

SLICE_VALUES = {"RescaleSlope", "RescaleIntercept", "PixelData"}
"""A slice may have values of its own: nothing tells that these were changed, and only that slice may differ."""

PLACE = {"ImagePositionPatient", "ImageOrientationPatient"}
"""May be changed by what passes for rounding."""

SHARED_VALUES = {
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "PixelData",
}
"""A multi-frame file says these once; nothing else in it tells that they were changed."""


def flip_bit(content: bytes, rng: random.Random) -> tuple[bytes, int | None]:
    place = rng.randrange(len(content))
    damaged = bytearray(content)
    damaged[place] ^= 1 << rng.randrange(8)
    return bytes(damaged), place


def flip_header_bit(content: bytes, rng: random.Random) -> tuple[bytes, int | None]:
    place = rng.randrange(128, min(len(content), 1400))
    damaged = bytearray(content)
    damaged[place] ^= 1 << rng.randrange(8)
    return bytes(damaged), place


def overwrite(content: bytes, rng: random.Random) -> tuple[bytes, int | None]:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(1) + content[place + 1 :], place


def overwrite_many(content: bytes, rng: random.Random) -> tuple[bytes, int | None]:
    place, size = rng.randrange(len(content)), rng.randrange(2, 16)
    return content[:place] + rng.randbytes(size) + content[place + size :], None


def cut(content: bytes, rng: random.Random) -> tuple[bytes, int | None]:
    return content[: rng.randrange(len(content))], None


def cut_out(content: bytes, rng: random.Random) -> tuple[bytes, int | None]:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.randrange(1, 40) :], None


def insert(content: bytes, rng: random.Random) -> tuple[bytes, int | None]:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randrange(1, 40)) + content[place:], None


def drop_element(content: bytes, rng: random.Random) -> tuple[bytes, int | None]:
    dataset = pydicom.dcmread(io.BytesIO(content))
    del dataset[rng.choice(list(dataset.keys()))]
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue(), None


MUTATIONS: list[Callable[[bytes, random.Random], tuple[bytes, int | None]]] = [
    flip_bit, flip_header_bit, overwrite, overwrite_many, cut, cut_out, insert, drop_element,
]  # fmt: skip


def element_at(content: bytes, place: int) -> str:
    """Name the element whose value holds a byte of an undamaged file."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    starts = {}
    for tag in dataset:
        raw = dataset.get_item(tag.tag) if hasattr(tag, "tag") else tag
        start = getattr(raw, "value_tell", None) or getattr(raw, "file_tell", None)
        starts[tag.keyword] = start or 0
    before = {keyword: start for keyword, start in starts.items() if start <= place}
    return max(before, key=lambda keyword: before[keyword], default="")


def excused(raw: RawImage, whole: RawImage, keyword: str, slice_index: int | None) -> bool:
    """Tell whether the format holds nothing by which the change could have been noticed."""
    if raw.array.shape != whole.array.shape:
        return False
    same_place = np.array_equal(raw.affine, whole.affine)
    differs = np.flatnonzero((raw.array[0] != whole.array[0]).any(axis=(1, 2)))
    if keyword == "PixelData" and not (same_place and np.ptp(differs) <= 1):  # a few bytes may straddle two frames
        return False
    if slice_index is None:
        return keyword in SHARED_VALUES
    if keyword in PLACE:
        corners = np.array([[d, h, w, 1] for d in (0, len(whole.array[0]) - 1) for h in (0, 40) for w in (0, 30)]).T
        return not len(differs) and float(np.abs((raw.affine - whole.affine) @ corners).max()) < 0.2
    return keyword in SLICE_VALUES and same_place and set(differs) <= {slice_index}


def write_base(folder: Path, encoding: str) -> None:
    stored = draw_slices(5, 40, 30)
    if encoding.startswith("frames_"):
        path = save(make_enhanced(stored), folder / "s" / "a.dcm")
        if encoding != "frames_plain":
            compress(path, encoding.removeprefix("frames_"))
        return
    write_series(folder / "s", stored)
    for path in (folder / "s").iterdir():
        if encoding == "implicit":
            dataset = pydicom.dcmread(path)
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            dataset.save_as(path, implicit_vr=True, little_endian=True)
        elif encoding != "plain":
            compress(path, encoding)


def fuzz(encoding: str, count: int, folder: Path) -> dict[str, object]:
    write_base(folder, encoding)
    series = folder / "s"
    whole = dicom.read_dicom(series)
    paths = sorted(series.iterdir())
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number in range(count):
        rng = random.Random(f"{encoding} {number}")
        mutate, path = MUTATIONS[number % len(MUTATIONS)], rng.choice(paths)
        content = path.read_bytes()
        damaged, place = mutate(content, rng)
        path.write_bytes(damaged)
        label = f"{encoding} {number}: {mutate.__name__} of {path.name} at {place}"
        try:
            raw = dicom.read_dicom(series)
        except InputError:
            outcomes["refused"] += 1
            continue
        except Exception as error:
            wrong.append(f"{label}: {type(error).__name__}: {error}")
            continue
        finally:
            path.write_bytes(content)
        if np.array_equal(raw.array, whole.array) and np.array_equal(raw.affine, whole.affine):
            outcomes["right"] += 1
            continue
        keyword = "?" if place is None else element_at(content, place)
        index = len(paths) - 1 - paths.index(path) if len(paths) > 1 else None
        if place is None:
            keyword = changed_element(content, damaged)
        if excused(raw, whole, keyword, index):
            outcomes["excused"] += 1
        else:
            wrong.append(f"{label}: {keyword}, {raw.array.shape} {raw.array.dtype}")
    return {"outcomes": outcomes, "wrong": wrong}


def changed_element(content: bytes, damaged: bytes) -> str:
    """Name the element of a damage of several bytes, if it is all in one value and shifts nothing."""
    if len(content) != len(damaged):
        return "?"
    places = [place for place, (old, new) in enumerate(zip(content, damaged, strict=True)) if old != new]
    names = {element_at(content, place) for place in places}
    return names.pop() if len(names) == 1 else "?"


if __name__ == "__main__":
    print(json.dumps(fuzz(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
