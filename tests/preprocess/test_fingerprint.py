from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medi3d.config import TaskConfig
from medi3d.io.prepared import ArraySlabs, PreparedStore
from medi3d.preprocess.orient import reorient
from medi3d.preprocess.quality import regions
from medi3d.preprocess.quality.fingerprint import PERCENTILES, CountedLabels, join_fingerprint, measure_case
from medi3d.preprocess.quality.regions import canonical_fractions, spacing_along
from medi3d.volume import Grid, LabelMap, Volume

SHAPE = (70, 12, 15)
AFFINE = np.array([[0, 1.2, 0, 7], [0, 0, -1.6, -3], [-2.5, 0, 0, 11], [0, 0, 0, 1.0]])


def case(rng: np.random.Generator) -> tuple[Volume, LabelMap]:
    image = rng.normal([[[[100]]], [[[-20]]]], 10, (2, *SHAPE)).astype("f4")
    label = np.zeros((1, *SHAPE), "u1")
    label[0, 60:68, 2:5, 3:9] = 1  # across a border of blocks
    label[0, 10:13, 6:12, 9:11] = 3  # touches the rim
    return Volume(image, AFFINE), LabelMap(label, AFFINE)


def test_intensities_are_by_hand(rng: np.random.Generator) -> None:
    volume, _ = case(rng)
    for channel, measured in zip(volume.array, measure_case(volume, None)["channels"], strict=True):
        np.testing.assert_allclose(measured["percentiles"], np.percentile(channel, PERCENTILES), rtol=1e-5)
        assert measured["mean"] == pytest.approx(channel.mean(dtype="f8"))
        assert measured["std"] == pytest.approx(channel.std(dtype="f8"))
        assert (measured["min"], measured["max"]) == (channel.min(), channel.max())
        assert (measured["background"], measured["air"], measured["overlap"]) == (None, None, 1.0)


def test_background_does_not_count(rng: np.random.Generator) -> None:
    volume, label = case(rng)
    array = volume.array.copy()
    array[:, :, :3], array[:, :, :, :3] = 0, 0
    array[:, :, -3:], array[:, -9:] = 0, 0
    array[1, 40:], array[1, 37:40, :, :8] = 0, 0
    statistics = measure_case(Volume(array, AFFINE), label)
    assert [channel["background"] for channel in statistics["channels"]] == [0.0, 0.0]
    assert statistics["channels"][0]["mean"] == pytest.approx(100, abs=1)
    assert statistics["channels"][0]["min"] < 0.5
    assert statistics["channels"][1]["overlap"] == 1.0
    inside = array[:, label.array[0] == 3]
    np.testing.assert_allclose(statistics["labels"]["3"]["background_shares"], (inside == 0).mean(1))


def test_channels_that_do_not_overlap_tell(rng: np.random.Generator) -> None:
    array = np.zeros((2, 40, 12, 15), "f4")
    array[0, 5:18, 2:10, 3:12] = rng.normal(50, 5, (13, 8, 9))
    array[1, 16:35, 2:10, 3:12] = rng.normal(50, 5, (19, 8, 9))
    first, second = measure_case(Volume(array, AFFINE), None)["channels"]
    assert first["overlap"] == 1.0
    assert second["overlap"] == pytest.approx(2 / 13)


@pytest.mark.parametrize("block_voxels", [2**17, 16])
def test_labels_are_by_hand(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block_voxels: int) -> None:
    monkeypatch.setattr(regions, "_BLOCK_VOXELS", block_voxels)
    monkeypatch.setattr(regions, "_RARE", 4)
    volume, label = case(rng)
    measured = measure_case(volume, label)["labels"]
    assert set(measured) == {"1", "3"}
    exact = block_voxels > 16
    for value in (1, 3):
        where = label.array[0] == value
        values = measured[str(value)]
        assert values["voxels"] == where.sum()
        assert values["volume_ml"] == pytest.approx(where.sum() * 1.2 * 1.6 * 2.5 / 1000)
        index = np.argwhere(where).mean(0)
        offset = label.grid.index_to_world(index) - label.grid.index_to_world((np.array(SHAPE) - 1) / 2)
        np.testing.assert_allclose(values["offset_mm"], offset, atol=1e-9 if exact else 3)
        np.testing.assert_allclose(values["means"], volume.array[:, where].mean(1), rtol=1e-5 if exact else 0.2)
        assert values["at_border"] == (value == 3)
        assert values["background_shares"] == [0, 0]


