from __future__ import annotations

import bz2
import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medi3d.errors import InputError, Medi3dError
from medi3d.io.scratch import drop_pages, spool
from medi3d.io.streams import Part, Stream, describe_content, open_file, part_of

CONTENT = np.random.default_rng(0).integers(0, 50, 700_000).astype("uint8").tobytes()
"""Longer than two blocks."""


def compress_gzip(content: bytes) -> bytes:
    """Compress without the time of day, so that no test, nor its name, depends on the clock."""
    return gzip.compress(content, mtime=0)


COMPRESS = {"raw": bytes, "gzip": compress_gzip, "zlib": zlib.compress, "bzip2": bz2.compress}


def decode(path: Path, encoding: str, expected: int) -> bytes:
    out = bytearray(expected)
    with Stream(part_of(path), encoding) as stream:
        stream.fill(memoryview(out))
        stream.check_end()
    return bytes(out)


@pytest.mark.parametrize("encoding", list(COMPRESS))
def test_every_encoding_gives_the_bytes_back(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a").write_bytes(b"header" + COMPRESS[encoding](CONTENT))
    out = bytearray(len(CONTENT) - 300_000)
    with Stream(part_of(tmp_path / "a", 6), encoding) as stream:
        assert stream.read(5) == CONTENT[:5]
        stream.skip(299_995)
        stream.fill(memoryview(out))
        stream.check_end()
        assert stream.read(3) == b""
    assert bytes(out) == CONTENT[300_000:]


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_several_members_are_one_stream(tmp_path: Path, encoding: str) -> None:
    members = [COMPRESS[encoding](piece) for piece in (CONTENT[:10], b"", CONTENT[10:400_000], CONTENT[400_000:])]
    (tmp_path / "a").write_bytes(b"".join(members))
    assert decode(tmp_path / "a", encoding, len(CONTENT)) == CONTENT


def test_zeros_may_follow_a_gzip_stream_as_on_tapes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(compress_gzip(CONTENT) + bytes(600_000))
    assert decode(tmp_path / "a", "gzip", len(CONTENT)) == CONTENT


@pytest.mark.parametrize("encoding", ["gzip", "zlib", "bzip2"])
@pytest.mark.parametrize("garbage", [b"x", b"\x1f\x8b", b"\0\0more" * 9])
def test_anything_else_that_follows_is_refused(tmp_path: Path, encoding: str, garbage: bytes) -> None:
    (tmp_path / "a").write_bytes(COMPRESS[encoding](CONTENT) + garbage)
    with pytest.raises(InputError, match=rf"damaged {encoding} \((bytes that are none of it|it ends in the middle)"):
        decode(tmp_path / "a", encoding, len(CONTENT))


@pytest.mark.parametrize("encoding", ["gzip", "zlib", "bzip2"])
def test_wherever_a_stream_is_cut_it_is_refused(tmp_path: Path, encoding: str) -> None:
    whole = COMPRESS[encoding](CONTENT[:3000])
    for length in {*range(0, len(whole), 97), len(whole) - 1, len(whole) - 4, len(whole) - 8, 1, 2}:
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a: (damaged|the file is empty|cut short)"):
            decode(tmp_path / "a", encoding, 3000)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(min_value=80), encoding=st.sampled_from(["gzip", "zlib", "bzip2"]))
def test_a_flipped_bit_never_gives_other_bytes(tmp_path: Path, bit: int, encoding: str) -> None:
    content = bytearray(COMPRESS[encoding](CONTENT[:3000]))
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    (tmp_path / "a").write_bytes(content)
    try:
        assert decode(tmp_path / "a", encoding, 3000) == CONTENT[:3000]
    except InputError:
        return


@pytest.mark.parametrize("place", [-1, -4, -5, -8])
def test_checksum_and_length_of_gzip_are_compared(tmp_path: Path, place: int) -> None:
    content = bytearray(compress_gzip(CONTENT))
    content[place] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged gzip \(.*checksum"):
        decode(tmp_path / "a", "gzip", len(CONTENT))


def test_a_bomb_is_left_at_the_first_byte_too_many(tmp_path: Path) -> None:
    """A gigabyte of zeros behind a header of a kilobyte: not followed."""
    (tmp_path / "a").write_bytes(compress_gzip(bytes(1000) + bytes(1 << 24)) * 64)
    with Stream(part_of(tmp_path / "a"), "gzip") as stream:
        stream.fill(memoryview(bytearray(1000)))
        with pytest.raises(InputError, match="the file goes on after the last voxel"):
            stream.check_end()
        assert stream._file.tell() <= 1 << 18


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (b"<html>not found</html>", "it is a text file"),
        (bytes(50), "it begins with zeros"),
        (compress_gzip(b"x"), "it is gzip-compressed"),
        (b"\x89PNG\r\n\x1a\n", "it begins like no such file"),
    ],
)
def test_what_a_wrong_file_is(content: bytes, reason: str) -> None:
    assert reason in describe_content(content)


def test_a_text_file_is_no_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_text("moved to another server")
    with pytest.raises(InputError, match=r"a\.gz: damaged gzip \(it is a text file\); fetch or write the file again"):
        Stream(part_of(tmp_path / "a.gz"), "gzip")


# --- paths


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "loop": "loop: a symbolic link that leads back to itself",
        "dangling": "dangling: a symbolic link to nothing",
        "absent": "absent: no such file or folder",
        "empty/below": r"below: no such file \(a part of the path is a file",
        "pipe": "pipe: expected a file, got a device or pipe",
        ".": "expected a file, got a folder",
        "x" * 300: "the name is too long",
    }.items():
        with pytest.raises(InputError, match=message):
            open_file(tmp_path / name)
    with pytest.raises(InputError, match="empty: the file is empty"):
        part_of(tmp_path / "empty")
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(InputError, match="short: cut short: its voxels begin at byte 9, the file holds 3"):
        part_of(tmp_path / "short", 9)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="a: no permission to read it; ask its owner, or `chmod"):
        open_file(tmp_path / "a")


def test_a_disk_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    with Stream(part_of(tmp_path / "a"), "raw") as stream:
        stream._file.close()
        stream._file = Broken()  # type: ignore[assignment]
        with pytest.raises(InputError, match=r"a: cannot be read \(Input/output error\)"):
            stream.read(4)


class Broken:
    def read(self, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    def close(self) -> None:
        pass


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    with (
        Stream(Part(tmp_path / "a", 0, 2 * len(CONTENT)), "raw") as stream,
        pytest.raises(InputError, match=f"the file ends {len(CONTENT)} bytes or more before"),
    ):
        stream.fill(memoryview(bytearray(2 * len(CONTENT))))


# --- scratch


def test_scratch_has_no_name_and_is_read_only(tmp_path: Path) -> None:
    array = spool([np.arange(5.0), np.arange(3.0)], tmp_path, dtype=np.dtype(float), count=8)
    assert list(tmp_path.iterdir()) == []
    drop_pages(array[2:])
    np.testing.assert_array_equal(array, [0, 1, 2, 3, 4, 0, 1, 2])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    drop_pages(np.arange(3))


def test_a_full_disk_is_named(tmp_path: Path) -> None:

    def blocks() -> object:
        yield np.arange(3.0)
        raise OSError(28, "No space left on device")

    with pytest.raises(Medi3dError, match=r"could not be written \(No space left on device\).*make room"):
        spool(blocks(), tmp_path, dtype=np.dtype(float), count=9)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Medi3dError, match="could not be written"):
        spool([np.arange(3.0)], tmp_path / "absent", dtype=np.dtype(float), count=3)
