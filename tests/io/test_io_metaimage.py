from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from volume_writing import SHAPE, itk_image, ramp

from medi3d import io
from medi3d.errors import InputError

FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 1 0 0 0 0 1",
    "Offset": "1 2 -3",
    "ElementSpacing": "0.5 0.75 3",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def write(path: Path, changes: dict[str, str | None] | None = None, body: bytes | None = None) -> Path:
    fields = {name: value for name, value in {**FIELDS, **(changes or {})}.items() if value is not None}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    header = "".join(f"{name} = {value}\n" for name, value in fields.items())
    path.write_bytes(header.encode() + (ramp().tobytes() if body is None else body))
    return path


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "f4", "f8"]
)
def test_voxels_and_places_are_those_that_itk_wrote(tmp_path: Path, suffix: str, compressed: bool, dtype: str) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(itk_image(ramp(dtype=dtype)), str(path), compressed)
    volume, theirs = io.read_volume(path, dtype=None), io.from_sitk(sitk.ReadImage(str(path)))
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, theirs.array)
    np.testing.assert_allclose(volume.affine, theirs.affine, atol=1e-12)
    header = io.read_header(path)
    assert (header.channels, header.grid.shape, header.dtype) == (1, SHAPE, np.dtype(dtype))
    names = {".mha": ["a.mha"], ".mhd": ["a.mhd", "a.zraw" if compressed else "a.raw"]}[suffix]
    assert [file.name for file in io.source_files(path)] == names


def test_components_become_channels(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(ramp((*SHAPE, 3), "f4"), vector=True), str(tmp_path / "a.mha"))
    volume = io.read_volume(tmp_path / "a.mha", channels=3)
    np.testing.assert_array_equal(volume.array, np.moveaxis(ramp((*SHAPE, 3), "f4"), -1, 0))
    with pytest.raises(InputError, match="expected 1 channel in the file, got 3"):
        io.read_volume(tmp_path / "a.mha")


