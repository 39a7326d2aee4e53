from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medi3d.errors import InputError
from medi3d.io import PreparedCase, PreparedStore, Record, foreground, prepared, write_case
from medi3d.io.prepared import ArraySlabs
from medi3d.volume import Grid, Volume

AFFINE = np.array([[0.0, 0.1, -0.8, 1 / 3], [0, -0.9, 0.1, 6], [2.5, 0, 0, 7], [0, 0, 0, 1]])
SHAPE = (40, 70, 90)


def make(store: Path, case_id: str = "a") -> tuple[PreparedCase, ArraySlabs, ArraySlabs]:
    rng = np.random.default_rng(3)
    image = Volume(rng.normal(size=(2, *SHAPE)).astype("f4"), AFFINE)
    label = np.zeros((1, *SHAPE), "uint8")
    label[0, 5:30, 10:60, 7:80] = 1
    label[0, 12, 13, 14] = 3
    record = Record(Grid((5, 6, 7), np.diag([3.0, 2.0, 1.0, 1.0])), image.grid, ({"step": "orient", "to": "SPL"},))
    case = PreparedCase(prepared.case_folder(store, case_id), case_id, "0123456789ab", 1, record, "hash", {"n": 1.5})
    return case, ArraySlabs(image.array), ArraySlabs(label)


def test_a_case_comes_back_bit_for_bit(tmp_path: Path) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, label)
    again = prepared.read_case(case.folder)
    assert (again.case_id, again.group, again.target, again.content_hash) == ("a", "0123456789ab", 1, "hash")
    assert again.shape == SHAPE
    assert again.statistics == {"n": 1.5}
    np.testing.assert_array_equal(again.record.prepared.affine, AFFINE)
    assert again.record.native.shape == (5, 6, 7)
    assert again.record.steps == case.record.steps
    np.testing.assert_array_equal(again.image()[:], image.array)
    assert again.image().dtype == np.float32
    stored = again.label()
    assert stored is not None
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored[0, 3:20, 5:66, 60:90], label.array[0, 3:20, 5:66, 60:90])


def test_a_patch_reads_only_its_chunks(tmp_path: Path) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, label)
    assert prepared.read_case(case.folder).image().chunks == (1, 40, 64, 64)


def test_foreground_samples_are_voxels_of_their_label(tmp_path: Path) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, label)
    found = prepared.read_case(case.folder).foreground
    assert set(found) == {1, 3}
    np.testing.assert_array_equal(found[3], [[12, 13, 14]])
    assert found[1].shape == (foreground.MAX_SAMPLES, 3)
    assert len(np.unique(found[1], axis=0)) == foreground.MAX_SAMPLES
    assert (label.array[0][tuple(found[1].T)] == 1).all()
    np.testing.assert_allclose(found[1].mean(axis=0), [17, 34.5, 43], atol=2)


def test_ignored_voxels_are_not_sampled_and_annotated_background_is(tmp_path: Path) -> None:
    case, image, label = make(tmp_path)
    sparse = label.array.copy()
    sparse[0, np.arange(SHAPE[0]) % 4 != 1] = 200
    write_case(case, image, ArraySlabs(sparse), ignore_label=200)
    again = prepared.read_case(case.folder)
    assert set(again.foreground) == {1}  # label 3 lay in a slice that is ignored
    background = again.annotated_background
    assert background is not None
    assert len(np.unique(background, axis=0)) == foreground.MAX_SAMPLES
    assert (sparse[0][tuple(background.T)] == 0).all()
    assert set(background[:, 0].tolist()) == set(range(1, SHAPE[0], 4))  # every annotated slice
    write_case(case, image, ArraySlabs(sparse), ignore_label=None)
    assert set(prepared.read_case(case.folder).foreground) == {1, 200}


