"""Pixels: transfer syntaxes, bits, slopes, and what is checked of each encoding."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_writing import draw_slices, edit, make_enhanced, make_slice, save, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from test_io_dicom import refusal

from medi3d.io import dicom
from medi3d.io.dicom.frames import PixelFormat
from medi3d.io.dicom.jpeg import decode_jpeg_lossless
from medi3d.io.dicom.rle import unpack_bits

COMPRESSORS = {"JPEG": "1.2.840.10008.1.2.4.70", "JPEG2000": "1.2.840.10008.1.2.4.90"}
ENCODINGS = ["rle", "jpeg_ls", "JPEG", "JPEG2000"]


def itk_stream(stored: np.ndarray, compressor: str, folder: Path) -> bytes:
    """Return one slice as GDCM compresses it."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(folder / "stream.dcm"))
    writer.Execute(sitk.GetImageFromArray(stored[None]))
    dataset = pydicom.dcmread(folder / "stream.dcm")
    assert dataset.file_meta.TransferSyntaxUID == COMPRESSORS[compressor]
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def compress(path: Path, encoding: str) -> None:
    """Compress the pixels of a file in place, with an encoder that is none of ours."""
    dataset = pydicom.dcmread(path)
    if encoding in COMPRESSORS:
        frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        dataset.PixelData = encapsulate([itk_stream(frame, encoding, path.parent.parent) for frame in frames])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = COMPRESSORS[encoding]
    else:
        uid = {"rle": RLELossless, "jpeg_ls": JPEGLSLossless}[encoding]
        dataset.compress(uid, generate_instance_uid=False)
    dataset.save_as(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
def test_compressed_series(tmp_path: Path, encoding: str, dtype: str) -> None:
    stored = (draw_slices(3, 40, 30) * (1 if dtype == "int16" else 3)).astype(dtype)
    folder = write_series(tmp_path / "s", stored)
    for path in folder.iterdir():
        compress(path, encoding)
    raw = dicom.read_dicom(folder)
    np.testing.assert_array_equal(raw.array[0], stored)
    mapped = dicom.read_dicom(folder, scratch=tmp_path)
    np.testing.assert_array_equal(mapped.array, raw.array)
    assert not mapped.array.flags.writeable


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_compressed_frames(tmp_path: Path, encoding: str) -> None:
    stored = draw_slices(4, 40, 30)
    path = save(make_enhanced(stored), tmp_path / "s" / "a.dcm")
    compress(path, encoding)
    np.testing.assert_array_equal(dicom.read_dicom(path).array[0], stored - 1000)


@pytest.mark.parametrize("offsets", [True, False])
def test_a_frame_in_several_fragments(tmp_path: Path, offsets: bool) -> None:
    stored = draw_slices(3, 40, 30)
    path = save(make_enhanced(stored), tmp_path / "a.dcm")
    compress(path, "rle")
    dataset = pydicom.dcmread(path)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=3))
    dataset.PixelData = encapsulate(frames, fragments_per_frame=2, has_bot=offsets)
    dataset.save_as(path)
    if offsets:
        np.testing.assert_array_equal(dicom.read_dicom(path).array[0], stored - 1000)
    else:
        with pytest.raises(dicom.InputError, match="6 fragments for 3 frames"):
            dicom.read_dicom(path)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_plain_syntaxes(tmp_path: Path, syntax: str) -> None:
    stored = draw_slices(3)
    for index, voxels in enumerate(stored):
        dataset = make_slice(voxels, (3, 4, 2 * index))
        save(dataset, tmp_path / "s" / f"{index}.dcm", syntax=syntax, big_endian=syntax == ExplicitVRBigEndian)
    raw = dicom.read_dicom(tmp_path / "s")
    np.testing.assert_array_equal(raw.array[0], stored)
    assert raw.array.dtype == np.dtype("int16")


@pytest.mark.parametrize(
    ("syntax", "name"),
    [("1.2.840.10008.1.2.4.50", "JPEG Baseline"), ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"),
     ("1.2.840.10008.1.2.4.100", "MPEG2"), ("1.2.3.4", "that is private or damaged")],
)  # fmt: skip
def test_other_syntaxes_are_refused_by_name(tmp_path: Path, syntax: str, name: str) -> None:
    folder = write_series(tmp_path / "s")
    for path in folder.iterdir():
        compress(path, "rle")
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, implicit_vr=False, little_endian=True)
    message = refusal(folder)
    assert f"transfer syntax {name}" in message
    assert "decompress the series first" in message