def test_a_fourth_axis_gives_frames(tmp_path: Path) -> None:
    frames = ramp((2, *SHAPE))
    image = sitk.GetImageFromArray(frames, isVector=False)
    image.SetSpacing((0.5, 0.75, 3.0, 60.0))
    image.SetOrigin((1.0, 2.0, -3.0, 0.0))
    sitk.WriteImage(image, str(tmp_path / "a.mha"), True)
    assert io.read_header(tmp_path / "a.mha").channels == 2
    volume = io.read_volume(tmp_path / "a.mha", frame=1)
    np.testing.assert_array_equal(volume.array, frames[1:])
    assert volume.spacing_mm == (3.0, 0.75, 0.5)
    assert volume.grid.origin_mm == (-1, -2, -3)
    with pytest.raises(InputError, match=r"frame 2 of 2: there is no such frame \(they are counted from 0\)"):
        io.read_volume(tmp_path / "a.mha", frame=2)


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_orders_and_older_names(tmp_path: Path, order: str) -> None:
    changes: dict[str, str | None] = {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": str(order == ">")}
    changes |= {"Offset": None, "Position": "1 2 -3", "TransformMatrix": None, "Rotation": "0 1 0 1 0 0 0 0 1"}
    path = write(tmp_path / "a.mha", changes, ramp(dtype=f"{order}i2").tobytes())
    for scratch in (None, tmp_path):
        np.testing.assert_array_equal(io.read_volume(path, dtype=None, scratch=scratch).array[0], ramp())


def test_numbers_as_text(tmp_path: Path) -> None:
    changes = {"BinaryData": "False", "BinaryDataByteOrderMSB": None}
    path = write(tmp_path / "a.mha", changes, " ".join(map(str, ramp().ravel())).encode())
    np.testing.assert_array_equal(io.read_volume(path).array[0], ramp())


def test_data_in_several_files(tmp_path: Path) -> None:
    for number, piece in enumerate(ramp()):
        (tmp_path / f"s {number}.raw").write_bytes(piece.tobytes())
    listed = write(tmp_path / "a.mhd", {"ElementDataFile": "LIST"}, b"s 0.raw\ns 1.raw\ns 2.raw\n")
    numbered = write(tmp_path / "b.mhd", {"ElementDataFile": "s %d.raw 0 2 1"}, b"")
    for path in (listed, numbered):
        np.testing.assert_array_equal(io.read_volume(path).array[0], ramp())
        assert len(io.source_files(path)) == 4
    with pytest.raises(InputError, match="60 numbers cannot lie in 7 files of equal size"):
        io.read_header(write(tmp_path / "c.mhd", {"ElementDataFile": "LIST"}, b"s 0.raw\n" * 7))
    with pytest.raises(InputError, match="it names no data file"):
        io.read_header(write(tmp_path / "c.mhd", {"ElementDataFile": "LIST"}, b""))


@pytest.mark.parametrize("skip", ["7", "-1"])
def test_a_data_file_with_a_header_of_its_own(tmp_path: Path, skip: str) -> None:
    (tmp_path / "a.raw").write_bytes(b"mystery" + ramp().tobytes())
    path = write(tmp_path / "a.mhd", {"ElementDataFile": "a.raw", "HeaderSize": skip}, b"")
    np.testing.assert_array_equal(io.read_volume(path, scratch=tmp_path).array[0], ramp())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Offset": None}, "it has no Offset; programs would guess it"),
        ({"TransformMatrix": None}, "it has no TransformMatrix"),
        ({"ElementSpacing": None}, "it has no ElementSpacing"),
        ({"BinaryDataByteOrderMSB": None}, "it has no BinaryDataByteOrderMSB"),
        ({"BinaryDataByteOrderMSB": "maybe"}, "must be True or False, got 'maybe'"),
        ({"Offset": "1 inf 2"}, "the geometry of the header holds NaN or infinity"),
        ({"Offset": "1 2"}, "Offset has 2 numbers, expected 3"),
        ({"Offset": "1 2 x"}, "'Offset' must be numbers, got '1 2 x'"),
        ({"ElementSpacing": "1 0 1"}, "is it zero, negative, or in another unit"),
        ({"ElementSpacing": "1 -1 1"}, "is it zero, negative, or in another unit"),
        ({"ElementSpacing": "1 nan 1"}, "is it zero, negative, or in another unit"),
        ({"ElementSpacing": "700 700 3000"}, "is it zero, negative, or in another unit"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "is singular, its axes lie in a plane"),
        ({"TransformMatrix": "1 0 0 0 3 0 0 0 1"}, r"must have length 1, got \[1.0, 3.0, 1.0\]"),
        ({"TransformMatrix": "1 0 0 0 nan 0 0 0 1"}, "holds NaN or infinity"),
        ({"TransformMatrix": "1e300 0 0 0 1 0 0 0 1"}, "must have length 1"),
        ({"NDims": "4"}, "NDims 4, DimSize 5 x 4 x 3"),
        ({"NDims": "2", "DimSize": "12 5"}, "a 2-D image"),
        ({"DimSize": "5 12 1"}, "one slice"),
        ({"DimSize": "5 4 99999999999"}, "cut short: the header tells of"),
        ({"DimSize": "5 4 99999999999", "CompressedData": "True"}, "bytes of zlib cannot hold"),
        ({"ElementNumberOfChannels": "0"}, "of 0 components"),
        ({"ElementType": "MET_FLOAT_ARRAY"}, "must be real numbers, got ElementType 'MET_FLOAT_ARRAY'"),
        ({"ElementToIntensityFunctionSlope": "2"}, "ElementToIntensityFunctionSlope is 2"),
        ({"HeaderSize": "5"}, "HeaderSize 5 is not read here"),
        ({"Position": "0 0 0"}, "is no field, or a second one"),
        ({"CompressedData": "True", "CompressedDataSize": "121"}, "tells of 121 compressed bytes, there are 120"),
        ({"CompressedData": "True"}, "damaged zlib"),
    ],
)
def test_headers_that_cannot_be_right(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    path = write(tmp_path / "a.mha", changes)
    for read in (io.read_volume, io.read_label_map):
        with pytest.raises(InputError, match=rf"a\.mha: .*{message}"):
            read(path)


def test_five_axes_are_refused(tmp_path: Path) -> None:
    changes = {"NDims": "4", "DimSize": "5 4 3 2", "ElementNumberOfChannels": "2", "Offset": "0 0 0 0"}
    with pytest.raises(InputError, match="of 2 components; at most one axis beside the spatial three"):
        io.read_header(write(tmp_path / "a.mha", changes))


def test_a_fourth_axis_that_mixes_with_space_is_refused(tmp_path: Path) -> None:
    changes = {"NDims": "4", "DimSize": "5 4 3 2", "Offset": "0 0 0 0", "ElementSpacing": "1 1 1 1"}
    changes["TransformMatrix"] = "1 0 0 0.5 0 1 0 0 0 0 1 0 0 0 0 1"
    with pytest.raises(InputError, match="mixes space with the fourth axis"):
        io.read_header(write(tmp_path / "a.mha", changes, ramp((2, *SHAPE)).tobytes()))


@pytest.mark.parametrize(
    "content", [b"ObjectType = Image", b"ObjectType = Image\nhello\n", b"ObjectType = Image\n" * 2, b"x"]
)
def test_what_is_no_metaimage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mha: (damaged|not a) MetaImage"):
        io.read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("compressed", [True, False])
def test_cut_and_continued_files_are_refused(tmp_path: Path, compressed: bool) -> None:
    sitk.WriteImage(itk_image(ramp()), str(tmp_path / "a.mha"), compressed)
    content = (tmp_path / "a.mha").read_bytes()
    for changed in (content[:-1], content[: len(content) - 40], content + b"x", content[:200]):
        (tmp_path / "b.mha").write_bytes(changed)
        with pytest.raises(InputError, match=r"b\.mha: (cut short|too long|damaged MetaImage)"):
            io.read_volume(tmp_path / "b.mha")


def test_a_flipped_bit_in_zlib_is_noticed(tmp_path: Path) -> None:
    body = zlib.compress(ramp().tobytes())
    for position in range(len(body)):
        damaged = bytearray(body)
        damaged[position] ^= 4
        path = write(tmp_path / "a.mha", {"CompressedData": "True"}, bytes(damaged))
        with pytest.raises(InputError, match=r"damaged zlib|cut short|goes on"):
            io.read_volume(path)


def test_a_header_cannot_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.raw").write_bytes(ramp().tobytes())
    with pytest.raises(InputError, match=r"a\.mhd: its data file must lie beside it or below it, got '\.\./a\.raw'"):
        io.read_volume(write(tmp_path / "sub" / "a.mhd", {"ElementDataFile": "../a.raw"}, b""))
