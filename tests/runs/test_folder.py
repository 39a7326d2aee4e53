from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

from medi3d.config import TaskConfig
from medi3d.data.splits import Split
from medi3d.errors import InputError
from medi3d.runs import folder as run_module
from medi3d.runs.folder import METRIC_COLUMNS, RunFolder

SPLIT = Split(("a", "b"), ("c",))


@pytest.fixture
def folder(segmentation_task: TaskConfig, tiny: Path, tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.create(segmentation_task, SPLIT, prepared=tiny / "prepared" / segmentation_task.name, fold=2)
    return folder


def test_configuration_and_split_are_read_back(folder: RunFolder, segmentation_task: TaskConfig) -> None:
    assert folder.load_config() == segmentation_task
    assert folder.load_split() == SPLIT


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run here \(config\.yaml is missing\); `medi3d train` makes one"):
        RunFolder(tmp_path).load_config()


def test_a_taken_folder_is_refused(folder: RunFolder, segmentation_task: TaskConfig, tiny: Path) -> None:
    with pytest.raises(InputError, match="already holds a run"):
        folder.create(segmentation_task, SPLIT, prepared=tiny / "prepared" / segmentation_task.name, fold=0)


def test_metrics_are_appended_and_trimmed(folder: RunFolder) -> None:
    folder.trim_metrics(3)
    assert not folder.metrics_file.exists()
    for step in (2, 4, 6):
        folder.append_metrics({"step": step, "seconds": 0.5, "loss": 1.25} | ({"score": 0.5} if step == 4 else {}))
    before = folder.metrics_file.read_text()
    folder.trim_metrics(6)
    assert folder.metrics_file.read_text() == before
    folder.trim_metrics(4)
    with folder.metrics_file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == METRIC_COLUMNS
    assert [row["step"] for row in rows] == ["2", "4"]
    assert [row["score"] for row in rows] == ["", "0.5"]


def test_a_column_that_is_not_there_is_a_mistake_of_the_programmer(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames: 'dice'"):
        folder.append_metrics({"step": 1, "dice": 0.5})


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(run_module.subprocess, "run", fail)
    assert run_module._git_commit() is None