def test_background_is_sampled_only_where_voxels_are_ignored(tmp_path: Path) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, label, ignore_label=200)
    assert prepared.read_case(case.folder).annotated_background is None
    scribble = np.full_like(label.array, 200)
    scribble[0, 12, 13, 14:20] = 1
    write_case(case, image, ArraySlabs(scribble), ignore_label=200)
    again = prepared.read_case(case.folder)
    assert again.annotated_background is None
    np.testing.assert_array_equal(again.foreground[1], [[12, 13, w] for w in range(14, 20)])


def test_without_label(tmp_path: Path) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, None)
    assert prepared.read_case(case.folder).label() is None
    assert prepared.read_case(case.folder).foreground == {}
    write_case(case, image, ArraySlabs(np.zeros_like(label.array)))
    assert prepared.read_case(case.folder).foreground == {}


@pytest.mark.parametrize("value", [-1, 256])
def test_labels_must_fit(tmp_path: Path, value: int) -> None:
    case, image, label = make(tmp_path)
    wrong = label.array.astype("int16")
    wrong[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"case a: prepared label values must lie in 0\.\.255"):
        write_case(case, image, ArraySlabs(wrong))


def test_a_killed_write_leaves_the_old_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, label)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "sample_foreground", killed)
    with pytest.raises(KeyboardInterrupt):
        write_case(replace(case, content_hash="new"), image, label)
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["a"]
    assert prepared.read_case(case.folder).content_hash == "hash"


def test_a_killed_swap_is_no_half_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, label)
    moves = iter([True, False])
    move = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if next(moves):
            return move(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_case(replace(case, content_hash="new"), image, label)
    monkeypatch.undo()
    assert prepared.stored_hash(case.folder) in (None, "hash")
    with prepared.open_for_writing(tmp_path, {}):
        pass
    assert not list((tmp_path / "cases").glob(".*"))


def finish(store: Path, *case_ids: str) -> None:
    dataset = {"task": {"name": "t"}, "cases": list(case_ids), "fingerprint_hash": "f00d"}
    prepared.finish(store, dataset=dataset, fingerprint={"cases": len(case_ids)}, quality={"n": 1})


def test_store_lists_its_cases_sorted_and_no_others(tmp_path: Path) -> None:
    with prepared.open_for_writing(tmp_path, {}):
        for case_id in ("c", "a", "b"):
            write_case(*make(tmp_path, case_id))
        finish(tmp_path, "c", "a")
    store = PreparedStore(tmp_path)
    assert [case.case_id for case in store.cases()] == ["a", "c"]
    assert store.task_values == {"name": "t"}
    assert store.fingerprint_hash == "f00d"
    assert store.fingerprint == {"cases": 2}
    assert store.quality == {"n": 1}
    assert prepared.stored_case_ids(tmp_path) == ["a", "b", "c"]


def test_a_case_that_a_killed_process_had_not_yet_named_is_none(tmp_path: Path) -> None:
    with prepared.open_for_writing(tmp_path, {}):
        write_case(*make(tmp_path, "a"))
        write_case(*make(tmp_path, "b"))
    (tmp_path / "cases" / "b").rename(tmp_path / "cases" / ".tmp-b")
    assert prepared.stored_case_ids(tmp_path) == ["a"]


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished prepared data here; run `medi3d preprocess`"):
        PreparedStore(tmp_path)
    finish(tmp_path)
    assert PreparedStore(tmp_path).cases() == []
    with prepared.open_for_writing(tmp_path, {"name": "t"}):
        assert PreparedStore(tmp_path).cases() == []
    with (
        prepared.open_for_writing(tmp_path, {"name": "other"}),
        pytest.raises(InputError, match="no finished prepared data"),
    ):
        PreparedStore(tmp_path)


def test_damaged_stores_say_what_to_do(tmp_path: Path) -> None:
    with prepared.open_for_writing(tmp_path, {}):
        write_case(*make(tmp_path, "a"))
        finish(tmp_path, "a", "gone")
    with pytest.raises(InputError, match="gone: this prepared case is missing"):
        PreparedStore(tmp_path).cases()
    case = tmp_path / "cases" / "a" / "case.json"
    case.write_text("{}")
    with pytest.raises(InputError, match="not the description of a prepared case"):
        prepared.read_case(case.parent)
    case.write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object"):
        prepared.read_case(case.parent)
    case.write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        prepared.read_case(case.parent)
    assert prepared.stored_hash(case.parent) is None
    dataset = json.loads((tmp_path / "dataset.json").read_text()) | {"format": 0}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(InputError, match="prepared with format 0, this medi3d reads 2"):
        PreparedStore(tmp_path)


def test_a_damaged_array_says_what_to_do(tmp_path: Path) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, label)
    (case.folder / "image.b2nd").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"image\.b2nd: unreadable prepared array"):
        case.image()
    (case.folder / "foreground.npy").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"foreground\.npy: unreadable prepared array"):
        _ = prepared.read_case(case.folder).foreground


