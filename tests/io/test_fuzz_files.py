"""Mutated files of every format but DICOM: an InputError or the true volume, or what the format itself cannot check.

What cannot be checked is excused by the place of the mutation, never by the result: bytes of uncompressed voxels, and
the values of header fields of which another value is as good a header (a text header has no checksum).
"""

from __future__ import annotations

import re
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medi3d import io
from medi3d.errors import InputError
from medi3d.io.nifti import MAX_SHIFT, MAX_TURN
from medi3d.volume import Volume

MUTATIONS = 140
SECONDS, PEAK_BYTES = 10, 8_000_000
SHAPE = (4, 5, 6)
AFFINE = np.array([[0.0, 0.1, -0.8, 5], [0.1, 0.9, 0, -6], [2.5, 0, 0.1, 7], [0, 0, 0, 1]])


def voxels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 4, SHAPE).astype("int16")


def write_nifti(path: Path, kind: type = nib.Nifti1Image, order: str = "<") -> None:
    affine = AFFINE[:, [2, 1, 0, 3]]
    image = kind(voxels().T.astype(f"{order}i2"), affine, header=kind.header_class(endianness=order))
    image.set_data_dtype(f"{order}i2")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    # a header whose two forms agree only roughly would hide small changes
    image.set_sform(image.get_qform(), 1)
    image.to_filename(path)


