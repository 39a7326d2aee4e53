"""A task with label maps and classes, prepared from one table."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_tasks import write_nodules_task

from medi3d import io
from medi3d.config import TaskConfig, load_task
from medi3d.io import PreparedStore
from medi3d.preprocess import find_raw_cases, prepare_dataset
from medi3d.volume import LabelMap, Volume

AFFINE = np.array([[0, 0, -0.7, 5], [0, -0.9, 0, 6], [2.0, 0, 0, 7], [0, 0, 0, 1.0]])
SHAPE = (6, 15, 20)


@pytest.fixture
def task(tmp_path: Path) -> TaskConfig:
    return load_task(write_nodules_task(tmp_path))


def write_raw(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = ["case_id,patient_id,image,mask,label"]
    for seed, (name, mask, label) in enumerate(rows):
        image = np.random.default_rng(seed).normal(-400, 90, (1, *SHAPE)).astype("f4")
        ball = np.zeros((1, *SHAPE), "u1")
        ball[0, 2:4, 4:9, 5:12] = 1
        io.write_volume(Volume(image, AFFINE), folder / f"{name}.nii.gz")
        io.write_label_map(LabelMap(ball, AFFINE), folder / f"{name}_mask.nii.gz")
        lines.append(f"{name},p{seed},{name}.nii.gz,{mask},{label}")
    (folder / "nodules.csv").write_text("\n".join(lines))
    return folder


ROWS = [
    ("a", "a_mask.nii.gz", "malignant"),
    ("b", "b_mask.nii.gz", ""),
    ("c", "", "benign"),
    ("d", "d_mask.nii.gz", "benign"),
    ("e", "e_mask.nii.gz", "maligant"),
]


def test_a_case_without_a_class_is_prepared_and_one_without_a_label_map_left_out(
    task: TaskConfig, tmp_path: Path
) -> None:
    raw = write_raw(tmp_path / "raw", ROWS)
    summary = prepare_dataset(raw, task, tmp_path / "store")
    assert summary.prepared == ("a", "b", "d")
    assert summary.left_out == 1
    assert [problem.case_id for problem in summary.problems] == ["e"]
    assert "unknown class 'maligant'; did you mean 'malignant'?" in summary.problems[0].message
    store = PreparedStore(tmp_path / "store")
    assert [case.target for case in store.cases()] == [1, None, 0]
    for case in store.cases():
        assert case.label() is not None
        assert set(case.foreground) == {1}
    assert store.fingerprint["class_counts"] == {"benign": 1, "malignant": 1}


def test_a_class_that_is_known_later_prepares_the_case_again(task: TaskConfig, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS[:2])
    prepare_dataset(raw, task, tmp_path / "store")
    write_raw(raw, [ROWS[0], ("b", "b_mask.nii.gz", "benign")])
    assert prepare_dataset(raw, task, tmp_path / "store").prepared == ("b",)
    assert [case.target for case in PreparedStore(tmp_path / "store").cases()] == [1, 0]


def test_for_prediction_neither_is_needed(task: TaskConfig, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", ROWS[:4])
    found = find_raw_cases(raw, task.data, need_label=False)
    assert [case.case_id for case in found.cases] == ["a", "b", "c", "d"]
    assert found.left_out == 0


@pytest.mark.real_data
def test_real_nodules_with_and_without_a_class(
    real_data: Callable[[str], Path], task: TaskConfig, tmp_path: Path
) -> None:
    source = real_data("lung_nodule")
    with (source / "nodules.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    chosen = [row for label in ("benign", "malignant", "") for row in [r for r in rows if r["label"] == label][:4]]
    raw = tmp_path / "raw"
    raw.mkdir()
    with (raw / "nodules.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, **{key: str(source / row[key]) for key in ("image", "mask")}} for row in chosen)
    assert not prepare_dataset(raw, task, tmp_path / "store").problems
    store = PreparedStore(tmp_path / "store")
    expected = {row["case_id"]: {"benign": 0, "malignant": 1, "": None}[row["label"]] for row in chosen}
    assert {case.case_id: case.target for case in store.cases()} == expected
    assert store.fingerprint["class_counts"] == {"benign": 4, "malignant": 4}
    assert all(set(case.foreground) == {1} for case in store.cases())