def test_a_syntax_that_does_not_fit_the_pixels(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    content = (folder / "IM97.dcm").read_bytes()
    (folder / "IM97.dcm").write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    assert "not encoded as the transfer syntax tells" in refusal(folder)


# Values


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        ("int16", "1", "0", "int16"),
        ("int16", "1.0", "-1024", "int16"),
        ("uint16", "1", "0", "uint16"),
        ("uint16", "1", "-1024", "int16"),
        ("uint8", "1", "0", "int16"),
        ("int16", "1", "0.5", "float32"),
        ("int16", "2", "0", "float32"),
        ("int32", "1", "-5", "float32"),
        ("int32", "1", "0", "int32"),
        ("uint32", "1", "0", "float32"),
        ("int16", None, None, "int16"),
    ],
)
def test_types(tmp_path: Path, stored: str, slope: str | None, intercept: str | None, dtype: str) -> None:
    voxels = (draw_slices() + 9).astype(stored)
    folder = write_series(tmp_path / "s", voxels, RescaleSlope=slope, RescaleIntercept=intercept)
    raw = dicom.read_dicom(folder)
    np.testing.assert_array_equal(raw.array[0], voxels * np.float64(slope or 1) + np.float64(intercept or 0))
    assert raw.array.dtype == dicom.read_dicom_header(folder).dtype == np.dtype(dtype)


@pytest.mark.parametrize("mapped", [False, True])
def test_values_beyond_the_promised_type_become_floats(tmp_path: Path, mapped: bool) -> None:
    stored = draw_slices().astype(np.uint16)
    stored[2, 1, 1] = 65535
    folder = write_series(tmp_path / "s", stored, RescaleIntercept="-1024")
    raw = dicom.read_dicom(folder, scratch=tmp_path if mapped else None)
    assert raw.array.dtype == np.float32
    np.testing.assert_array_equal(raw.array[0], stored.astype(float) - 1024)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    slopes = [0.1, 0.25, 3.7, 1, 2]
    stored = draw_slices()
    changes = [{"RescaleSlope": f"{slope:g}", "Modality": "PT"} for slope in slopes]
    raw = dicom.read_dicom(write_series(tmp_path / "s", stored, per_slice=changes))
    np.testing.assert_allclose(raw.array[0], stored * np.array(slopes)[:, None, None], rtol=1e-7)


