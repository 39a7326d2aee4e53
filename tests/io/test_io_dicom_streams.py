"""What each encoding lets the reader check: fragments, stream headers, ends of streams and of files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_writing import draw_slices, edit, make_enhanced, make_slice, save, write_series
from pydicom.encaps import encapsulate, generate_frames
from test_io_dicom import refusal
from test_io_dicom_pixels import compress, itk_stream

from medi3d.errors import InputError
from medi3d.io import dicom
from medi3d.io.dicom.frames import PixelFormat
from medi3d.io.dicom.gdcm import decode_jpeg_2000, decode_jpeg_ls
from medi3d.io.dicom.jpeg import decode_jpeg_lossless
from medi3d.io.dicom.rle import decode_rle

PIXELS = PixelFormat("integer", 40, 30, 16, 16, 15, True)
JPEG_2000, JPEG_LS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"


def patched(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


@pytest.fixture
def jpeg_2000(tmp_path: Path) -> bytes:
    return itk_stream(draw_slices(1, 40, 30)[0], "JPEG2000", tmp_path)


@pytest.fixture
def jpeg(tmp_path: Path) -> bytes:
    return itk_stream(draw_slices(1, 40, 30)[0], "JPEG", tmp_path)


@pytest.fixture
def jpeg_ls(tmp_path: Path) -> bytes:
    path = save(make_slice(draw_slices(1, 40, 30)[0], (0, 0, 0)), tmp_path / "s" / "a.dcm")
    compress(path, "jpeg_ls")
    return next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))


def test_jpeg_2000_streams(jpeg_2000: bytes) -> None:
    np.testing.assert_array_equal(
        decode_jpeg_2000(jpeg_2000, PIXELS, JPEG_2000).view(np.int16), draw_slices(1, 40, 30)[0]
    )
    start = jpeg_2000.index(b"\xff\x90")
    last = patched(jpeg_2000, start + 6, bytes(4))  # a tile part may leave its length open
    np.testing.assert_array_equal(
        decode_jpeg_2000(last, PIXELS, JPEG_2000), decode_jpeg_2000(jpeg_2000, PIXELS, JPEG_2000)
    )
    for damaged, message in [
        (b"\0" + jpeg_2000[1:], "no JPEG 2000 stream"),
        (patched(jpeg_2000, 8, struct.pack(">L", 31)), "of 40 × 31 pixels, 1 components"),
        (patched(jpeg_2000, 42, b"\x1f"), "of 32 bits a pixel"),
        (patched(jpeg_2000, 4, b"\0\1"), "a damaged JPEG 2000 header"),
        (patched(jpeg_2000, start + 6, struct.pack(">L", 12)), "do not end where it does"),
        (patched(jpeg_2000, start + 6, struct.pack(">L", 9999)), "do not end where it does"),
        (jpeg_2000 + b"\1\1", "do not end where it does"),
        (patched(jpeg_2000, jpeg_2000.index(b"\xff\x52") + 5, b"\xff\xff"), "GDCM cannot decode"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode_jpeg_2000(damaged, PIXELS, JPEG_2000)


def test_jpeg_ls_streams(jpeg_ls: bytes) -> None:
    np.testing.assert_array_equal(decode_jpeg_ls(jpeg_ls, PIXELS, JPEG_LS).view(np.int16), draw_slices(1, 40, 30)[0])
    start = jpeg_ls.index(b"\xff\xf7")
    for damaged, message in [
        (b"\0" + jpeg_ls[1:], "no JPEG-LS stream"),
        (patched(jpeg_ls, start + 5, b"\0\7"), "of another shape"),
        (patched(jpeg_ls, start, b"\0"), "a damaged JPEG-LS header"),
        (patched(jpeg_ls, start + 2, b"\xff\xff"), "a damaged JPEG-LS header"),
        (jpeg_ls[:-4], "no end marker"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode_jpeg_ls(damaged, PIXELS, JPEG_LS)


def test_jpeg_lossless_streams(jpeg: bytes) -> None:
    frame, table, scan = jpeg.index(b"\xff\xc3"), jpeg.index(b"\xff\xc4"), jpeg.index(b"\xff\xda")
    comment = b"\xff\xfe\0\4hi"
    np.testing.assert_array_equal(
        decode_jpeg_lossless(jpeg[:2] + comment + jpeg[2:], (40, 30)).view(np.int16), draw_slices(1, 40, 30)[0]
    )
    for damaged, message in [
        (b"\0" + jpeg[1:], "no JPEG stream"),
        (jpeg, "of 40 × 30 pixels"),
        (patched(jpeg, scan + 7, b"\6"), "predictor 6; predictor 1"),
        (patched(jpeg, frame + 1, b"\xc0"), "segment C0 is not of a grey lossless stream"),
        (patched(jpeg, frame + 4, b"\x11"), "a damaged JPEG header"),
        (patched(jpeg, frame + 4, b"\x09"), "beyond the 9 bits"),
        (patched(jpeg, scan + 2, b"\xff\xff"), "a damaged JPEG header"),
        (patched(jpeg, table + 4, b"\x09"), "a damaged JPEG Huffman table"),
        (patched(jpeg, table + 5, b"\xff"), "a damaged JPEG Huffman table"),
        (patched(jpeg, table + 5, b"\3"), "a damaged JPEG Huffman table"),
        (patched(jpeg, table + 21, b"\x19"), "a damaged JPEG Huffman table"),
        (patched(jpeg, len(jpeg) - 40, b"\xff\xd0"), "a marker inside"),
        (jpeg[: scan + 10] + jpeg[scan + 60 :], r"ends before its last pixel|do not fit"),
        (jpeg[: scan + 60] + jpeg[scan + 20 :], r"do not fit"),
        (jpeg.rstrip(b"\0")[:-2], "no end marker"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode_jpeg_lossless(damaged, (40, 31) if damaged is jpeg else (40, 30))


def test_rle_streams() -> None:
    pixels = PixelFormat("integer", 2, 2, 16, 16, 15, False)
    head = struct.pack("<16L", 2, 64, 66, *[0] * 13)
    # a run of 4 zeros, then a no-op, a literal of 1 and a run of 3
    content = head + bytes([253, 0]) + bytes([128, 0, 9, 254, 7]) + bytes(1)
    np.testing.assert_array_equal(decode_rle(content, pixels), [[9, 7], [7, 7]])
    for damaged, message in [
        (content[:60], "no RLE header"),
        (patched(content, 0, b"\3"), "2 byte planes"),
        (patched(content, 4, b"\x41"), "2 byte planes"),
        (patched(content, 8, b"\xff"), "2 byte planes"),
        (patched(content, 40, b"\1"), "2 byte planes"),
        (content[:-3], "does not unpack to 4 bytes"),
        (content + bytes(2), "does not unpack to 4 bytes"),
        (patched(content, 64, b"\xfc"), "does not unpack to 4 bytes"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode_rle(damaged, pixels)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    path = save(make_enhanced(draw_slices(3, 40, 30)), tmp_path / "s" / "a.dcm")
    compress(path, "rle")
    return path


def item(length: int) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, length)


def test_fragments(frames: Path) -> None:
    content = frames.read_bytes()
    start = content.index(struct.pack("<HH", 0x7FE0, 0x10)) + 12
    assert content[start : start + 8] == item(12)
    for damaged, message in [
        (patched(content, start + 12, b"\1"), "the offset table does not fit the fragments"),
        (patched(content, start, item(10)), r"no fragment table|do not follow one another"),
        (patched(content, start + 20, item(99999)), "do not follow one another"),
        (content[:-8], "cut short"),
        (content[:-8] + b"\xfe\xff\xdd\xe0\1\0\0\0", "do not follow one another"),
        (content + b"\0" * 7, "what follows the pixels is no DICOM"),
    ]:
        frames.write_bytes(damaged)
        with pytest.raises(InputError, match=f"a.dcm: damaged pixel data.*({message})"):
            dicom.read_dicom(frames)
    frames.write_bytes(content)
    dataset = pydicom.dcmread(frames)
    dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=3))[:2], has_bot=False)
    dataset.save_as(frames)
    with pytest.raises(InputError, match="2 fragments for 3 frames"):
        dicom.read_dicom(frames)


def test_what_may_follow_the_pixels(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    path = folder / "IM97.dcm"
    content = path.read_bytes()
    padding = struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 4) + bytes(4)
    path.write_bytes(content + padding)
    np.testing.assert_array_equal(dicom.read_dicom(folder).array[0], draw_slices())
    for rest in (padding[:-1], padding[:6], bytes(2), bytes(200), b"junk" * 10):
        path.write_bytes(content + rest)
        assert "IM97.dcm: what follows the pixels is no DICOM" in refusal(folder)


def test_an_element_of_another_kind(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    path = folder / "IM97.dcm"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0SH"))
    assert "Rows is unreadable" in refusal(folder)
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"\0" * 20))
    assert "IM97.dcm: " in refusal(folder)
    path.write_bytes(content[:140] + b"\xff" * 400)
    assert "IM97.dcm: " in refusal(folder)


def test_a_text_that_is_none(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    path = folder / "IM97.dcm"
    path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONO\xff\xffROME2"))
    assert "IM97.dcm: PhotometricInterpretation is unreadable" in refusal(folder)


def test_functional_groups_of_another_kind(tmp_path: Path) -> None:
    path = save(make_enhanced(draw_slices(3)), tmp_path / "a.dcm")
    content = path.read_bytes()
    path.write_bytes(
        content.replace(struct.pack("<HH", 0x5200, 0x9230) + b"SQ", struct.pack("<HH", 0x5200, 0x9230) + b"OB")
    )
    assert "PerFrameFunctionalGroupsSequence is unreadable" in refusal(path)


def test_no_malformed_value_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pydicom would log it."""
    folder = write_series(tmp_path / "s")
    path = folder / "IM97.dcm"
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.SECR"))
    caplog.set_level("DEBUG")
    assert "IM97.dcm: transfer syntax that is private or damaged cannot be decoded" in refusal(folder)
    assert "SECR" not in caplog.text


def test_a_missing_number(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    edit(folder / "IM97.dcm", SamplesPerPixel=None)
    assert "IM97.dcm: SamplesPerPixel is missing" in refusal(folder)
