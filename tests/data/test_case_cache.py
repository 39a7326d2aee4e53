from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medi3d.config import load_task
from medi3d.data.case_cache import CaseCache
from medi3d.data.patches import PatchDataset
from medi3d.data.phantom_store import write_prepared_phantom
from medi3d.errors import InputError
from medi3d.io.prepared import PreparedCase

SHAPE = (8, 12, 10)
BYTES = 4 * 8 * 12 * 10


@pytest.fixture
def cases(tmp_path: Path) -> list[PreparedCase]:
    return write_prepared_phantom(tmp_path, load_task("hippocampus"), cases=3, shapes=(SHAPE,))


@pytest.fixture
def case(cases: list[PreparedCase]) -> PreparedCase:
    return cases[0]


def remove_arrays(case: PreparedCase) -> None:
    for file in case.folder.glob("*.b2nd"):
        file.unlink()


def test_a_small_case_is_read_once(case: PreparedCase) -> None:
    cache = CaseCache()
    image, label = np.asarray(case.image()[:]), case.label()
    assert label is not None
    expected = image, np.asarray(label[:])
    cache.image(case), cache.label(case)
    remove_arrays(case)
    np.testing.assert_array_equal(cache.image(case), expected[0])
    np.testing.assert_array_equal(cache.label(case), expected[1])


def test_a_large_case_stays_on_disk(case: PreparedCase) -> None:
    cache = CaseCache(largest_bytes=BYTES - 1)
    assert not isinstance(cache.image(case), np.ndarray)
    remove_arrays(case)
    with pytest.raises(InputError, match="overwrite"):
        cache.image(case)


def test_what_is_kept_stays_and_what_has_no_room_is_read(cases: list[PreparedCase]) -> None:
    cache = CaseCache(room_bytes=2 * BYTES)
    assert [isinstance(cache.image(case), np.ndarray) for case in cases * 2] == [True, True, False] * 2


def test_a_case_without_a_label_map_has_none(case: PreparedCase) -> None:
    (case.folder / "label.b2nd").unlink()
    cache = CaseCache()
    assert cache.label(case) is None
    assert cache.label(case) is None


def test_who_changes_a_patch_changes_no_later_one(case: PreparedCase) -> None:
    patches = PatchDataset([case], patch_size=SHAPE, seed=0)  # the whole case: a slice that is all of the array
    first = patches[0]
    expected = first["image"].clone(), first["label"].clone()
    first["image"].zero_()
    first["label"].zero_()
    again = patches[0]
    torch.testing.assert_close(again["image"], expected[0], rtol=0, atol=0)
    torch.testing.assert_close(again["label"], expected[1], rtol=0, atol=0)
