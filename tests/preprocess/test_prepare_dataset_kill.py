"""Killed, interrupted, two at once, on a full disk: what is in the store is whole, and a rerun makes it complete."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from medi3d import io
from medi3d.config import load_task
from medi3d.errors import InputError, Medi3dError
from medi3d.io import PreparedStore, prepared
from medi3d.preprocess import prepare_dataset
from medi3d.volume import LabelMap, Volume

AFFINE = np.diag([2.0, 0.9, 0.8, 1.0])
TASK = load_task("hippocampus")
CASES = 48
COMMAND = [str(Path(sys.executable).with_name("medi3d")), "preprocess", "--task", "hippocampus"]


def write_cases(folder: Path, count: int, shape: tuple[int, int, int]) -> Path:
    for number in range(count):
        rng = np.random.default_rng(number)
        label = np.zeros((1, *shape), "uint8")
        label[0, 2:5, 4:9, 5:9] = 1
        label[0, 2:5, 9:12, 5:9] = 2
        image = Volume(rng.normal(50, 9, (1, *shape)).astype("f4"), AFFINE)
        io.write_volume(image, folder / f"imagesTr/case_{number:02d}.nii.gz")
        io.write_label_map(LabelMap(label, AFFINE), folder / f"labelsTr/case_{number:02d}.nii.gz")
    return folder


def contents(store: Path) -> dict[str, bytes]:
    files = (path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "quality.html")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def count_cases(store: Path) -> int:
    return len(prepared.stored_case_ids(store))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("kill") / "raw", CASES, (20, 40, 50))


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("undisturbed")
    prepare_dataset(raw, TASK, store)
    return contents(store)


def start(raw: Path, store: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "--data", str(raw), "--output", str(store), "--workers", "2", *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )


def _hear_interrupts() -> None:
    """Undo what a shell does to what it starts in the background: it ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("after", [0, 3, 21, 47])
def test_killed_at_any_time_and_run_again_is_as_if_nothing_had_been(
    raw: Path, undisturbed: dict[str, bytes], tmp_path: Path, after: int
) -> None:
    store = tmp_path / "store"
    process = start(raw, store)
    wait_until(lambda: (store / "cases").exists() and count_cases(store) >= after, process)
    time.sleep(np.random.default_rng(after).uniform(0, 0.02))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = count_cases(store)
    summary = prepare_dataset(raw, TASK, store)
    assert len(summary.skipped) == before
    assert len(summary.prepared) == CASES - before
    assert contents(store) == undisturbed


def test_processes_write_the_same_bytes(raw: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    prepare_dataset(raw, TASK, tmp_path, workers=2)
    assert contents(tmp_path) == undisturbed


@pytest.fixture(scope="module")
def long_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred large cases, which take seconds to prepare: all of them are links to one."""
    folder = write_cases(tmp_path_factory.mktemp("long") / "raw", 1, (50, 90, 100))
    for kind in ("imagesTr", "labelsTr"):
        for number in range(1, 100):
            (folder / f"{kind}/case_{number:02d}.nii.gz").symlink_to(folder / f"{kind}/case_00.nii.gz")
    return folder


def test_interrupted_it_says_what_is_kept(long_raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start(long_raw, store)
    wait_until(lambda: (store / "cases").exists() and count_cases(store) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().strip().endswith("are kept, and the same command goes on from there")
    assert b"Traceback" not in errors
    assert not list(store.rglob(".tmp-*"))
    assert count_cases(store) >= 2


def test_two_at_once_do_not_disturb_each_other(long_raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start(long_raw, store)
    wait_until(lambda: (store / "cases").exists() and count_cases(store) >= 1, process)
    os.killpg(process.pid, signal.SIGSTOP)  # it shall not be ready before this process has tried
    message = rf"another run is writing here \(process {process.pid} on .*--output"
    try:
        with pytest.raises(InputError, match=message):
            prepare_dataset(long_raw, TASK, store)
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        process.communicate()
    assert process.returncode == 0
    images = [case.image()[:] for case in PreparedStore(store).cases()]
    assert len(images) == 100
    assert all((image == images[0]).all() for image in images)


def test_a_lock_that_cannot_be_had_is_told(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "cases" / ".tmp-of-another-run").mkdir(parents=True)
    with prepared.open_for_writing(tmp_path, {}):
        assert "no lock to be had here" in caplog.text
    assert (tmp_path / "cases" / ".tmp-of-another-run").exists()


# --- a full disk


@pytest.fixture
def small_files() -> Iterator[int]:
    """Let no file grow beyond a size, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 120_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_smaller_cases_go_on(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    raw = write_cases(tmp_path / "raw", 3, (10, 14, 12))
    large = write_cases(tmp_path / "large", 1, (30, 40, 50))
    for kind in ("imagesTr", "labelsTr"):
        (large / kind / "case_00.nii.gz").rename(raw / kind / "case_01.nii.gz")
    request.getfixturevalue("small_files")
    store = tmp_path / "store"
    summary = prepare_dataset(raw, TASK, store)
    assert summary.prepared == ("case_00", "case_02")
    (problem,) = summary.problems
    assert problem.case_id == "case_01"
    assert "could not be written" in problem.message
    assert "MB are free on the disk /" in problem.message
    assert sorted(path.name for path in (store / "cases").iterdir()) == ["case_00", "case_02"]
    assert len(PreparedStore(store).cases()) == 2


@pytest.mark.parametrize("missing", [1, 40, 300, 1000, 5000])
def test_an_array_that_is_cut_short_is_never_taken_for_whole(tmp_path: Path, missing: int) -> None:
    """The limit lies a few bytes below what the file needs: its very end is lost, where blosc2 keeps its index."""
    rng = np.random.default_rng(0)
    slabs = prepared.ArraySlabs(rng.normal(size=(1, 70, 20, 20)).astype("f4"))
    prepared._write_slabs(slabs, tmp_path / "whole.b2nd", np.float32)
    limit = (tmp_path / "whole.b2nd").stat().st_size - missing
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(Medi3dError, match="could not be written"):
            prepared._write_slabs(slabs, tmp_path / "cut.b2nd", np.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
