from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medi3d.errors import Medi3dError, WeightsError
from medi3d.io import atomic
from medi3d.runs import checkpoint
from medi3d.runs.checkpoint import load_checkpoint, previous_of, save_checkpoint


def make(step: int, **more: Any) -> dict[str, Any]:
    return {"model": {"w": torch.full((100,), float(step))}, "step": step, **more}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_checkpoint_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None,
        "step": 7,
        "best": float("nan"),
        "rng": torch.get_rng_state(),
        "large": np.random.default_rng(1).bit_generator.state["state"],  # integers of 128 bits
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "nested": [(1, 2.5), {"three": True}],
    }
    save_checkpoint(state, tmp_path / "new" / "last.pt")
    found = load_checkpoint(tmp_path / "new" / "last.pt")
    assert found.pop("large") == state.pop("large")
    torch.testing.assert_close(found, state, rtol=0, atol=0, equal_nan=True)
    assert names(tmp_path / "new") == ["last.pt"]


def test_the_one_before_is_kept_and_no_other(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(make(step), tmp_path / "last.pt")
    assert names(tmp_path) == ["last.previous.pt", "last.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    assert load_checkpoint(previous_of(tmp_path / "last.pt"))["step"] == 2


@pytest.mark.parametrize("how", ["damaged", "cut", "zeros", "empty", "gone"])
def test_where_the_last_is_bad_the_one_before_is_taken_and_told(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(make(1), path)
    save_checkpoint(make(2), path)
    data = path.read_bytes()
    if how == "damaged":
        damage(path)
    elif how == "gone":
        path.unlink()
    else:
        kept = {"cut": data[:-100], "zeros": data[:500] + bytes(len(data) - 500), "empty": b""}[how]
        path.write_bytes(kept)
    assert load_checkpoint(path)["step"] == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    reason = {"damaged": "damaged: its bytes", "gone": "no such checkpoint"}.get(how, "not a readable checkpoint")
    assert reason in record.getMessage()
    assert record.getMessage().endswith("took the one before it, last.previous.pt, instead")


@pytest.mark.parametrize("bad", ["damaged", "gone"])
def test_a_bad_one_never_takes_the_place_of_the_good_one_before(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(make(1), path)
    save_checkpoint(make(2), path)
    damage(path) if bad == "damaged" else path.unlink()
    save_checkpoint(make(3), path)
    assert load_checkpoint(path)["step"] == 3
    assert load_checkpoint(previous_of(path))["step"] == 1


def test_where_both_are_bad_both_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(make(1), path)
    save_checkpoint(make(2), path)
    damage(path)
    damage(previous_of(path))
    with pytest.raises(WeightsError, match=r"last\.pt: damaged.*; .*last\.previous\.pt: damaged"):
        load_checkpoint(path)


def test_an_older_file_without_a_hash_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(make(5), tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 5
    assert "last.pt: carries no hash" in caplog.text


def test_a_new_checkpoint_takes_the_old_ones_name_and_not_its_place(tmp_path: Path) -> None:
    """Whoever reads the old file while new ones are written reads it to its end."""
    path = tmp_path / "last.pt"
    save_checkpoint(make(1), path)
    with path.open("rb") as reader:
        save_checkpoint(make(2), path)
        save_checkpoint(make(3), path)
        assert torch.load(reader, weights_only=True)["step"] == 1


@pytest.mark.parametrize("value", [np.float64(0.5), np.zeros(2), Path("x"), {1, 2}])
def test_what_could_not_be_read_back_is_not_written(value: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['deep'\]\[1\]: a \w+ cannot be read back from a checkpoint"):
        save_checkpoint(make(1, deep=[0, value]), tmp_path / "last.pt")
    assert names(tmp_path) == []


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of a checkpoint was run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {}, "extra": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert "was run" not in capsys.readouterr().out


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pt: no such checkpoint$"):
        load_checkpoint(tmp_path / "absent.pt")
    save_checkpoint({"model": {"w": torch.zeros(1000)}}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:500])
    with pytest.raises(WeightsError, match=r"cut\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "cut.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt: not a checkpoint of a medi3d run"):
        load_checkpoint(tmp_path / "other.pt")


# --- a full disk


class Full:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, stream: Any, room: int, error: BaseException) -> None:
        self.stream, self.room, self.error = stream, room, error

    def write(self, data: bytes) -> int:
        if self.room < len(data):
            self.stream.write(data[: self.room])
            raise self.error
        self.room -= len(data)
        return int(self.stream.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int, error: BaseException) -> None:
    whole = Path.open

    def open_with_little_room(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        stream = whole(path, mode, *more, **options)
        return Full(stream, room, error) if mode == "wb" else stream

    monkeypatch.setattr(Path, "open", open_with_little_room)


@pytest.mark.parametrize("room", [0, 10, 700, 1500])
def test_a_disk_that_fills_up_leaves_the_old_checkpoint(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(make(1), path)
    fill_disk(monkeypatch, room, OSError(28, "No space left on device"))
    with pytest.raises(
        Medi3dError, match=r"last\.pt: this checkpoint could not be written \(No space left on device\)"
    ):
        save_checkpoint(make(2), path)
    assert load_checkpoint(path)["step"] == 1
    assert names(tmp_path) == ["last.pt"]


def test_an_interruption_while_torch_writes_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reports what a stream raises as a RuntimeError of its own."""
    save_checkpoint(make(1), tmp_path / "last.pt")
    fill_disk(monkeypatch, 700, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(make(2), tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root mounts file systems")
    answer = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True)
    if answer.returncode:
        pytest.skip(f"no file system could be mounted: {answer.stderr.decode()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("asked_first", [True, False])
def test_on_a_real_disk_that_is_full(asked_first: bool, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free space is looked at first; where that says nothing, as with quotas, writing fails in the middle."""
    path = small_disk / "checkpoints" / "last.pt"
    state = make(1, more=torch.zeros(25_000))
    save_checkpoint(state, path)
    save_checkpoint(state | {"step": 2}, path)
    if not asked_first:
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10**9))
        monkeypatch.setattr(atomic, "find_disk", lambda path: (small_disk, 0))
    with pytest.raises(Medi3dError, match=r"No space left on device.*needs 0\.1 MB, 0\.[01] MB are free") as caught:
        save_checkpoint(state | {"step": 3}, path)
    assert f"free on the disk {small_disk}; the last good checkpoint, {path}, is whole; make room" in str(caught.value)
    assert load_checkpoint(path)["step"] == 2
    assert names(path.parent) == ["last.previous.pt", "last.pt"]
    monkeypatch.undo()
    previous_of(path).unlink()
    save_checkpoint(state | {"step": 3}, path)
    assert load_checkpoint(path)["step"] == 3


def test_a_disk_that_cannot_be_written_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Medi3dError, match=r"could not be written \(File exists\).*there is no earlier one; make room"):
        save_checkpoint(make(1), tmp_path / "file" / "last.pt")


def test_the_bytes_that_are_asked_for_suffice_and_are_not_many_more(tmp_path: Path) -> None:
    """Tied weights lie in the file once."""
    shared = torch.randn(300, 50)
    state = {"model": {f"layer.{n}.weight": torch.randn(7) for n in range(200)} | {"a": shared, "b": shared}}
    save_checkpoint(state, tmp_path / "last.pt")
    size = (tmp_path / "last.pt").stat().st_size
    estimate = sum(n + checkpoint._BYTES_BESIDE for n in checkpoint._sizes(state).values())
    assert shared.nbytes < size <= estimate < 2 * size
