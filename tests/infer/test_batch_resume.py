"""A batch that is stopped and started again: what is kept, what is done again, and what is the same in the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from quick_predictor import QuickPredictor

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.errors import InputError, Medi3dError
from medi3d.infer.batch import BatchOptions, open_batch, predict_files, raw_source
from medi3d.infer.predictor import PreparedInput
from medi3d.io import atomic

CASES = [f"case_{number}" for number in range(6)]


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny / "raw" / "tiny_segmentation" / "imagesTr", tmp_path / "in"))


@pytest.fixture
def quick(segmentation_task: TaskConfig) -> QuickPredictor:
    return QuickPredictor(segmentation_task)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def journal(folder: Path) -> Path:
    return folder / ".medi3d" / "predictions.jsonl"


# --- one ahead, one behind


def test_the_next_case_is_prepared_while_one_is_predicted_and_only_the_next(
    segmentation_task: TaskConfig, source: Path, tmp_path: Path
) -> None:
    waiting: list[int] = []

    def watch(number: int) -> None:
        deadline = time.monotonic() + 60
        while len(predictor.prepared) < min(number + 2, 6) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)  # in which another one could be prepared, were there no limit
        waiting.append(len(predictor.prepared) - number - 1)

    predictor = QuickPredictor(segmentation_task, before=watch)
    predict_files(predictor, source, tmp_path / "out")
    assert waiting == [1, 1, 1, 1, 1, 0]
    assert threading.current_thread().name not in predictor.threads


def test_the_last_case_is_written_while_the_next_is_predicted(
    segmentation_task: TaskConfig, source: Path, tmp_path: Path
) -> None:
    seen: list[int] = []

    def watch(number: int) -> None:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "out").glob("*.nii.gz"))) < number and time.monotonic() < deadline:
            time.sleep(0.005)
        seen.append(len(list((tmp_path / "out").glob("*.nii.gz"))))

    predict_files(QuickPredictor(segmentation_task, before=watch), source, tmp_path / "out")
    assert seen == [0, 1, 2, 3, 4, 5]


# --- what is kept


def test_what_is_there_is_kept_and_told(quick: QuickPredictor, source: Path, tmp_path: Path) -> None:
    first = predict_files(quick, source, tmp_path / "out")
    assert (first.predicted, first.kept) == (CASES, [])
    before = contents(tmp_path / "out")
    second = predict_files(quick, source, tmp_path / "out")
    assert (second.predicted, second.kept) == (CASES, CASES)
    assert len(quick.predicted) == 6
    assert contents(tmp_path / "out") == before
    for case_id in CASES:
        assert second.entries[case_id] == first.entries[case_id] | {"status": "kept"}


def test_other_models_settings_inputs_and_outputs_are_predicted_again(
    quick: QuickPredictor, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def kept(predictor: QuickPredictor, **options: object) -> list[str]:
        return predict_files(predictor, source, out, options=BatchOptions(**options)).kept

    assert kept(quick) == []
    assert kept(QuickPredictor(quick.task, checkpoint="c" * 64)) == []
    assert kept(quick) == []  # its outputs are those of the other checkpoint now
    assert kept(quick.with_infer(overlap=0.25)) == []
    assert kept(quick) == []
    assert kept(quick, probabilities=(1,)) == []
    assert kept(quick, probabilities=(1,)) == CASES
    assert kept(quick, probabilities=(1,), overwrite=True) == []
    changed = io.read_volume(source / "case_1.nii.gz")
    changed.array[0, 0, 0, 0] += 1
    io.write_volume(changed, source / "case_1.nii.gz")
    (out / "case_2.nii.gz").write_bytes((out / "case_2.nii.gz").read_bytes()[:-1])
    (out / "probabilities" / "case_3_1.nii.gz").unlink()
    os.utime(source / "case_4.nii.gz", (1, 1))  # the same bytes
    assert kept(quick, probabilities=(1,)) == ["case_0", "case_4", "case_5"]
    assert kept(quick, probabilities=(1,)) == CASES


def test_probabilities_lie_in_a_folder_of_their_own(quick: QuickPredictor, source: Path, tmp_path: Path) -> None:
    predict_files(quick, source, tmp_path / "out", options=BatchOptions(probabilities=(2, 0)))
    image = io.read_volume(source / "case_0.nii.gz")
    for value, expected in ((2, image.array < 30), (0, (image.array >= 30) & (image.array <= 70))):
        written = io.read_volume(tmp_path / "out" / "probabilities" / f"case_0_{value}.nii.gz")
        np.testing.assert_array_equal(written.array, expected * np.float32(0.75))
        assert written.grid.is_close(image.grid)
    assert len(io.image_files(tmp_path / "out")) == 6


# --- what is done again


def test_stopped_in_the_middle_it_goes_on_and_ends_as_if_never_stopped(
    quick: QuickPredictor, source: Path, tmp_path: Path
) -> None:
    predict_files(quick, source, tmp_path / "never")

    def interrupt(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(QuickPredictor(quick.task, before=interrupt), source, tmp_path / "out")
    out = tmp_path / "out"
    assert set(contents(out)) == {f"{case}.nii.gz" for case in CASES[:3]}
    # what a kill leaves: a file that is half-written, one whose line is not, and a line that is
    (out / ".tmp-1234-case_3.nii.gz").write_bytes(b"half")
    shutil.copy(tmp_path / "never" / "case_4.nii.gz", out / "case_4.nii.gz")
    lines = journal(out).read_text().splitlines()
    journal(out).write_text("\n".join([*lines[:2], lines[2][: len(lines[2]) // 2]]))
    again = predict_files(quick, source, out)
    assert again.predicted == CASES
    assert again.kept == CASES[:2]
    assert contents(out) == contents(tmp_path / "never")
    assert [json.loads(line)["case_id"] for line in journal(out).read_text().splitlines()] == CASES


def test_a_bad_case_in_the_middle_is_named_and_tried_again(quick: QuickPredictor, source: Path, tmp_path: Path) -> None:
    whole = (source / "case_2.nii.gz").read_bytes()
    (source / "case_2.nii.gz").write_bytes(whole[:700])

    def fail(number: int) -> None:
        if number == 3:
            raise errors.pop(0)

    errors = [MemoryError("12 GB"), ZeroDivisionError("division by zero")]
    summary = predict_files(QuickPredictor(quick.task, before=fail), source, tmp_path / "out")
    assert summary.predicted == ["case_0", "case_1", "case_3"]
    assert list(summary.problems) == ["case_2", "case_4", "case_5"]
    assert "case_2.nii.gz" in summary.problems["case_2"]
    assert summary.problems["case_4"].startswith("out of memory (12 GB); ")
    assert summary.problems["case_5"] == "unexpected ZeroDivisionError: division by zero"
    (source / "case_2.nii.gz").write_bytes(whole)
    again = predict_files(quick, source, tmp_path / "out")
    assert again.kept == ["case_0", "case_1", "case_3"]
    assert not again.problems


def test_a_folder_that_cannot_be_written_ends_the_batch(quick: QuickPredictor, source: Path, tmp_path: Path) -> None:
    def remove(number: int) -> None:
        if number == 1:
            deadline = time.monotonic() + 60
            while "case_0" not in journal(tmp_path / "out").read_text() and time.monotonic() < deadline:
                time.sleep(0.005)
            shutil.rmtree(tmp_path / "out")
            (tmp_path / "out").write_text("in the way")

    predictor = QuickPredictor(quick.task, before=remove)
    with pytest.raises(Medi3dError, match="could not be written"):
        predict_files(predictor, source, tmp_path / "out")
    assert len(predictor.predicted) < 4
    with pytest.raises(Medi3dError, match="could not be written"):
        predict_files(quick, source, tmp_path / "out")


def test_two_processes_do_not_predict_into_one_folder(quick: QuickPredictor, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".medi3d").mkdir(parents=True)
    with (
        atomic.lock(tmp_path / "out" / ".medi3d"),
        pytest.raises(InputError, match=r"another run is writing here .*give another --output"),
    ):
        predict_files(quick, source, tmp_path / "out")


def test_a_batch_asked_to_stop_leaves_the_cases_that_follow(
    quick: QuickPredictor, source: Path, tmp_path: Path
) -> None:
    from medi3d.infer.inputs import list_inputs

    options = BatchOptions()
    with open_batch(quick, tmp_path / "out", raw_source(options), options) as batch:
        jobs = [(case, quick) for case in list_inputs(source, quick.task, None).cases]
        batch.run(jobs, is_stopped=lambda: len(quick.predicted) >= 2)
        assert batch.summary.predicted == CASES[:2]
    assert set(contents(tmp_path / "out")) == {"case_0.nii.gz", "case_1.nii.gz"}


_SLOWLY = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from quick_predictor import QuickPredictor
from medi3d.config import load_task
from medi3d.infer.batch import predict_files
predictor = QuickPredictor(load_task({task!r}), before=lambda number: time.sleep(0.3))
predict_files(predictor, Path({source!r}), Path({output!r}))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_in_the_middle_and_resumed_the_outputs_are_those_of_a_run_never_killed(
    quick: QuickPredictor, source: Path, tiny: Path, tmp_path: Path
) -> None:
    predict_files(quick, source, tmp_path / "never")
    out = tmp_path / "out"
    script = _SLOWLY.format(
        tests=str(Path(__file__).parent), task=str(tiny / "tiny_segmentation.yaml"), source=str(source), output=str(out)
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 180
    while len(contents(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 2 <= len(contents(out)) < 6
    summary = predict_files(quick, source, out)
    assert 1 <= len(summary.kept) < 6
    assert summary.predicted == CASES
    assert contents(out) == contents(tmp_path / "never")
    assert not list(out.glob(".tmp-*"))


def test_an_input_that_is_prepared_already_is_kept_by_its_hash(
    quick: QuickPredictor, tiny: Path, tmp_path: Path
) -> None:
    from medi3d.infer.batch import predict_prepared_cases
    from medi3d.io import PreparedStore

    cases = PreparedStore(tiny / "prepared" / "tiny_segmentation").cases()
    seen: list[PreparedInput] = []
    predictor = QuickPredictor(quick.task)
    plain = predictor.predict_input
    predictor.predict_input = lambda prepared, **more: seen.append(prepared) or plain(prepared, **more)
    assert predict_prepared_cases(predictor, cases, tmp_path / "out").kept == []
    assert predict_prepared_cases(predictor, cases, tmp_path / "out").kept == CASES
    assert seen[0].record.native.is_close(cases[0].record.prepared)
    np.testing.assert_array_equal(seen[0].image.numpy(), np.asarray(cases[0].image()[:]))
