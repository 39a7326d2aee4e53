from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medi3d.config import TaskConfig
from medi3d.data.splits import Split
from medi3d.errors import InputError, Medi3dError, WeightsError
from medi3d.io import atomic
from medi3d.runs import environment
from medi3d.runs.checkpoint import save_checkpoint
from medi3d.runs.folder import RunFolder, find_runs

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
        folder.append_metrics({"step": step, "loss": 1.25})
    folder.trim_metrics(4)
    with folder.metrics_file.open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["2", "4"]


def test_a_full_disk_says_how_the_run_goes_on(folder: RunFolder) -> None:
    folder.append_metrics({"step": 1})
    folder.metrics_file.unlink()
    folder.metrics_file.mkdir()
    message = r"could not be written \(Is a directory\); .*; then `medi3d train --resume .*one` goes on$"
    with pytest.raises(Medi3dError, match=message):
        folder.append_metrics({"step": 2})


# --- resuming


def test_a_resumed_run_stands_where_its_last_checkpoint_does(
    folder: RunFolder, tiny: Path, segmentation_task: TaskConfig, tmp_path: Path
) -> None:
    store = tmp_path / "moved"
    shutil.copytree(tiny / "prepared" / segmentation_task.name, store)
    for step in (2, 4):
        folder.append_metrics({"step": step, "loss": 1.25})
    save_checkpoint({"model": {}, "step": 3}, folder.last)
    state = folder.resume(store)
    assert state is not None
    assert state["step"] == 3
    with folder.metrics_file.open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["2"]
    assert folder.load_prepared() == store.resolve()
    (noted,) = json.loads(folder.environment_file.read_text())["resumptions"]
    assert noted["step"] == 3
    assert noted["versions"]["torch"]


def test_one_of_many_processes_writes(folder: RunFolder, tiny: Path, segmentation_task: TaskConfig) -> None:
    folder.append_metrics({"step": 2})
    save_checkpoint({"model": {}, "step": 1}, folder.last)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    state = folder.resume(tiny / "prepared" / segmentation_task.name, write=False)
    assert state is not None
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_a_run_that_ended_before_its_first_checkpoint_starts_again_and_says_so(
    folder: RunFolder, tiny: Path, segmentation_task: TaskConfig, caplog: pytest.LogCaptureFixture
) -> None:
    folder.append_metrics({"step": 2})
    assert folder.resume(tiny / "prepared" / segmentation_task.name) is None
    assert "ended before its first checkpoint; starts again from step 0" in caplog.text
    assert folder.metrics_file.read_text().count("\n") == 1


def test_checkpoints_that_are_all_damaged_are_no_reason_to_start_again(
    folder: RunFolder, tiny: Path, segmentation_task: TaskConfig
) -> None:
    folder.last.parent.mkdir()
    folder.last.write_bytes(b"half")
    with pytest.raises(WeightsError, match=r"last\.pt: not a readable checkpoint"):
        folder.resume(tiny / "prepared" / segmentation_task.name)


def test_what_has_changed_since_is_told(
    folder: RunFolder, tiny: Path, segmentation_task: TaskConfig, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = tiny / "prepared" / segmentation_task.name
    facts = json.loads(folder.environment_file.read_text())
    facts["versions"]["torch"], now = "1.0", facts["versions"]["torch"]
    facts["python"] = "2.7"
    folder.environment_file.write_text(json.dumps(facts))
    folder.resume(prepared)
    assert f"goes on with torch {now} (was 1.0), python" in caplog.text
    assert "may end with other weights" in caplog.text
    caplog.clear()
    folder.resume(prepared)  # compared with the resumption before, not with the start
    assert "goes on with" not in caplog.text
    assert len(json.loads(folder.environment_file.read_text())["resumptions"]) == 2


def test_another_device_is_told_and_noted(
    folder: RunFolder, tiny: Path, segmentation_task: TaskConfig, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = tiny / "prepared" / segmentation_task.name
    assert folder.load_device() is None
    for device in ("first", "first", "second"):
        folder.note_device(device)
        assert folder.load_device() == device
        assert ("goes on with device second (was first)" in caplog.text) == (device == "second")
        folder.resume(prepared)
        assert folder.load_device() == device  # until it is known anew
    facts = json.loads(folder.environment_file.read_text())
    assert [entry.get("device") for entry in (facts, *facts["resumptions"])] == ["first", "first", "second", None]
    folder.environment_file.unlink()
    assert folder.load_device() is None


# --- killed while it is written, two at once


def test_a_kill_while_the_folder_is_made_leaves_no_run(
    folder: RunFolder, segmentation_task: TaskConfig, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written whole, and the one that makes a folder a run is the last."""
    prepared, new = tiny / "prepared" / segmentation_task.name, RunFolder(tmp_path / "new")
    whole = atomic.write_bytes
    for failing in range(3):
        calls = iter(range(3))

        def fail(path: Path, content: bytes, calls: Iterator[int] = calls, failing: int = failing) -> None:
            if next(calls) == failing:
                raise KeyboardInterrupt
            whole(path, content)

        monkeypatch.setattr(atomic, "write_bytes", fail)
        with pytest.raises(KeyboardInterrupt):
            new.create(segmentation_task, SPLIT, prepared=prepared, fold=0)
        monkeypatch.undo()
        new.check_free()
    new.create(segmentation_task, SPLIT, prepared=prepared, fold=4)
    assert new.load_split() == SPLIT
    assert (new.load_fold(), folder.load_fold()) == (4, 2)


_HOLD = """
import os, sys, time
from pathlib import Path
from medi3d.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    if not os.fork():
        os.close(1)
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_do_not_train_into_one_folder_and_a_killed_one_leaves_it(folder: RunFolder) -> None:
    """A process that the killed one has forked, to read patches, lives on for a while and does not hold the lock."""
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints" / ".tmp-half").touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder.path)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not list(folder.path.rglob(".tmp-*"))
        with pytest.raises(InputError, match=rf"process {holder.pid} on .*give another --name"), folder.lock():
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with folder.lock():
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


def test_runs_are_found(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "runs" / "another").mkdir()
    assert [run.path for run in find_runs(tmp_path / "runs")] == [folder.path]
    with pytest.raises(InputError, match="holds no runs; give a folder of run folders"):
        find_runs(tmp_path)


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(environment.subprocess, "run", fail)
    assert environment._git_commit() is None
