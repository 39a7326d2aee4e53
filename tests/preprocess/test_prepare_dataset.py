from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medi3d import io
from medi3d.config import PreprocessConfig, TaskConfig, load_task
from medi3d.errors import InputError, MissingDependencyError
from medi3d.io import PreparedStore, prepared
from medi3d.preprocess import prepare_dataset
from medi3d.preprocess.scheduling import executors, jobs
from medi3d.volume import LabelMap, Volume

AFFINE = np.array([[-0.8, 0, 0, 5], [0, 0.9, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]])[:, [2, 1, 0, 3]]
SHAPE = (6, 15, 20)
TASK = load_task("hippocampus")


def make_case(raw: Path, name: str, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    label = np.zeros((1, *SHAPE), "uint8")
    label[0, 2:4, 4:9, 5:12] = 1
    label[0, 2:4, 9:12, 5:12] = 2
    io.write_volume(Volume(rng.normal(50, 9, (1, *SHAPE)).astype("f4"), AFFINE), raw / f"imagesTr/{name}.nii.gz")
    io.write_label_map(LabelMap(label, AFFINE), raw / f"labelsTr/{name}.nii.gz")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for seed, name in enumerate(["a", "b", "c"]):
        make_case(tmp_path / "raw", name, seed)
    return tmp_path / "raw"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def spoil(raw: Path, name: str, how: str) -> str:
    """Spoil one case; return what its message must say."""
    image, label = raw / f"imagesTr/{name}.nii.gz", raw / f"labelsTr/{name}.nii.gz"
    volume, mask = io.read_volume(image), io.read_label_map(label)
    if how == "truncated":
        image.write_bytes(image.read_bytes()[:-50])
        return "damaged gzip"
    if how == "flipped bit":
        content = bytearray(image.read_bytes())
        content[len(content) // 2] ^= 1
        image.write_bytes(content)
        return "damaged gzip"
    if how == "no label":
        label.unlink()
        return "has no label"
    if how == "shape":
        io.write_label_map(LabelMap(mask.array[:, 1:], AFFINE), label)
        return "disagree"
    if how == "affine":
        io.write_label_map(LabelMap(mask.array, np.diag([1.0, 1, 1, 1])), label)
        return "affines disagree"
    if how == "nan":
        array = volume.array.copy()
        array[0, 1, 2, 3] = np.nan
        io.write_volume(Volume(array, AFFINE), image)
        return "1 of 1800 voxels are NaN or infinite"
    if how == "unknown label":
        io.write_label_map(LabelMap(mask.array * 4, AFFINE), label)
        return "unknown label values 4, 8"
    if how == "channels":
        io.write_volume(Volume(np.concatenate([volume.array] * 2), AFFINE), image)
        return "expected 1 channel"
    image.write_bytes(b"")
    return "the file is empty"


@pytest.mark.parametrize(
    "how",
    ["truncated", "flipped bit", "no label", "shape", "affine", "nan", "unknown label", "channels", "empty file"],
)
def test_a_bad_case_is_one_line_and_the_others_go_on(raw: Path, store: Path, how: str) -> None:
    expected = spoil(raw, "b", how)
    summary = prepare_dataset(raw, TASK, store)
    assert summary.prepared == ("a", "c")
    assert [problem.case_id for problem in summary.problems] == ["b"]
    assert expected in summary.problems[0].message
    assert "b.nii.gz" in summary.problems[0].message
    assert "\n" not in summary.problems[0].message
    assert [case.case_id for case in PreparedStore(store).cases()] == ["a", "c"]
    assert sorted(path.name for path in (store / "cases").iterdir()) == ["a", "c"]


def test_missing_raw_data_touches_nothing(tmp_path: Path, raw: Path, store: Path) -> None:
    prepare_dataset(raw, TASK, store)
    with pytest.raises(InputError, match=r"does not exist; expected .*medicaldecathlon.*`medi3d demo`"):
        prepare_dataset(tmp_path / "absent", TASK, store)
    assert len(PreparedStore(store).cases()) == 3


def test_progress_counts_every_case(raw: Path, store: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare_dataset(raw, TASK, store, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_only_what_changed_is_prepared_again(raw: Path, store: Path) -> None:
    prepare_dataset(raw, TASK, store)
    first = PreparedStore(store).fingerprint_hash
    again = prepare_dataset(raw, TASK, store)
    assert (again.prepared, again.skipped) == ((), ("a", "b", "c"))
    assert PreparedStore(store).fingerprint_hash == first
    make_case(raw, "b", seed=99)
    make_case(raw, "d", seed=5)
    again = prepare_dataset(raw, TASK, store)
    assert (again.prepared, again.skipped) == (("b", "d"), ("a", "c"))
    assert PreparedStore(store).fingerprint_hash != first
    assert prepare_dataset(raw, TASK, store, overwrite=True).prepared == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("change", "prepares"),
    [
        ({"preprocess": PreprocessConfig(spacing_mm=(2.0, 1.0, 1.0))}, 3),
        ({"description": "another text"}, 0),
        ({"train": replace(TASK.train, steps=7)}, 0),
    ],
)
def test_settings_that_matter(raw: Path, store: Path, change: dict[str, object], prepares: int) -> None:
    prepare_dataset(raw, TASK, store)
    assert len(prepare_dataset(raw, replace(TASK, **change), store).prepared) == prepares  # type: ignore[arg-type]


def test_a_case_that_left_the_raw_data_is_kept_but_not_used(raw: Path, store: Path) -> None:
    prepare_dataset(raw, TASK, store)
    (raw / "imagesTr/b.nii.gz").unlink()
    (raw / "labelsTr/b.nii.gz").unlink()
    summary = prepare_dataset(raw, TASK, store)
    assert summary.stale == ("b",)
    assert [case.case_id for case in PreparedStore(store).cases()] == ["a", "c"]
    assert (store / "cases" / "b" / "case.json").is_file()


def test_a_case_gone_bad_is_not_used_any_more(raw: Path, store: Path) -> None:
    prepare_dataset(raw, TASK, store)
    spoil(raw, "a", "nan")
    summary = prepare_dataset(raw, TASK, store)
    assert [case.case_id for case in PreparedStore(store).cases()] == ["b", "c"]
    assert summary.stale == ("a",)


def test_interrupted_then_resumed(raw: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = prepared._write_slabs

    def interrupt(slabs: prepared.Slabs, path: Path, *args: object, **options: object) -> object:
        if path.parent.name.endswith("-b"):
            raise KeyboardInterrupt
        return write(slabs, path, *args, **options)

    monkeypatch.setattr(prepared, "_write_slabs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(raw, TASK, store)
    monkeypatch.undo()
    assert [path.name for path in (store / "cases").iterdir()] == ["a"]
    with pytest.raises(InputError, match="no finished prepared data"):
        PreparedStore(store)
    (store / "cases" / ".tmp-killed-x").mkdir()
    summary = prepare_dataset(raw, TASK, store)
    assert (summary.prepared, summary.skipped) == (("b", "c"), ("a",))
    assert sorted(path.name for path in (store / "cases").iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("same", [True, False])
def test_interrupting_a_second_run(raw: Path, store: Path, same: bool) -> None:
    """Same settings: what was there stays readable. Other settings: no one may read a mixture."""
    prepare_dataset(raw, TASK, store)
    make_case(raw, "a", seed=77)
    make_case(raw, "b", seed=78)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    other = replace(TASK, preprocess=PreprocessConfig(spacing_mm=(2.0, 1.0, 1.0)))
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(raw, TASK if same else other, store, on_progress=interrupt)
    if same:
        assert all(np.isfinite(case.image()[:]).all() for case in PreparedStore(store).cases())
    else:
        with pytest.raises(InputError, match="no finished prepared data"):
            PreparedStore(store)


def test_a_bug_in_one_case_does_not_stop_the_others(raw: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = jobs.open_case

    def buggy(case: jobs.RawCase, task: TaskConfig, *, scratch: Path | None) -> object:
        if case.case_id == "b":
            raise ZeroDivisionError("oh\nno")
        return prepare(case, task, scratch=scratch)

    monkeypatch.setattr(jobs, "open_case", buggy)
    summary = prepare_dataset(raw, TASK, store)
    assert summary.prepared == ("a", "c")
    assert summary.problems[0].message.endswith("unexpected ZeroDivisionError: oh no")


def test_all_bad_leaves_an_unfinished_store(raw: Path, store: Path) -> None:
    for name in "abc":
        spoil(raw, name, "empty file")
    assert len(prepare_dataset(raw, TASK, store).problems) == 3
    with pytest.raises(InputError, match="no finished prepared data"):
        PreparedStore(store)


def test_processes_do_what_one_does(raw: Path, store: Path, tmp_path: Path) -> None:
    spoil(raw, "b", "nan")
    one = prepare_dataset(raw, TASK, store)
    many = prepare_dataset(raw, TASK, tmp_path / "other", workers=2)
    assert one == many
    for first, second in zip(PreparedStore(store).cases(), PreparedStore(tmp_path / "other").cases(), strict=True):
        np.testing.assert_array_equal(first.image()[:], second.image()[:])
        assert first.content_hash == second.content_hash


def test_the_case_that_kills_its_worker_is_named_and_the_others_go_on(
    raw: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = jobs.open_case

    def greedy(case: jobs.RawCase, task: TaskConfig, *, scratch: Path | None) -> object:
        if case.case_id == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(case, task, scratch=scratch)

    monkeypatch.setattr(executors, "start_method", lambda: "fork")  # the patch above is seen by a fork only
    monkeypatch.setattr(jobs, "open_case", greedy)
    summary = prepare_dataset(raw, TASK, store, workers=2)
    assert summary.prepared == ("a", "c")
    assert [problem.case_id for problem in summary.problems] == ["b"]
    assert "was killed twice, most likely for lack of memory" in summary.problems[0].message
    assert sorted(path.name for path in (store / "cases").iterdir()) == ["a", "c"]


def test_a_case_is_new_though_its_process_was_killed_when_it_had_just_been_written(
    raw: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, died = prepared.write_case, tmp_path / "died"

    def write_and_die(case: prepared.PreparedCase, *args: object, **settings: object) -> None:
        write(case, *args, **settings)  # type: ignore[arg-type]
        if case.case_id == "c" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(executors, "start_method", lambda: "fork")
    monkeypatch.setattr(prepared, "write_case", write_and_die)
    summary = prepare_dataset(raw, TASK, store, workers=2)
    assert died.exists()
    assert (summary.prepared, summary.skipped, summary.problems) == (("a", "b", "c"), (), ())


@pytest.mark.parametrize("workers", [1, 2])
def test_cases_beyond_the_memory_budget_are_mapped_from_disk_and_come_out_the_same(
    raw: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    prepare_dataset(raw, TASK, store)
    folders: list[Path | None] = []
    prepare = jobs.open_case

    def watched(case: jobs.RawCase, task: TaskConfig, *, scratch: Path | None) -> object:
        folders.append(scratch)
        return prepare(case, task, scratch=scratch)

    monkeypatch.setattr(jobs, "open_case", watched)
    monkeypatch.setattr(executors, "start_method", lambda: "fork")
    other, scratch = tmp_path / "other", tmp_path / "scratch"
    scratch.mkdir()
    summary = prepare_dataset(raw, TASK, other, workers=workers, memory_bytes=1000, scratch=scratch)
    assert summary.prepared == ("a", "b", "c")
    if workers == 1:
        assert all(folder is not None and folder.parent == scratch for folder in folders)
        assert len(folders) == 3
    assert not list(scratch.iterdir())
    for path in store.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (other / path.relative_to(store)).read_bytes(), path


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_does_what_one_process_does(raw: Path, store: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    spoil(raw, "b", "nan")
    one = prepare_dataset(raw, TASK, store)
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        many = prepare_dataset(raw, TASK, tmp_path / "other", scheduler=cluster.scheduler_address)
    assert one == many
    for path in store.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "other" / path.relative_to(store)).read_bytes(), path


def test_a_scheduler_without_dask_names_the_extra(raw: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'medi3d\[dask\]'"):
        prepare_dataset(raw, TASK, store, scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("what", ["median", "dataset"])
def test_what_is_measured_on_all_cases_is_kept_as_numbers(raw: Path, store: Path, tmp_path: Path, what: str) -> None:
    change = {"spacing_mm": "median"} if what == "median" else {"normalize": ("dataset",)}
    task = replace(TASK, preprocess=replace(TASK.preprocess, **change))
    prepare_dataset(raw, task, store)
    kept = PreparedStore(store).task_values["preprocess"]
    if what == "median":
        assert kept["spacing_mm"] == pytest.approx([2.0, 0.9, 0.8], rel=1e-5)
    else:
        ((low, high, mean, std),) = kept["dataset_intensities"]
        assert low < mean < high
        assert 5 < std < 13
    assert prepare_dataset(raw, task, store).prepared == ()
    many = prepare_dataset(raw, task, tmp_path / "other", workers=2)
    assert many.prepared == ("a", "b", "c")
    assert PreparedStore(tmp_path / "other").task_values["preprocess"] == kept


def test_fingerprint(raw: Path, store: Path) -> None:
    prepare_dataset(raw, TASK, store)
    fingerprint = PreparedStore(store).fingerprint
    assert fingerprint["cases"] == fingerprint["groups"] == 3
    assert fingerprint["native_spacing_mm"]["median"] == pytest.approx([2.0, 0.9, 0.8], rel=1e-5)
    assert fingerprint["native_shape"]["max"] == list(SHAPE)
    assert fingerprint["native_orientations"] == {"SAL": 3}
    intensities = nib.load(raw / "imagesTr/a.nii.gz").get_fdata()
    low, high = (fingerprint["channels"]["T1"]["percentiles"][key][2] for key in ("min", "max"))
    assert low <= np.median(intensities) <= high
    ml = 2 * 5 * 7 * 2.0 * 0.9 * 0.8 / 1000
    assert fingerprint["labels"]["anterior"]["volume_ml"]["median"] == pytest.approx(ml, rel=1e-5)
    assert fingerprint["labels"]["posterior"]["cases"] == 3


# --- classification by table


def make_table(raw: Path) -> TaskConfig:
    lines = ["case_id,patient_id,image,mask,label"]
    for seed, (name, patient, label) in enumerate(
        [("n1", "Smith", "benign"), ("n2", "Smith", "malignant"), ("n3", "Doe", "")]
    ):
        make_case(raw, name, seed)
        lines.append(f"{name},{patient},imagesTr/{name}.nii.gz,labelsTr/{name}.nii.gz,{label}")
    (raw / "nodules.csv").write_text("\n".join(lines))
    return load_task("lung_nodule")


def test_classification_and_the_privacy_of_patients(tmp_path: Path, store: Path) -> None:
    task = make_table(tmp_path / "table")
    summary = prepare_dataset(tmp_path / "table", task, store)
    assert summary.prepared == ("n1", "n2")
    assert summary.left_out == 1
    first, second = PreparedStore(store).cases()
    assert (first.target, second.target) == (0, 1)
    assert first.group == second.group
    assert len(first.group) == 12
    assert first.shape == (32, 32, 32)
    assert PreparedStore(store).fingerprint["class_counts"] == {"benign": 1, "malignant": 1}
    for file in store.rglob("*.json"):
        assert "Smith" not in file.read_text()
    written = json.loads((store / "dataset.json").read_text())
    assert written["classes"] == ["benign", "malignant"]


def test_a_changed_class_is_prepared_again(tmp_path: Path, store: Path) -> None:
    raw = tmp_path / "table"
    task = make_table(raw)
    prepare_dataset(raw, task, store)
    table = raw / "nodules.csv"
    table.write_text(table.read_text().replace("benign", "malignant"))
    assert prepare_dataset(raw, task, store).prepared == ("n1",)
