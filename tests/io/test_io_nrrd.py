from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from volume_writing import SHAPE, itk_image, ramp

from medi3d import io
from medi3d.errors import InputError

FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "5 4 3",
    "space directions": "(0,0.5,0) (0.75,0,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(1,2,-3)",
}


def write(path: Path, changes: dict[str, str | None] | None = None, body: bytes | None = None, end: str = "\n") -> Path:
    fields = {name: value for name, value in {**FIELDS, **(changes or {})}.items() if value is not None}
    lines = ["NRRD0005", "# a comment", *(f"{name}: {value}" for name, value in fields.items()), "key:=value", "", ""]
    path.write_bytes(end.join(lines).encode() + (ramp().tobytes() if body is None else body))
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "f4", "f8"]
)
def test_voxels_and_places_are_those_that_itk_wrote(tmp_path: Path, suffix: str, compressed: bool, dtype: str) -> None:
    image = itk_image(ramp(dtype=dtype))
    path = tmp_path / f"ä b{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    volume, theirs = io.read_volume(path, dtype=None), io.from_sitk(sitk.ReadImage(str(path)))
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, theirs.array)
    np.testing.assert_allclose(volume.affine, theirs.affine, atol=1e-12)
    header = io.read_header(path)
    assert (header.channels, header.grid.shape, header.dtype) == (1, SHAPE, np.dtype(dtype))
    assert len(io.source_files(path)) == (2 if suffix == ".nhdr" else 1)