def test_dense_labels_are_sampled_in_every_column(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_BLOCK_VOXELS", 2**9)
    label = np.broadcast_to((np.arange(128) // 32 + 1).astype("u1"), (1, 32, 32, 128)).copy()
    label[0, 5, 5, 5] = 9
    volume = Volume(np.broadcast_to(np.arange(128, dtype="f4"), label.shape).copy(), AFFINE)
    measured = measure_case(volume, LabelMap(label, AFFINE))["labels"]
    for value in range(1, 5):
        assert measured[str(value)]["means"][0] == pytest.approx(32 * value - 16.5, abs=1.5)
        assert measured[str(value)]["voxels"] == 32**3 - (value == 1)
    assert measured["9"]["means"] == [5.0]


def test_a_memory_map_measures_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    volume, label = case(rng)
    mapped = np.memmap(tmp_path / "voxels", dtype="f4", mode="w+", shape=volume.array.shape)
    mapped[:] = volume.array
    assert measure_case(Volume(mapped, AFFINE), label) == measure_case(volume, label)


def test_places_do_not_depend_on_how_voxels_are_stored(rng: np.random.Generator) -> None:
    volume, label = case(rng)
    other = (reorient(volume, "LAI"), reorient(label, "LAI"))
    assert other[0].shape != volume.shape
    for value, measured in measure_case(volume, label)["labels"].items():
        turned = measure_case(*other)["labels"][value]
        np.testing.assert_allclose(turned["center"], measured["center"])
        np.testing.assert_allclose(turned["offset_mm"], measured["offset_mm"], atol=1e-9)
    grid = Grid((10, 20, 40), np.array([[0, 0, -1, 0], [0, 1, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]]))
    assert grid.orientation == "SAL"
    np.testing.assert_allclose(canonical_fractions(np.array([0, 0, 0]), grid), [0.05, 0.975, 0.0125])
    assert spacing_along(Grid((4, 5, 6), np.diag([3.0, 2, 1, 1])), "SPL") == (1, 2, 3)


def test_prepared_labels_are_counted_on_their_way(rng: np.random.Generator) -> None:
    volume, label = case(rng)
    statistics = measure_case(volume, label)
    prepared = label.array[:, ::2]
    prepared = np.where(prepared == 3, 0, prepared)
    slabs = CountedLabels(ArraySlabs(prepared), statistics)
    passed = np.concatenate([slabs.slab(start, min(start + 16, 35)) for start in range(0, 35, 16)], axis=1)
    np.testing.assert_array_equal(passed, prepared)
    assert (slabs.shape, slabs.dtype) == (prepared.shape, np.uint8)
    assert statistics["labels"]["1"]["prepared_voxels"] == (prepared == 1).sum()
    assert statistics["labels"]["3"]["prepared_voxels"] == 0
    assert json.loads(json.dumps(statistics)) == statistics


def test_the_set_is_joined(tiny: Path, segmentation_task: TaskConfig, rng: np.random.Generator) -> None:
    statistics = measure_case(Volume(rng.normal(50, 9, (1, *SHAPE)), AFFINE), case(rng)[1])
    statistics["labels"] = {"1": statistics["labels"]["1"]}
    stored = PreparedStore(tiny / "prepared" / "tiny_segmentation").cases()
    cases = [replace(one, statistics=statistics, group=one.group[:4]) for one in stored]
    joined = join_fingerprint(cases, segmentation_task)
    assert joined["cases"] == 6
    assert joined["native_orientations"] == {stored[0].record.native.orientation: 6}
    assert joined["field_of_view_mm"]["max"] == pytest.approx([25.0, 19.2, 22.4])
    assert joined["channels"]["MR"]["mean"]["median"] == pytest.approx(50, abs=1)
    assert joined["labels"]["bright"]["cases"] == 6
    assert joined["labels"]["dark"] == {"cases": 0, "volume_ml": {}, "means": {}}
    assert join_fingerprint([], segmentation_task)["native_shape"] == {}
