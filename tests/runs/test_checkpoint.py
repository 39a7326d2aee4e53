from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medi3d.errors import WeightsError
from medi3d.runs.checkpoint import load_checkpoint, save_checkpoint


def test_a_checkpoint_is_read_back(tmp_path: Path) -> None:
    state = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "step": 7, "best": 0.5, "rng": torch.get_rng_state()}
    save_checkpoint(state, tmp_path / "new" / "last.pt")
    found = load_checkpoint(tmp_path / "new" / "last.pt")
    assert found["step"] == 7
    assert torch.equal(found["model"]["weight"], state["model"]["weight"])  # type: ignore[index]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.pt"]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint({"model": {}, "step": 1}, path)
    whole = torch.save

    def save_half(state: object, stream: object) -> None:
        whole({"half": 1}, stream)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({"model": {}, "step": 2}, path)
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_new_checkpoint_takes_the_old_ones_name_and_not_its_place(tmp_path: Path) -> None:
    """Whoever reads the old file while the new one is written reads it to its end."""
    path = tmp_path / "last.pt"
    save_checkpoint({"model": {}, "step": 1}, path)
    with path.open("rb") as reader:
        save_checkpoint({"model": {}, "step": 2}, path)
        assert torch.load(reader, weights_only=True)["step"] == 1
    assert load_checkpoint(path)["step"] == 2


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of a checkpoint was run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {}, "extra": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert "was run" not in capsys.readouterr().out


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")
    save_checkpoint({"model": {"w": torch.zeros(1000)}}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:500])
    with pytest.raises(WeightsError, match=r"cut\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "cut.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(WeightsError, match=r"empty\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "empty.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt: not a checkpoint of a medi3d run"):
        load_checkpoint(tmp_path / "other.pt")