def test_vectors_become_channels(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(ramp((*SHAPE, 3), "f4"), vector=True), str(tmp_path / "a.nrrd"))
    volume = io.read_volume(tmp_path / "a.nrrd", channels=3)
    np.testing.assert_array_equal(volume.array, np.moveaxis(ramp((*SHAPE, 3), "f4"), -1, 0))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_the_list_axis_may_stand_anywhere(tmp_path: Path, axis: int) -> None:
    """``axis`` counts the fastest first, as the header does."""
    channels = ramp((2, *SHAPE))
    sizes, directions = ["5", "4", "3"], FIELDS["space directions"].split()
    kinds = ["space"] * 3
    for entries, entry in ((sizes, "2"), (directions, "none"), (kinds, "list")):
        entries.insert(axis, entry)
    changes = {"dimension": "4", "sizes": " ".join(sizes), "kinds": " ".join(kinds)}
    changes["space directions"] = " ".join(directions)
    path = write(tmp_path / "a.nrrd", changes, np.moveaxis(channels, 0, 3 - axis).tobytes())
    volume = io.read_volume(path, channels=2)
    np.testing.assert_array_equal(volume.array, channels)
    np.testing.assert_array_equal(io.read_volume(path, frame=1, scratch=tmp_path).array, channels[1:])
    np.testing.assert_allclose(volume.affine, io.read_volume(write(tmp_path / "b.nrrd")).affine)


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("raw", bytes), ("gzip", gzip.compress), ("gz", gzip.compress), ("bzip2", bz2.compress), ("bz2", bz2.compress)],
)
@pytest.mark.parametrize(("endian", "order"), [("little", "<"), ("big", ">")])
def test_encodings_and_byte_orders(
    tmp_path: Path, encoding: str, encode: Callable[[bytes], bytes], endian: str, order: str
) -> None:
    body = encode(ramp(dtype=f"{order}i2").tobytes())
    path = write(tmp_path / "a.nrrd", {"encoding": encoding, "endian": endian}, body)
    for scratch in (None, tmp_path):
        volume = io.read_volume(path, dtype=None, scratch=scratch)
        np.testing.assert_array_equal(volume.array[0], ramp())
        assert volume.array.dtype == np.int16
        assert volume.array.dtype.isnative


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_numbers_as_text(tmp_path: Path, dtype: str) -> None:
    kind = {"i2": "short", "f4": "float"}[dtype]
    text = "\n".join(str(number) for number in ramp(dtype=dtype).ravel()).encode()
    path = write(tmp_path / "a.nrrd", {"encoding": "ascii", "endian": None, "type": kind}, text)
    np.testing.assert_array_equal(io.read_volume(path).array[0], ramp())
    for changed, message in (
        (text + b" 5", "60 numbers, the text holds 61"),
        (text.replace(b"\n7", b"\nx"), "not a list"),
    ):
        with pytest.raises(InputError, match=message):
            io.read_volume(write(tmp_path / "b.nrrd", {"encoding": "text", "type": kind}, changed))
    with pytest.raises(InputError, match="the text cannot hold them"):
        io.read_header(write(tmp_path / "b.nrrd", {"encoding": "text", "type": kind}, b"1 2 3"))


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
    ],
)
def test_anatomical_spaces(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    affine = io.read_volume(write(tmp_path / "a.nrrd", {"space": space})).affine
    np.testing.assert_allclose(affine[:3, 3], np.array([1, 2, -3]) * signs)
    np.testing.assert_allclose(affine[:3, 0], np.array([0, 0, 3]) * signs)  # D
    np.testing.assert_allclose(affine[:3, 1], np.array([0.75, 0, 0]) * signs)  # H
    np.testing.assert_allclose(affine[:3, 2], np.array([0, 0.5, 0]) * signs)  # W


def test_units_and_line_ends(tmp_path: Path) -> None:
    changes = {"space units": '"um" "um" "um"', "space directions": "(500,0,0) (0,750,0) (0,0,3000)"}
    volume = io.read_volume(write(tmp_path / "a.nrrd", changes, end="\r\n"))
    assert volume.spacing_mm == pytest.approx((3, 0.75, 0.5))
    np.testing.assert_array_equal(volume.array[0], ramp())


# --- detached


def test_data_in_several_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for number, piece in enumerate(ramp()):
        (tmp_path / "below" / f"s{number:02d}.gz").write_bytes(gzip.compress(piece.tobytes()))
    names = [f"below/s{number:02d}.gz" for number in range(3)]
    changes = {"encoding": "gzip", "data file": "LIST\n" + "\n".join(names)}
    listed = write(tmp_path / "a.nhdr", changes, b"")
    listed.write_bytes(listed.read_bytes().replace(b"key:=value\n\n", b""))
    numbered = write(tmp_path / "b.nhdr", {"encoding": "gzip", "data file": "below/s%02d.gz 0 2 1"}, b"")
    backwards = write(tmp_path / "c.nhdr", {"encoding": "gzip", "data file": "below/s%02d.gz 2 0 -1 2"}, b"")
    np.testing.assert_array_equal(io.read_volume(listed).array[0], ramp())
    np.testing.assert_array_equal(io.read_volume(numbered, scratch=tmp_path).array[0], ramp())
    np.testing.assert_array_equal(io.read_volume(backwards).array[0], ramp()[::-1])
    assert io.source_files(numbered) == [numbered, *(tmp_path / name for name in names)]
    for field, message in (("below/s%02d.gz 0 1 1", "cut short|goes on"), ("below/s%02d.gz 0 2 0", "numbered '0 2 0'")):
        with pytest.raises(InputError, match=message):
            io.read_volume(write(tmp_path / "d.nhdr", {"encoding": "gzip", "data file": field}, b""))


def test_voxels_at_the_end_of_a_file_or_behind_a_header_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"mystery" + ramp().tobytes())
    for skip in ("-1", "7"):
        path = write(tmp_path / "a.nhdr", {"data file": "a.raw", "byte skip": skip}, b"")
        np.testing.assert_array_equal(io.read_volume(path).array[0], ramp())
    with pytest.raises(InputError, match=r"a\.raw: too long: the header tells of 126 bytes, the file holds 127"):
        io.read_header(write(tmp_path / "b.nhdr", {"data file": "a.raw", "byteskip": "6"}, b""))
    with pytest.raises(InputError, match="'line skip' 1 and 'byte skip' 0 are not read"):
        io.read_header(write(tmp_path / "b.nhdr", {"data file": "a.raw", "line skip": "1"}, b""))


@pytest.mark.parametrize("name", ["../a.raw", "/etc/passwd", "x/../../a.raw", "C:\\a.raw", "..\\a.raw", "a\x07.raw"])
def test_a_header_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"a\.nhdr: its data file must lie beside it or below it"):
        io.read_header(write(tmp_path / "a.nhdr", {"data file": name}, b""))


def test_a_data_file_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nhdr", {"data file": "a.raw"}, b"")
    with pytest.raises(InputError, match=r"a\.raw: no such file"):
        io.read_header(path)
    (tmp_path / "a.raw").write_bytes(ramp().tobytes()[:-3])
    with pytest.raises(InputError, match=r"a\.raw: cut short: the header tells of 120 bytes, the file holds 117"):
        io.read_header(path)