def test_display_has_no_part_in_values(tmp_path: Path) -> None:
    stored = draw_slices()
    folder = write_series(
        tmp_path / "s", stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-2000, WindowCenter="40"
    )
    np.testing.assert_array_equal(dicom.read_dicom(folder).array[0], stored)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_bits_outside_the_stored_ones_are_masked(tmp_path: Path, signed: bool, high_bit: int) -> None:
    values = np.random.default_rng(5).integers(-2048 if signed else 0, 2048, (4, 5, 6))
    junk = np.random.default_rng(6).integers(0, 65536, values.shape)
    mask = 0xFFF << (high_bit - 11)
    words = ((values << (high_bit - 11)) & mask | junk & ~mask & 0xFFFF).astype(np.uint16)
    folder = write_series(tmp_path / "s", words, BitsStored=12, HighBit=high_bit, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(dicom.read_dicom(folder).array[0], values)


@pytest.mark.parametrize(("name", "dtype"), [("FloatPixelData", "float32"), ("DoubleFloatPixelData", "float64")])
def test_float_pixels(tmp_path: Path, name: str, dtype: str) -> None:
    values = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(dtype)
    for index in range(3):
        dataset = make_slice(values[index], (0, 0, index), HighBit=None, BitsStored=None, PixelRepresentation=None)
        del dataset.PixelData
        setattr(dataset, name, values[index].tobytes())
        save(dataset, tmp_path / "s" / f"{index}.dcm")
    raw = dicom.read_dicom(tmp_path / "s")
    assert raw.array.dtype == np.float32
    np.testing.assert_array_equal(raw.array[0], values.astype(np.float32))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "pixels must be grey values; got 3 samples"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "got 1 samples a pixel, PALETTE COLOR"),
        ({"BitsAllocated": 12}, "pixels of 12 bits"),
        ({"BitsAllocated": 1}, "pixels of 1 bits"),
        ({"BitsStored": 17}, "17 of them stored"),
        ({"HighBit": 3}, "the highest 3"),
        ({"PixelRepresentation": 2}, "representation 2"),
        ({"Rows": 0}, "an image of 0 × 4 pixels"),
        ({"Rows": 5}, "48 bytes of Pixel Data; 1 × 5 × 4 pixels of 16 bits take 40"),
        ({"Rows": 7}, "48 bytes of Pixel Data; 1 × 7 × 4 pixels of 16 bits take 56"),
        ({"Rows": None}, "Rows is missing"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"NumberOfFrames": "0"}, "NumberOfFrames is 0"),
        ({"NumberOfFrames": "-3"}, "NumberOfFrames is -3"),
        ({"PixelData": None}, "no Pixel Data"),
        ({"ModalityLUTSequence": []}, "a Modality LUT in place of a rescale slope is not read"),
    ],
)
def test_pixels_that_are_not_read(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    folder = write_series(tmp_path / "s")
    for path in folder.iterdir():
        edit(path, **elements)
    assert message in refusal(folder)


def test_a_malformed_number_is_named_and_not_told(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", RescaleIntercept="-1024.75")
    path = folder / "IM97.dcm"
    path.write_bytes(path.read_bytes().replace(b"-1024.75", b"-1x24.75"))
    message = refusal(folder)
    assert "IM97.dcm: RescaleIntercept is unreadable" in message
    assert "1x24" not in message


@pytest.mark.parametrize("cut", [1, 20, 47, 48])
def test_pixels_cut_short(tmp_path: Path, cut: int) -> None:
    folder = write_series(tmp_path / "s")
    path = folder / "IM97.dcm"
    path.write_bytes(path.read_bytes()[:-cut])
    assert "IM97.dcm: cut short: the file holds" in refusal(folder)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_stream_cut_short(tmp_path: Path, encoding: str, share: float) -> None:
    """The file is whole, the compressed stream inside is not."""
    folder = write_series(tmp_path / "s", draw_slices(3, 40, 30))
    for path in folder.iterdir():
        compress(path, encoding)
    dataset = pydicom.dcmread(folder / "IM98.dcm")
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([stream[: int(share * len(stream))]])
    dataset.save_as(folder / "IM98.dcm")
    with pytest.raises(dicom.InputError, match=r"IM98.dcm: damaged pixel data"):
        dicom.read_dicom(folder)


def test_a_stream_of_more_bits_than_the_header_tells_of(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", draw_slices(3, 40, 30).astype(np.uint8))
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = COMPRESSORS["JPEG"]
        dataset.PixelData = encapsulate([itk_stream(draw_slices(1, 40, 30)[0], "JPEG", tmp_path)])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    with pytest.raises(dicom.InputError, match="beyond the 8 bits that the header tells of"):
        dicom.read_dicom(folder)


# The decoders by themselves


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_jpeg_lossless_equals_gdcm(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["uint16", "uint8"])))
    shape = data.draw(st.tuples(st.integers(2, 12), st.sampled_from([4, 6, 10])))
    stored = data.draw(arrays(dtype, shape))
    stream = itk_stream(stored, "JPEG", tmp_path_factory.mktemp("jpeg"))
    np.testing.assert_array_equal(decode_jpeg_lossless(stream, shape), stored)


def test_every_flipped_bit_of_a_jpeg_stream_is_an_error_or_other_pixels(tmp_path: Path) -> None:
    """A flip may leave a stream that is whole and tells of other pixels; most do not."""
    stored = draw_slices(1, 12, 10)[0]
    stream = itk_stream(stored, "JPEG", tmp_path)
    accepted = 0
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            accepted += decode_jpeg_lossless(bytes(damaged), (12, 10)).shape == (12, 10)
        except ValueError:
            continue
    assert accepted < 0.6 * 8 * len(stream)


@given(data=st.binary(min_size=1, max_size=300))
def test_unpacked_bits(data: bytes) -> None:
    """Literal runs of the longest kind, padded to an even length."""
    packed = b"".join(bytes([len(part) - 1]) + part for part in (data[i : i + 128] for i in range(0, len(data), 128)))
    assert unpack_bits(packed + bytes(len(packed) % 2), len(data)) == data
    with pytest.raises(ValueError, match="does not unpack"):
        unpack_bits(packed[:-1], len(data))
    with pytest.raises(ValueError, match="does not unpack"):
        unpack_bits(packed + bytes(2), len(data))


def test_frame_bytes() -> None:
    pixels = PixelFormat("integer", 3, 5, 16, 12, 11, False)
    assert pixels.frame_bytes == 30
    assert struct.calcsize("<15H") == 30