def test_record_survives_json() -> None:
    record = Record(
        Grid((3, 4, 5), AFFINE), Grid((6, 7, 8), np.diag([1 / 3, 0.1, 0.7, 1])), ({"step": "x", "v": [1.5]},)
    )
    again = Record.from_json(json.loads(json.dumps(record.to_json())))
    for ours, theirs in ((again.native, record.native), (again.prepared, record.prepared)):
        assert ours.shape == theirs.shape
        np.testing.assert_array_equal(ours.affine, theirs.affine)
    assert again.steps == record.steps


class Recorded(ArraySlabs):
    """Notes which slabs are asked for."""

    asked: list[tuple[int, int]]

    def slab(self, start: int, stop: int) -> np.ndarray:
        self.asked.append((start, stop))
        return super().slab(start, stop)


@pytest.mark.parametrize("layer_voxels", [2**20, 9 * 21 * 33, 1])
def test_slabs_are_asked_for_in_order_and_once_and_give_the_same_as_a_whole_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer_voxels: int
) -> None:
    monkeypatch.setattr(foreground, "_LAYER_VOXELS", layer_voxels)
    rng = np.random.default_rng(5)
    image = Recorded(rng.normal(size=(2, 150, 21, 33)).astype("f8"))
    label = Recorded(rng.choice([0, 1, 5], (1, 150, 21, 33), p=[0.6, 0.399, 0.001]).astype("i4"))
    for slabs in (image, label):
        object.__setattr__(slabs, "asked", [])
    record = Record(Grid((5, 6, 7), np.eye(4)), Grid((150, 21, 33), np.eye(4)))
    case = PreparedCase(prepared.case_folder(tmp_path, "a"), "a", "0" * 12, None, record, "hash", {})
    write_case(case, image, label)
    assert image.asked == label.asked == [(0, 64), (64, 128), (128, 150)]
    again = prepared.read_case(case.folder)
    np.testing.assert_array_equal(again.image()[:], image.array.astype("f4"))
    assert again.image().chunks == (1, 64, 21, 33)
    stored = again.label()
    assert stored is not None
    np.testing.assert_array_equal(stored[:], label.array)
    for value, found in again.foreground.items():
        everywhere = np.argwhere(label.array[0] == value)
        rng = np.random.default_rng(0)
        if value == 1:  # as drawn from the whole array at once
            everywhere = everywhere[np.sort(rng.choice(len(everywhere), foreground.MAX_SAMPLES, replace=False))]
        np.testing.assert_array_equal(found, everywhere)


def test_a_case_cut_short_by_a_power_failure_is_not_whole(tmp_path: Path) -> None:
    case, image, label = make(tmp_path)
    write_case(case, image, label)
    assert prepared.stored_hash(case.folder) == "hash"
    stored = case.folder / "label.b2nd"
    stored.write_bytes(stored.read_bytes()[:-1])
    assert prepared.stored_hash(case.folder) is None
    stored.unlink()
    assert prepared.stored_hash(case.folder) is None
