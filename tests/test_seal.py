"""Every change of a sealed file is found, and the file stays what torch and zip read."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from medi3d.errors import WeightsError
from medi3d.models.weights import read_weights_file
from medi3d.seal import SealingWriter, check_seal

CONTENT = {"model": {"weight": torch.arange(30.0).reshape(2, 3, 5)}, "step": 3}


def seal(content: Any) -> bytes:
    stream = io.BytesIO()
    writer = SealingWriter(stream)
    torch.save(content, writer)  # type: ignore[arg-type]
    writer.seal()
    return stream.getvalue()


def plain(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def check(data: bytes) -> bool:
    return check_seal(io.BytesIO(data), Path("some.pt"))


def test_the_seal_is_the_digest_of_all_before_it() -> None:
    import hashlib

    data = seal(CONTENT)
    assert data[-64:].decode() == hashlib.sha256(data[:-64]).hexdigest()
    assert check(data)


def test_what_is_sealed_is_still_torchs_and_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(seal(CONTENT))
    for mapped in (False, True):
        found = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mapped)
        assert torch.equal(found["model"]["weight"], CONTENT["model"]["weight"])  # type: ignore[index]
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        assert archive.comment == seal(CONTENT)[-78:]


def test_each_changed_byte_is_found() -> None:
    data = seal({"model": {"w": torch.zeros(5)}})
    for position in range(len(data)):
        for bit in (0, 6):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(WeightsError, match=r"some\.pt: damaged: its bytes are not those that were written"):
                check(bytes(changed))


def test_a_file_that_was_cut_is_read_by_nothing() -> None:
    data = seal({"model": {"w": torch.zeros(5)}})
    for length in (*range(0, len(data) - 120, 61), *range(len(data) - 120, len(data))):
        for zeros in (0, len(data) - length):
            cut = data[:length] + bytes(zeros)
            with pytest.raises((WeightsError, RuntimeError, EOFError, pickle.UnpicklingError)):
                check(cut) or torch.load(io.BytesIO(cut), weights_only=True)


def test_files_of_others_carry_none() -> None:
    assert not check(plain(CONTENT))
    assert not check(b"")
    assert not check(b"short")


@pytest.mark.parametrize("sizes", [[1], [7, 22, 3], [22], [21], [23, 1, 1], [10**6]])
def test_the_seal_does_not_depend_on_the_pieces_written(sizes: list[int]) -> None:
    data, stream = plain(CONTENT), io.BytesIO()
    writer = SealingWriter(stream)
    position = index = 0
    while position < len(data):
        size = sizes[index % len(sizes)]
        assert writer.write(data[position : position + size]) == len(data[position : position + size])
        position, index = position + size, index + 1
    writer.seal()
    assert check(stream.getvalue())
    assert torch.load(io.BytesIO(stream.getvalue()), weights_only=True)["step"] == 3
    assert stream.getvalue()[: len(data) - 2] == data[:-2]


def test_weights_are_checked_too(tmp_path: Path) -> None:
    """``--init`` reads checkpoints: a bit that flipped in a weight is no weight."""
    data = bytearray(seal(CONTENT))
    (tmp_path / "good.pt").write_bytes(data)
    assert read_weights_file(tmp_path / "good.pt").keys() == {"weight"}
    place = data.index(torch.tensor(7.0).numpy().tobytes())
    data[place + 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(data)
    assert not torch.equal(torch.load(tmp_path / "bad.pt")["model"]["weight"], CONTENT["model"]["weight"])  # type: ignore[index]
    with pytest.raises(WeightsError, match=r"bad\.pt: damaged"):
        read_weights_file(tmp_path / "bad.pt")
