"""A task with an ignore label, from raw files to the prepared store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medi3d import io
from medi3d.config import TaskConfig, load_task
from medi3d.errors import InputError
from medi3d.io import PreparedStore
from medi3d.io.record import Record
from medi3d.preprocess import RawCase, prepare_case, prepare_dataset
from medi3d.preprocess.cases.reading import read_cube_center, read_label
from medi3d.preprocess.quality.findings import assess
from medi3d.preprocess.quality.fingerprint import measure_case
from medi3d.preprocess.survey import measure_foreground
from medi3d.volume import LabelMap, Volume

AFFINE = np.array([[-0.8, 0, 0, 5], [0, 0.9, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]])[:, [2, 1, 0, 3]]
SHAPE = (8, 15, 20)
IGNORED = 255
TASK = load_task("hippocampus", overrides={"data.ignore_label": IGNORED, "preprocess.spacing_mm": [2.0, 1.0, 1.0]})


def draw(seed: int = 0) -> tuple[Volume, LabelMap]:
    """Two boxes in noise, every second slice annotated."""
    label = np.zeros((1, *SHAPE), "u1")
    label[0, 2:6, 4:9, 5:12] = 1
    label[0, 2:6, 9:12, 5:12] = 2
    label[0, ::2] = IGNORED
    image = np.random.default_rng(seed).normal(50, 9, (1, *SHAPE)).astype("f4")
    image[0][label[0] == IGNORED] += 1000
    return Volume(image, AFFINE), LabelMap(label, AFFINE)


def save(folder: Path, name: str = "a", *, label: np.ndarray | None = None, seed: int = 0) -> RawCase:
    image, drawn = draw(seed)
    paths = folder / f"imagesTr/{name}.nii.gz", folder / f"labelsTr/{name}.nii.gz"
    io.write_volume(image, paths[0])
    io.write_label_map(drawn if label is None else LabelMap(label, AFFINE), paths[1])
    return RawCase(name, name, (paths[0],), label=paths[1])


def test_the_prepared_label_map_keeps_it_and_nothing_takes_it_for_foreground(tmp_path: Path) -> None:
    save(tmp_path / "raw")
    assert not prepare_dataset(tmp_path / "raw", TASK, tmp_path / "store").problems
    store = PreparedStore(tmp_path / "store")
    (case,) = store.cases()
    stored = case.label()
    assert stored is not None
    values, counts = np.unique(stored[:], return_counts=True)
    assert values.tolist() == [0, 1, 2, IGNORED]
    assert counts[-1] == pytest.approx(stored.size / 2, rel=0.2)
    assert set(case.foreground) == {1, 2}
    background = case.annotated_background
    assert background is not None
    assert (stored[:][0][tuple(background.T)] == 0).all()
    assert set(case.statistics["labels"]) == {"1", "2"}
    assert case.statistics["annotated"] == 0.5
    assert case.statistics["labels"]["1"]["voxels"] == 2 * 5 * 7
    assert max(case.statistics["labels"]["1"]["means"]) < 100  # of annotated voxels only
    assert set(store.fingerprint["labels"]) == {"anterior", "posterior"}
    assert "1 of 1 cases are annotated in part, 50% of their voxels" in store.quality["notes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: 9}, r"unknown label values 9; data\.labels knows 0, 1, 2, data\.ignore_label is 255"),
        ({1: 0, 2: 0}, "the label map is all background"),
        (
            {0: IGNORED, 1: IGNORED, 2: IGNORED},
            r"every voxel holds data\.ignore_label \(255\), so it annotates nothing",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[int, int], message: str) -> None:
    image, label = draw()
    array = label.array.copy()
    for old, new in change.items():
        array[label.array == old] = new
    raw = save(tmp_path, label=array)
    with pytest.raises(InputError, match=message):
        read_label(raw, image.grid, TASK)


def test_without_an_ignore_label_the_value_is_unknown(tmp_path: Path) -> None:
    raw = save(tmp_path)
    with pytest.raises(InputError, match=r"unknown label values 255; data\.labels knows 0, 1, 2$"):
        read_label(raw, draw()[0].grid, load_task("hippocampus"))


def test_annotated_background_alone_is_allowed_where_empty_labels_are(tmp_path: Path) -> None:
    image, label = draw()
    raw = save(tmp_path, label=np.where(label.array == IGNORED, IGNORED, 0).astype("u1"))
    task = replace(TASK, data=replace(TASK.data, allow_empty_labels=True))
    found = read_label(raw, image.grid, task)
    assert found is not None
    assert set(np.unique(found.array)) == {0, IGNORED}
    _, prepared, _ = prepare_case(raw, task)
    assert prepared is not None
    assert set(np.unique(prepared.array)) == {0, IGNORED}


def test_intensities_of_the_data_set_are_those_of_annotated_labels(tmp_path: Path) -> None:
    raw = save(tmp_path)
    image, label = draw()
    voxels = measure_foreground(raw, TASK)
    expected = image.array[0][(label.array[0] > 0) & (label.array[0] != IGNORED)]
    np.testing.assert_allclose(np.sort(voxels[0]), np.sort(expected), rtol=1e-6)


def test_a_cube_is_cut_around_what_is_labelled(tmp_path: Path) -> None:
    raw = save(tmp_path)
    task = replace(TASK, preprocess=replace(TASK.preprocess, crop="cube"))
    image, label = draw()
    inside = np.argwhere((label.array[0] > 0) & (label.array[0] != IGNORED))
    expected = image.grid.index_to_world(inside.mean(axis=0))
    np.testing.assert_allclose(read_cube_center(raw, image.grid, task), expected, rtol=1e-6)
    mask = LabelMap(np.full((1, *SHAPE), IGNORED, "u1"), AFFINE)
    io.write_label_map(mask, tmp_path / "center.nii.gz")  # a mask of its own is no label map
    middle = read_cube_center(replace(raw, center=tmp_path / "center.nii.gz"), image.grid, task)
    np.testing.assert_allclose(middle, image.grid.index_to_world((np.array(SHAPE) - 1) / 2), atol=1e-6)


def test_another_ignore_label_prepares_anew(tmp_path: Path) -> None:
    save(tmp_path / "raw")
    task = replace(TASK, data=replace(TASK.data, labels={1: "a", 2: "b"}))
    assert prepare_dataset(tmp_path / "raw", task, tmp_path / "store").prepared == ("a",)
    assert prepare_dataset(tmp_path / "raw", task, tmp_path / "store").prepared == ()
    other = replace(task, data=replace(task.data, ignore_label=254))
    assert (
        "unknown label values 255" in prepare_dataset(tmp_path / "raw", other, tmp_path / "store").problems[0].message
    )


def describe(number: int, *, annotated: bool, labels: tuple[int, ...] = (1, 2)) -> io.PreparedCase:
    image, _ = draw(number)
    label = np.zeros((1, *SHAPE), "u1")
    for value in labels:
        label[0, 2:6, 4 + 4 * value : 7 + 4 * value, 5:12] = value
    if not annotated:
        label[0, 3:] = IGNORED
    statistics = measure_case(image, LabelMap(label, AFFINE), ignore_label=IGNORED)
    for values in statistics["labels"].values():
        values["prepared_voxels"] = values["voxels"]
    record = Record(image.grid, image.grid)
    return io.PreparedCase(Path(f"{number}"), f"{number}", f"{number}", None, record, "", statistics)


def test_rules_that_compare_labels_leave_out_cases_that_are_annotated_in_part() -> None:
    """A label in one annotated slice of ten is neither small nor, where it is absent, missing."""
    whole = [describe(number, annotated=True) for number in range(20)]
    partial = replace(describe(20, annotated=False), case_id="partial")
    lacking = replace(describe(21, annotated=False, labels=(1,)), case_id="lacking")
    kinds = {found["case_id"]: found["findings"] for found in assess([*whole, partial, lacking], TASK)["cases"]}
    assert not {"partial", "lacking"} & set(kinds)
    odd = replace(describe(22, annotated=True, labels=(1,)), case_id="odd")
    kinds = {found["case_id"]: found["findings"] for found in assess([*whole, odd], TASK)["cases"]}
    assert [finding["kind"] for finding in kinds["odd"]] == ["missing label"]


@pytest.mark.real_data
def test_real_hippocampi_with_half_of_the_slices(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source, raw = real_data("hippocampus"), tmp_path / "raw"
    for path in sorted((source / "labelsTr").glob("hip*"))[:10]:
        label = io.read_label_map(path)
        array = label.array.copy()
        array[0, ::2] = IGNORED
        io.write_label_map(LabelMap(array, label.affine), raw / "labelsTr" / path.name)
        (raw / "imagesTr").mkdir(exist_ok=True)
        shutil.copy(source / "imagesTr" / path.name, raw / "imagesTr" / path.name)
    task: TaskConfig = load_task("hippocampus", overrides={"data.ignore_label": IGNORED})
    assert not prepare_dataset(raw, task, tmp_path / "sparse").problems
    store = PreparedStore(tmp_path / "sparse")
    assert not store.quality["cases"]
    for case in store.cases():
        stored, background = case.label(), case.annotated_background
        assert stored is not None
        assert background is not None
        array = stored[:][0]
        assert (array == IGNORED).mean() == pytest.approx(0.5, abs=0.03)
        assert set(case.foreground) == {1, 2}
        assert (array[tuple(background.T)] == 0).all()