def write_itk(path: Path, compress: bool = False) -> None:
    image = sitk.GetImageFromArray(voxels())
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-5.0, 6.0, 7.0))
    image.SetDirection((0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(path), compress)


Range = tuple[int, int]


def nothing(content: bytes) -> list[Range]:
    return []


def everything(content: bytes) -> list[Range]:
    return [(0, len(content))]


def values_of(*names: str) -> Callable[[bytes], list[Range]]:
    """Give the lines of a text header that hold these fields, from the separator to the next line."""

    def find(content: bytes) -> list[Range]:
        return [
            found.span(1)
            for name in names
            for found in re.finditer(rf"(?m)^{name}( ?[:=][^\n]*\n)".encode(), content[:1000])
        ]

    return find


def last(count: int) -> Callable[[bytes], list[Range]]:
    return lambda content: [(len(content) - count, len(content))]


def fixed(*ranges: Range) -> Callable[[bytes], list[Range]]:
    return lambda content: list(ranges)


NRRD_FIELDS = values_of("type", "sizes", "space", "space directions", "kinds", "endian", "space origin")
META_FIELDS = values_of(
    "BinaryDataByteOrderMSB", "TransformMatrix", "Offset", "ElementSpacing", "DimSize", "ElementType"
)
NUM_BYTES = voxels().nbytes
# NIfTI voxels are excused with the four bytes before them, which only announce extensions.
# Fields: dimensions of the same product; int16 or uint16; intensity scaling (and slice codes, which no one reads)
NIFTI_FIELDS = fixed((40, 56), (70, 72), (112, 123))
NIFTI2_FIELDS = fixed((12, 14), (16, 80), (176, 192))


@dataclass(frozen=True)
class Case:
    """A file to write, one of its files to mutate, and the places where a change cannot be noticed."""

    name: str
    write: Callable[[Path], None]
    mutated: str
    excused_header: Callable[[bytes], list[Range]] = nothing
    excused_voxels: Callable[[bytes], list[Range]] = nothing
    edges: tuple[int, ...] = ()
    """Places between two fields that vouch for each other: a change across one alters both, and is excused."""


CASES = {
    "nii": Case("a.nii", write_nifti, "a.nii", NIFTI_FIELDS, last(NUM_BYTES + 4), (256,)),
    "nii big-endian": Case(
        "a.nii", lambda p: write_nifti(p, order=">"), "a.nii", NIFTI_FIELDS, last(NUM_BYTES + 4), (256,)
    ),
    "nii.gz": Case("a.nii.gz", write_nifti, "a.nii.gz"),
    "nifti2": Case(
        "a.nii", lambda p: write_nifti(p, nib.Nifti2Image), "a.nii", NIFTI2_FIELDS, last(NUM_BYTES + 4), (352,)
    ),
    "nifti2.gz": Case("a.nii.gz", lambda p: write_nifti(p, nib.Nifti2Image), "a.nii.gz"),
    "hdr of a pair": Case("a.hdr", lambda p: write_nifti(p, nib.Nifti1Pair), "a.hdr", NIFTI_FIELDS, edges=(256,)),
    "img of a pair": Case("a.hdr", lambda p: write_nifti(p, nib.Nifti1Pair), "a.img", nothing, everything),
    "nrrd raw": Case("a.nrrd", write_itk, "a.nrrd", NRRD_FIELDS, last(NUM_BYTES)),
    "nrrd gzip": Case("a.nrrd", lambda p: write_itk(p, True), "a.nrrd", NRRD_FIELDS),
    "nhdr": Case("a.nhdr", write_itk, "a.nhdr", NRRD_FIELDS),
    "raw of a nhdr": Case("a.nhdr", write_itk, "a.raw", nothing, everything),
    "raw.gz of a nhdr": Case("a.nhdr", lambda p: write_itk(p, True), "a.raw.gz"),
    "mha raw": Case("a.mha", write_itk, "a.mha", META_FIELDS, last(NUM_BYTES)),
    "mha zlib": Case("a.mha", lambda p: write_itk(p, True), "a.mha", META_FIELDS),
    "mhd": Case("a.mhd", write_itk, "a.mhd", META_FIELDS),
    "raw of a mhd": Case("a.mhd", write_itk, "a.raw", nothing, everything),
    "zraw of a mhd": Case("a.mhd", lambda p: write_itk(p, True), "a.zraw"),
}

Mutation = tuple[bytes, Range]
"""The new content, and the range of the old one that it replaces."""


def flip_bit(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    return replace(content, at, at + 1, bytes([content[at] ^ (1 << int(rng.integers(8)))]))


def cut(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    return replace(content, at, len(content), b"")


def insert(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    return replace(content, at, at, rng.bytes(int(rng.integers(1, 20))))


def remove(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    return replace(content, at, min(at + int(rng.integers(1, 20)), len(content)), b"")


def swap_bytes(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    at = min(at, len(content) - 2)
    return replace(content, at, at + 2, content[at : at + 2][::-1])


def put_text(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    words = (b"none", b"-1", b"1e30", b"nan", b"99999999999", b"../../x", b"\n\n", b"LIST", b"%d 1 2 0", b"0")
    word = words[int(rng.integers(len(words)))]
    return replace(content, at, at + len(word), word)


def put_zeros(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    stop = min(at + int(rng.integers(1, 9)), len(content))
    return replace(content, at, stop, bytes(stop - at))


def put_number(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    """Overwrite an aligned field of two, four or eight bytes with a telling number."""
    numbers = ("<i2", -1), ("<i2", 0), ("<i2", 32767), ("<f4", np.nan), ("<f4", np.inf), ("<f4", 1e9), ("<i8", 2**40)
    dtype, number = numbers[int(rng.integers(len(numbers)))]
    field = np.array([number], dtype=dtype).tobytes()
    at = at // len(field) * len(field)
    return replace(content, at, at + len(field), field)


def double(content: bytes, at: int, rng: np.random.Generator) -> Mutation:
    """Repeat everything from a place on."""
    return replace(content, len(content), len(content), content[at:])


MUTATORS = (flip_bit, flip_bit, flip_bit, cut, insert, remove, swap_bytes, put_text, put_zeros, put_number, double)


def replace(content: bytes, start: int, stop: int, new: bytes) -> Mutation:
    return content[:start] + new + content[stop:], (start, min(stop, len(content)))


def mutations(content: bytes, seed: int) -> Iterator[Mutation]:
    """Half of the mutations fall into the header, the first few hundred bytes."""
    rng = np.random.default_rng(seed)
    for number in range(MUTATIONS):
        limit = min(len(content), 500) if number % 2 else len(content)
        yield MUTATORS[number % len(MUTATORS)](content, int(rng.integers(limit)), rng)


def touches_only(changed: Range, excused: list[Range]) -> bool:
    return any(start <= changed[0] and changed[1] <= stop for start, stop in excused)


@contextmanager
def within_limits() -> Iterator[None]:
    """Fail where reading takes long, or more memory than a few copies of a file of a few hundred bytes."""

    def stop(signum: int, frame: object) -> None:
        raise AssertionError("reading hangs")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    tracemalloc.reset_peak()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES, "reading takes too much memory"


def read(function: Callable[[], Volume]) -> Volume | None:
    with within_limits():
        try:
            return function()
        except InputError as error:
            message = str(error)
    assert "\n" not in message
    return None


def is_true(volume: Volume, truth: Volume) -> bool:
    same_voxels = volume.array.shape == truth.array.shape and np.array_equal(volume.array, truth.array)
    return same_voxels and volume.grid.is_close(truth.grid, tolerance=MAX_SHIFT + 2 * max(SHAPE) * MAX_TURN)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("name", list(CASES))
def test_a_mutated_file_is_refused_or_right(tmp_path: Path, traced: None, name: str) -> None:
    case = CASES[name]
    path, target = tmp_path / case.name, tmp_path / case.mutated
    case.write(path)
    content = target.read_bytes()
    image, label = io.read_volume(path), io.read_label_map(path)
    headers, payload = case.excused_header(content), case.excused_voxels(content)
    accepted = 0
    for number, (mutated, changed) in enumerate(mutations(content, seed=list(CASES).index(name))):
        target.write_bytes(mutated)
        where = f"{name}, mutation {number} at {changed}"
        for read_one, truth in ((io.read_volume, image), (io.read_label_map, label)):
            volume = read(lambda read_one=read_one: read_one(path))
            if volume is None:
                continue
            accepted += 1
            with within_limits():
                header = io.read_header(path)
            assert (header.channels, *header.grid.shape) == volume.array.shape, where
            if is_true(volume, truth) or touches_only(changed, headers):
                continue
            if any(changed[0] < edge < changed[1] for edge in case.edges):
                continue
            assert len(mutated) == len(content), where
            assert touches_only(changed, payload), where
            assert np.array_equal(volume.affine, truth.affine), where
    assert accepted < 2 * MUTATIONS - 20, f"{name}: few mutations are noticed; is the test at fault?"


def test_there_are_enough_mutations() -> None:
    assert MUTATIONS * len(CASES) >= 1500


@pytest.mark.parametrize("name", ["nii", "nii.gz", "nrrd gzip", "mha zlib"])
def test_mutated_files_are_refused_alike_when_mapped(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = tmp_path / case.name
    case.write(path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    tracemalloc.start()
    for mutated, _ in list(mutations(path.read_bytes(), seed=99))[:40]:
        path.write_bytes(mutated)
        in_memory, mapped = read(lambda: io.read_volume(path)), read(lambda: io.read_volume(path, scratch=scratch))
        assert (in_memory is None) == (mapped is None)
        if in_memory is not None and mapped is not None:
            assert np.array_equal(in_memory.array, mapped.array)
    tracemalloc.stop()
    assert not list(scratch.iterdir())
