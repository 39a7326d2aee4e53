"""A watched folder: when a file counts as there, and that what arrives is predicted until told to stop."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from quick_predictor import QuickPredictor

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.infer.hot_folder import Arrivals, _is_part, _list_files, watch_folder
from medi3d.infer.summary import PredictionSummary
from medi3d.preprocess.cases.raw_case import RawCase

A, B = Path("/in/a.nii.gz"), Path("/in/b.nii.gz")


def as_case(*paths: Path) -> RawCase:
    return RawCase(paths[0].name.split(".")[0], "p", paths)


def test_a_file_has_arrived_when_it_was_still_for_a_while(tmp_path: Path) -> None:
    arrivals = Arrivals(3.0)
    assert not arrivals.look({A: (10, 1)}, 100.0)
    assert not arrivals.look({A: (20, 2)}, 102.0)  # it grew
    assert not arrivals.look({A: (20, 3)}, 104.0)  # it was written to
    assert not arrivals.look({A: (20, 3), B: (5, 1)}, 106.9)
    assert arrivals.look({A: (20, 3), B: (5, 1)}, 107.0)
    assert not arrivals.look({A: (20, 3), B: (5, 1)}, 108.0)  # nothing new
    assert arrivals.look({A: (20, 3), B: (5, 1)}, 110.0)
    assert arrivals.look({A: (21, 4), B: (5, 1)}, 111.0)  # one left
    assert arrivals.look({A: (21, 4), B: (5, 1)}, 114.0)


def test_a_case_is_taken_once_unless_its_files_change(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"x")
    case = as_case(path)
    arrivals = Arrivals(1.0)
    arrivals.look(_list_files(tmp_path), 0.0)
    assert not arrivals.take(case)
    arrivals.look(_list_files(tmp_path), 1.0)
    assert arrivals.take(case)
    assert not arrivals.take(case)
    path.write_bytes(b"xy")
    arrivals.look(_list_files(tmp_path), 2.0)
    assert not arrivals.take(case)
    arrivals.look(_list_files(tmp_path), 3.0)
    assert arrivals.take(case)


def test_channels_wait_for_each_other(segmentation_task: TaskConfig) -> None:
    two = replace(segmentation_task, data=replace(segmentation_task.data, channels=("T1", "T2")))
    first, second = Path("a_0000.nii.gz"), Path("a_0001.nii.gz")
    assert _is_part(RawCase("a", "a", (first,)), two)
    assert _is_part(RawCase("a_0001", "a_0001", (second,)), two)
    assert not _is_part(RawCase("a", "a", (first, second)), two)
    assert not _is_part(RawCase("both", "both", (Path("both.nii.gz"),)), two)
    assert not _is_part(RawCase("a", "a", (first,)), segmentation_task)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in 120 s"
        time.sleep(0.01)


def test_what_arrives_is_predicted_until_told_to_stop(
    segmentation_task: TaskConfig, tiny: Path, tmp_path: Path
) -> None:
    images = tiny / "raw" / "tiny_segmentation" / "imagesTr"
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    stop = threading.Event()
    rounds: list[list[str]] = []
    results: list[PredictionSummary] = []

    def before(number: int) -> None:
        if number == 3:
            stop.set()  # while a case is at hand

    predictor = QuickPredictor(segmentation_task, before=before)

    def on_round(done: PredictionSummary) -> None:
        rounds.append(done.predicted)

    def watch() -> None:
        results.append(watch_folder(predictor, folder, out, stop=stop, settle_s=1.0, on_round=on_round))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        shutil.copy(images / "case_0.nii.gz", folder)
        wait_for(lambda: (out / "case_0.nii.gz").exists())
        content = (images / "case_1.nii.gz").read_bytes()
        with (folder / "case_1.nii.gz").open("wb") as file:  # slowly, as over a network
            for start in range(0, len(content), len(content) // 4 + 1):
                file.write(content[start : start + len(content) // 4 + 1])
                file.flush()
                assert not (out / "case_1.nii.gz").exists()
                time.sleep(0.05)
        wait_for(lambda: (out / "case_1.nii.gz").exists())
        (folder / "bad.nii.gz").write_bytes(content[:500])
        (folder / "notes.txt").write_text("no image")
        io.write_volume(io.read_volume(images / "case_2.nii.gz"), folder / "case_0.nii.gz")  # another image, same name
        wait_for(lambda: len(predictor.predicted) == 3)
        for name in ("case_3", "case_4"):
            shutil.copy(images / f"{name}.nii.gz", folder)
        thread.join(120)
        assert not thread.is_alive()
    finally:
        stop.set()
        thread.join(120)
    summary = results[0]
    assert summary.predicted == ["case_0", "case_1", "case_3"]
    assert "bad.nii.gz" in summary.problems["bad"]
    assert rounds[0] == ["case_0"]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["case_0.nii.gz", "case_1.nii.gz", "case_3.nii.gz"]


def test_a_folder_that_cannot_be_watched(segmentation_task: TaskConfig, tmp_path: Path) -> None:
    quick, stop = QuickPredictor(segmentation_task), threading.Event()
    with pytest.raises(InputError, match="no such folder to watch"):
        watch_folder(quick, tmp_path / "none", tmp_path / "out", stop=stop)
    with pytest.raises(InputError, match="is watched and written to"):
        watch_folder(quick, tmp_path, tmp_path / "a" / "..", stop=stop)
