from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medi3d.config import AugmentConfig
from medi3d.data.augment import Augmenter
from medi3d.data.patches import PatchDataset, read_patch
from medi3d.io.prepared import ArraySlabs, PreparedCase, read_case, write_case
from medi3d.io.record import Record
from medi3d.types import IntTriple
from medi3d.volume import Volume

SHAPE = (12, 20, 17)


def store_case(folder: Path, name: str, *, shape: IntTriple = SHAPE, labelled: bool = True) -> PreparedCase:
    """A case whose voxels tell where they are, channel 0, and the label, channel 1; few voxels have a label."""
    place = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    label = np.zeros(shape, np.uint8)
    label[-1, 2, 3] = 1
    label[2, -2:, 4] = 2
    image = Volume(np.stack([place, label.astype(np.float32)]), np.diag([3.0, 2.0, 1.0, 1.0]))
    target = None if labelled else 1
    case = PreparedCase(folder / name, name, name, target, Record(image.grid, image.grid), "", {})
    write_case(case, ArraySlabs(image.array), ArraySlabs(label[None]) if labelled else None)
    return read_case(folder / name)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    folder = tmp_path_factory.mktemp("cases")
    return [store_case(folder, name) for name in ("a", "b", "c")]


def make_dataset(cases: list[PreparedCase], **options: object) -> PatchDataset:
    defaults = {"patch_size": (5, 8, 6), "length": 10_000, "augmenter": None, "foreground_fraction": 0.5, "seed": 3}
    return PatchDataset(cases, **(defaults | options))  # type: ignore[arg-type]


def test_a_patch_is_a_piece_of_its_case(cases: list[PreparedCase]) -> None:
    for index in range(12):
        sample = make_dataset(cases)[index]
        assert sample["image"].shape == (2, 5, 8, 6)
        assert sample["image"].dtype == torch.float32
        assert sample["label"].shape == (5, 8, 6)
        assert sample["label"].dtype == torch.int64
        d, h, w = np.unravel_index(int(sample["image"][0, 0, 0, 0]), SHAPE)
        case = next(case for case in cases if case.case_id == sample["case_id"])
        expected = np.asarray(case.image()[:])[:, d : d + 5, h : h + 8, w : w + 6]
        np.testing.assert_array_equal(sample["image"].numpy(), expected)
        np.testing.assert_array_equal(sample["label"].numpy(), expected[1])


def test_a_patch_is_a_pure_function_of_seed_and_number(cases: list[PreparedCase]) -> None:
    augmenter = Augmenter(AugmentConfig(mirror_axes=("D", "H", "W")))
    forwards = [make_dataset(cases, augmenter=augmenter)[index] for index in range(8)]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state is what must not matter
    other = make_dataset(cases, augmenter=augmenter)
    backwards = [other[index] for index in reversed(range(8))][::-1]
    for one, two in zip(forwards, backwards, strict=True):
        assert one["case_id"] == two["case_id"]
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["label"], two["label"])
    assert any(
        not torch.equal(one["image"], make_dataset(cases, augmenter=augmenter, seed=4)[index]["image"])
        for index, one in enumerate(forwards)
    )


def test_reading_a_patch_leaves_the_global_random_state_alone(cases: list[PreparedCase]) -> None:
    before = torch.get_rng_state()
    _ = make_dataset(cases, augmenter=Augmenter(AugmentConfig()))[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_every_pass_takes_every_case_once_in_an_order_of_its_own(cases: list[PreparedCase]) -> None:
    dataset = make_dataset(cases)
    passes = [tuple(dataset[3 * n + k]["case_id"] for k in range(3)) for n in range(8)]
    assert all(sorted(order) == ["a", "b", "c"] for order in passes)
    assert len(set(passes)) > 1


def test_foreground_patches_hold_foreground_of_every_label_alike(cases: list[PreparedCase]) -> None:
    always = make_dataset(cases, foreground_fraction=1.0)
    found = [set(np.unique(always[index]["label"])) - {0} for index in range(60)]
    assert all(found)
    share = sum(1 in labels for labels in found) / 60
    assert 0.3 < share < 0.7  # label 1 has one voxel, label 2 has two: drawn by label, not by voxel


def test_a_foreground_patch_is_centred_on_its_voxel_where_the_rim_allows(tmp_path: Path) -> None:
    shape = (12, 20, 17)
    label = np.zeros(shape, np.uint8)
    label[5, 11, 8] = 1
    image = Volume(np.stack([label, label]).astype(np.float32), np.eye(4))
    case = PreparedCase(tmp_path / "a", "a", "a", None, Record(image.grid, image.grid), "", {})
    write_case(case, ArraySlabs(image.array), ArraySlabs(label[None]))
    sample = make_dataset([read_case(tmp_path / "a")], foreground_fraction=1.0)[0]
    assert np.argwhere(sample["label"].numpy()).tolist() == [[5 // 2, 8 // 2, 6 // 2]]


def test_without_oversampling_patches_lie_anywhere(cases: list[PreparedCase]) -> None:
    never = make_dataset(cases, foreground_fraction=0.0)
    starts = np.array([np.unravel_index(int(never[n]["image"][0, 0, 0, 0]), SHAPE) for n in range(300)])
    np.testing.assert_array_equal(starts.min(0), 0)
    np.testing.assert_array_equal(starts.max(0), np.array(SHAPE) - (5, 8, 6))


def test_a_small_case_lies_in_the_middle_of_zeros(tmp_path: Path) -> None:
    small = store_case(tmp_path, "small", shape=(3, 20, 5))
    for index in range(4):
        sample = make_dataset([small], patch_size=(8, 6, 10))[index]
        assert sample["image"].shape == (2, 8, 6, 10)
        filled = np.argwhere(sample["image"][0].numpy() > 0)
        assert filled[:, 0].min() == 3  # (8 - 3) / 2, rounded up
        assert filled[:, 0].max() == 5
        assert filled[:, 2].min() >= 3
        assert filled[:, 2].max() <= 7
        np.testing.assert_array_equal(sample["label"].numpy(), sample["image"][1].numpy())


def test_a_case_without_labels_gives_its_class(tmp_path: Path) -> None:
    case = store_case(tmp_path, "unlabelled", labelled=False)
    sample = make_dataset([case], foreground_fraction=1.0)[0]
    assert "label" not in sample
    assert sample["target"] == 1


def test_length_and_cases_of_the_dataset(cases: list[PreparedCase]) -> None:
    assert len(make_dataset(cases, length=7)) == 7


@settings(max_examples=60, deadline=None)
@given(
    start=st.tuples(*[st.integers(-6, 8)] * 3),
    size=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_a_box_reads_as_from_a_padded_array(start: IntTriple, size: IntTriple) -> None:
    array = np.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6) + 1
    if any(s >= n or s + k <= 0 for s, k, n in zip(start, size, array.shape[1:], strict=True)):
        return  # beside the array
    padded = np.pad(array, ((0, 0), *[(20, 20)] * 3))
    d, h, w = (slice(s + 20, s + 20 + n) for s, n in zip(start, size, strict=True))
    np.testing.assert_array_equal(read_patch(array, start, size), padded[:, d, h, w])


def test_label_moves_with_the_image(cases: list[PreparedCase]) -> None:
    config = replace(AugmentConfig(), intensity_probability=0.0, mirror_axes=("D", "W"), spatial_probability=0.0)
    dataset = make_dataset(cases, augmenter=Augmenter(config), foreground_fraction=1.0)
    for index in range(10):
        sample = dataset[index]
        np.testing.assert_array_equal(sample["label"].numpy(), sample["image"][1].numpy())
