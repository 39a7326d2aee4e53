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
from medi3d.data.patches import NO_CLASS, PatchDataset, collate_patches, read_patch, stack_patches
from medi3d.errors import InputError
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
    defaults = {"patch_size": (5, 8, 6), "foreground_fraction": 0.5, "seed": 3}
    return PatchDataset(cases, **(defaults | options))  # type: ignore[arg-type]


def test_a_patch_is_a_piece_of_its_case(cases: list[PreparedCase]) -> None:
    for index in range(12):
        sample = make_dataset(cases)[index]
        assert sample["image"].shape == (2, 5, 8, 6)
        assert sample["image"].dtype == torch.float32
        assert sample["label"].shape == (5, 8, 6)
        assert sample["label"].dtype == torch.uint8
        assert sample["number"] == index
        assert sample["offset"] == (0, 0, 0)
        assert sample["spacing_mm"] == (3.0, 2.0, 1.0)
        d, h, w = np.unravel_index(int(sample["image"][0, 0, 0, 0]), SHAPE)
        case = next(case for case in cases if case.case_id == sample["case_id"])
        expected = np.asarray(case.image()[:])[:, d : d + 5, h : h + 8, w : w + 6]
        np.testing.assert_array_equal(sample["image"].numpy(), expected)
        np.testing.assert_array_equal(sample["label"].numpy(), expected[1])


def test_a_patch_is_a_pure_function_of_seed_and_number(cases: list[PreparedCase]) -> None:
    options = {"augment": AugmentConfig(mirror_axes=("D", "H", "W"))}
    forwards = [make_dataset(cases, **options)[index] for index in range(8)]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state is what must not matter
    other = make_dataset(cases, **options)
    backwards = [other[index] for index in reversed(range(8))][::-1]
    for one, two in zip(forwards, backwards, strict=True):
        assert one["case_id"] == two["case_id"]
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["label"], two["label"])
    different = make_dataset(cases, **options, seed=4)
    assert any(not torch.equal(one["image"], different[index]["image"]) for index, one in enumerate(forwards))


def test_reading_a_patch_leaves_the_global_random_state_alone(cases: list[PreparedCase]) -> None:
    before = torch.get_rng_state()
    _ = make_dataset(cases, augment=AugmentConfig())[0]
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


TURNED = AugmentConfig(
    mirror_axes=("W",), rotate_degrees=30, scale=0.2, elastic=1.5, spatial_probability=1.0, intensity_probability=0.0
)


@pytest.mark.parametrize("config", [TURNED, replace(TURNED, elastic=0.0)], ids=["elastic", "straight"])
def test_no_empty_corners_come_in_where_the_case_goes_on(tmp_path: Path, config: AugmentConfig) -> None:
    """A patch from its block is the patch from the whole case: nothing that it shows was left out."""
    case = store_case(tmp_path, "a", shape=(26, 31, 29))
    size = (6, 10, 7)
    dataset = make_dataset([case], patch_size=size, augment=config)
    augmenter = Augmenter(config, patch_size=size, seed=3)
    whole_image, whole_label = torch.from_numpy(case.image()[:]), torch.from_numpy(case.label()[0])  # type: ignore[index]
    inside = 0
    for number in range(20):
        sample = dataset[number]
        block = augmenter(collate_patches([sample]))
        assert block["image"].shape == (1, 2, *size)
        start = dataset.sampler.place(number).start
        whole = collate_patches([sample]) | {
            "image": [whole_image],
            "label": [whole_label],
            "offset": [tuple(-s for s in start)],
        }
        expected = augmenter(whole)
        torch.testing.assert_close(block["image"], expected["image"], rtol=1e-4, atol=0.05)
        assert (block["label"] != expected["label"]).float().mean() < 0.01
        assert sample["image"][0].numel() < 0.6 * whole_image[0].numel()  # and the whole was not read
        inside += int(sample["image"].shape[1:] != whole_image.shape[1:] and bool((block["image"][:, 0] > 1).all()))
    assert inside > 3


def test_only_patches_that_need_a_margin_are_read_with_one(cases: list[PreparedCase]) -> None:
    dataset = make_dataset(cases, augment=replace(TURNED, spatial_probability=0.5))
    shapes = [tuple(dataset[number]["image"].shape[1:]) for number in range(40)]
    exact = shapes.count((5, 8, 6))
    assert 10 < exact < 30
    mirrored = make_dataset(cases, augment=AugmentConfig(mirror_axes=("D", "H", "W"), rotate_degrees=0, scale=0))
    assert all(mirrored[number]["image"].shape[1:] == (5, 8, 6) for number in range(10))


def test_a_patch_that_is_shifted_out_of_its_case_is_empty(cases: list[PreparedCase]) -> None:
    config = AugmentConfig(mirror_axes=(), rotate_degrees=0, scale=0, translate=0.99, spatial_probability=1.0)
    dataset = make_dataset(cases, patch_size=(11, 19, 16), augment=config)
    augmenter = Augmenter(config, patch_size=(11, 19, 16), seed=3)
    empty = [float((augmenter(collate_patches([dataset[n]]))["image"] == 0).float().mean()) for n in range(30)]
    assert max(empty) > 0.8


def test_stacking_gives_what_a_network_takes(cases: list[PreparedCase]) -> None:
    dataset = make_dataset(cases)
    batch = stack_patches(collate_patches([dataset[0], dataset[1], dataset[2]]))
    assert batch["image"].shape == (3, 2, 5, 8, 6)
    assert batch["label"].shape == (3, 5, 8, 6)
    assert batch["label"].dtype == torch.int64
    assert batch["number"].tolist() == [0, 1, 2]
    assert sorted(batch["case_id"]) == ["a", "b", "c"]
    assert set(batch) == {"image", "label", "number", "case_id"}


def test_cases_that_do_not_go_together_are_refused(cases: list[PreparedCase], tmp_path: Path) -> None:
    bare = store_case(tmp_path, "bare", labelled=False)
    with pytest.raises(InputError, match="1 of 4 cases have no label map, bare first"):
        make_dataset([*cases, bare])
    with pytest.raises(InputError, match="there are no cases"):
        make_dataset([])


def test_cases_whose_class_is_not_known_are_of_use_with_a_label_map(cases: list[PreparedCase], tmp_path: Path) -> None:
    dataset = make_dataset([replace(cases[0], target=2), *cases[1:]])
    batch = collate_patches([dataset[number] for number in range(6)])
    expected = [2 if name == cases[0].case_id else NO_CLASS for name in batch["case_id"]]
    assert batch["target"].tolist() == expected
    assert sorted(set(expected)) == [NO_CLASS, 2]
    bare = store_case(tmp_path, "bare", labelled=False)
    with pytest.raises(InputError, match="1 of 2 cases have no class, bare first"):
        make_dataset([bare, replace(bare, target=None)])


def test_a_damaged_case_is_named(tmp_path: Path) -> None:
    case = store_case(tmp_path, "damaged")
    path = case.folder / "image.b2nd"
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged.*medi3d preprocess --overwrite"):
        make_dataset([case], patch_size=SHAPE)[0]