# --- refused by the header


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": None}, "expected the space left-posterior-superior.* got 'none'"),
        ({"space": "scanner-xyz"}, "got 'scanner-xyz': left, right, front and back are not known"),
        ({"space": None, "space dimension": "3"}, "got 'none'"),
        ({"space origin": None}, "it has no 'space origin' field"),
        ({"space origin": "(1,nan,2)"}, "the space of the header holds NaN or infinity"),
        ({"space origin": "(1,2)"}, r"must be vectors like \(1,0,0\), got '\(1,2\)'"),
        ({"space origin": "(1,2,1e9)"}, "over 100 m from its origin"),
        ({"space directions": "(0,0,0) (0,1,0) (0,0,1)"}, "spacing of the space of the header is 1 x 1 x 0 mm"),
        ({"space directions": "(500,0,0) (0,1,0) (0,0,1)"}, "in another unit"),
        ({"space directions": "(1e300,0,0) (0,1,0) (0,0,1)"}, "in another unit"),
        ({"space directions": "(1,1,0) (0,1,1) (1,2,1)"}, "is singular, its axes lie in a plane"),
        ({"space directions": "(1,0,0) (0,1,0)"}, "2 space directions for 3 axes"),
        ({"space directions": "(1,0,0) (0,1,0) none"}, "2 spatial axes among 5 x 4 x 3"),
        ({"space directions": None, "spacings": "1 1 1"}, "it has no 'space directions' field"),
        ({"space units": '"inch" "inch" "inch"'}, "space units must be one of mm"),
        ({"dimension": "4"}, "dimension 4, sizes"),
        ({"sizes": "5 4 3_0"}, "'sizes' must be whole numbers"),
        ({"sizes": "5 4 0"}, "sizes"),
        ({"sizes": "5 12 1"}, r"one slice \(5 x 12 x 1 voxels\)"),
        ({"sizes": "60 1", "dimension": "2"}, "a 2-D image"),
        ({"sizes": "5 4 999999999999"}, "cut short: the header tells of"),
        ({"sizes": "5 4 999999999999", "encoding": "gzip"}, "bytes of gzip cannot hold"),
        ({"type": "block"}, "must be real numbers, got the NRRD type 'block'"),
        ({"encoding": "hex"}, "the encoding 'hex' is not read"),
        ({"endian": None}, "it has no 'endian' field"),
        ({"endian": "middle"}, "endian 'middle'; expected little or big"),
        ({"kinds": "domain domain RGB-color"}, "kind 'rgb-color'"),
        ({"kinds": "domain domain"}, "2 kinds for 3 axes"),
        ({"spbce": "x"}, "line 12 is no field of the format"),
        ({"Type": "short"}, "a second one"),
    ],
)
def test_headers_that_cannot_be_right(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    path = write(tmp_path / "a.nrrd", changes)
    for read in (io.read_header, io.read_volume, io.read_label_map):
        with pytest.raises(InputError, match=rf"a\.nrrd: .*{message}"):
            read(path)


@pytest.mark.parametrize("kind", ["RGB-color", "RGBA-color", "HSV-color", "complex", "quaternion", "3D-matrix"])
def test_colours_complex_numbers_and_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    changes = {"dimension": "4", "sizes": "3 5 4 3", "kinds": f"{kind} domain domain domain"}
    changes["space directions"] = f"none {FIELDS['space directions']}"
    with pytest.raises(InputError, match=f"voxels must be real numbers, got an axis of the kind '{kind.lower()}'"):
        io.read_header(write(tmp_path / "a.nrrd", changes, ramp((3, *SHAPE)).tobytes()))


def test_two_axes_beside_the_spatial_three_are_refused(tmp_path: Path) -> None:
    changes = {"dimension": "5", "sizes": "2 5 4 3 2", "kinds": "list domain domain domain time"}
    changes["space directions"] = f"none {FIELDS['space directions']} none"
    with pytest.raises(InputError, match=r"a 5-D image.*at most one axis beside the spatial three"):
        io.read_header(write(tmp_path / "a.nrrd", changes, ramp((2, 2, *SHAPE)).tobytes()))


@pytest.mark.parametrize("compressed", [True, False])
def test_cut_and_continued_files_are_refused(tmp_path: Path, compressed: bool) -> None:
    sitk.WriteImage(itk_image(ramp()), str(tmp_path / "a.nrrd"), compressed)
    content = (tmp_path / "a.nrrd").read_bytes()
    for changed in (content[:-1], content[: len(content) - 40], content + b"x", content[:300]):
        (tmp_path / "b.nrrd").write_bytes(changed)
        with pytest.raises(InputError, match=r"b\.nrrd: (cut short|too long|damaged gzip|not a NRRD|.*cannot hold)"):
            io.read_volume(tmp_path / "b.nrrd")


def test_a_flipped_bit_in_gzip_is_noticed(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(ramp()), str(tmp_path / "a.nrrd"), True)
    content = (tmp_path / "a.nrrd").read_bytes()
    for position in range(content.index(b"\n\n") + 14, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 16
        (tmp_path / "a.nrrd").write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged gzip|cut short|goes on"):
            io.read_volume(tmp_path / "a.nrrd")
