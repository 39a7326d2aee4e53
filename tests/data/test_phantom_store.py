from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_tasks import make_phantom_task, make_two_class_phantom_task

from medi3d.config import TaskConfig
from medi3d.data.phantom_store import write_prepared_phantom
from medi3d.errors import ConfigError
from medi3d.io.prepared import PreparedStore


def make_task(**data: object) -> TaskConfig:
    return make_phantom_task(channels=["T1", "T2"], **data)


def test_a_store_reads_like_one_that_was_prepared(tmp_path: Path) -> None:
    task = make_task(layout="csv", classes=["no", "yes"], columns={"label": "label", "target": "class"})
    shapes = ((9, 14, 11), (12, 10, 13))
    written = write_prepared_phantom(tmp_path, task, cases=3, shapes=shapes)
    store = PreparedStore(tmp_path)
    cases = store.cases()
    assert (
        [case.case_id for case in cases] == [case.case_id for case in written] == ["case_000", "case_001", "case_002"]
    )
    assert [case.shape for case in cases] == [shapes[0], shapes[1], shapes[0]]
    assert [case.target for case in cases] == [0, 1, 0]
    assert store.task_values["data"]["labels"] == {"1": "one", "2": "two", "3": "three"}
    assert store.fingerprint["cases"] == 3
    for case in cases:
        label = case.label()
        assert label is not None
        assert case.image().shape == (2, *case.shape)
        assert case.image().dtype == np.float32
        assert set(np.unique(label[:])) == {0, 1, 2, 3}
        assert set(case.foreground) == {1, 2, 3}


def test_labels_can_be_told_by_their_brightness(tmp_path: Path) -> None:
    (case,) = write_prepared_phantom(tmp_path, make_task(), cases=1, shapes=((24, 30, 27),))
    image, label = case.image()[:], case.label()[:][0]  # type: ignore[index]
    means = [image[0][label == value].mean() for value in range(4)]
    assert np.argsort(means).tolist() == [3, 1, 0, 2]


def test_one_seed_gives_one_store(tmp_path: Path) -> None:
    def voxels(name: str, seed: int) -> list[np.ndarray]:
        cases = write_prepared_phantom(tmp_path / name, make_task(), cases=2, seed=seed)
        return [case.image()[:] for case in cases]

    first, again, other = voxels("a", 1), voxels("b", 1), voxels("c", 2)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0].ravel()[:50], first[1].ravel()[:50])


def test_a_rare_label_lies_in_its_share_of_the_cases(tmp_path: Path) -> None:
    cases = write_prepared_phantom(tmp_path, make_task(), cases=10, rare={3: 0.2, 2: 0.01})
    assert [sum(value in case.foreground for case in cases) for value in (1, 2, 3)] == [10, 1, 2]


def test_planes_that_are_not_annotated_hold_the_ignore_label(tmp_path: Path) -> None:
    cases = write_prepared_phantom(tmp_path, make_task(ignore_label=9), cases=2, shapes=((20, 8, 9),), annotated=0.25)
    for case in cases:
        planes = case.label()[:][0].reshape(20, -1)  # type: ignore[index]
        assert sum((plane == 9).all() for plane in planes) == 15
        assert sum((plane == 9).any() for plane in planes) == 15
    with pytest.raises(ConfigError, match=r"annotated=0\.5.*need data\.ignore_label"):
        write_prepared_phantom(tmp_path, make_task(), annotated=0.5)


def test_classification_has_no_label_map_and_its_class_shows(tmp_path: Path) -> None:
    cases = write_prepared_phantom(tmp_path, make_two_class_phantom_task(), cases=4)
    assert [case.label() for case in cases] == [None] * 4
    brightest = [float(case.image()[:].max()) for case in cases]
    assert min(brightest[1::2]) > 2 > max(brightest[::2])
