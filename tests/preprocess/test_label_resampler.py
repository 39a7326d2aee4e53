"""Slabs of label maps: equal to the whole, to shares computed by hand, and back on the grid they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medi3d.errors import InputError
from medi3d.preprocess.resampling.labels import LabelResampler, Region, find_labels
from medi3d.preprocess.resampling.resample import ImageResampler, isotropic_grid, resample_to
from medi3d.volume import Grid, LabelMap

SHAPE = (13, 22, 31)
STRAIGHT = np.array([[0.0, 0, -0.7, 5], [0, -0.9, 0, 6], [2.5, 0, 0, 7], [0, 0, 0, 1]])  # SPL


def blobs(
    values: tuple[int, ...] = (0, 1, 7, 200), dtype: str = "u1", shape: tuple[int, int, int] = SHAPE
) -> np.ndarray:
    rng = np.random.default_rng(3)
    heights = gaussian_filter(rng.normal(size=(len(values), *shape)), (0, 1, 3, 3))
    return np.array(values, dtype)[heights.argmax(axis=0)][None]


def turned(affine: np.ndarray, angles: tuple[float, ...], shear: float = 0.0) -> np.ndarray:
    rotation = np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix(), (3, 3))
    result = affine.copy()
    result[:3, :3] = rotation @ (np.eye(3) + shear * np.eye(3, k=1)) @ affine[:3, :3]
    return result


def whole(resampler: LabelResampler, planes: int | None = None) -> np.ndarray:
    depth = resampler.shape[1]
    step = planes or depth
    slabs = [resampler.slab(start, min(start + step, depth)) for start in range(0, depth, step)]
    return np.concatenate(slabs, axis=1)


TARGETS = {
    "finer": isotropic_grid(Grid(SHAPE, STRAIGHT), (0.9, 0.6, 0.5)),
    "coarser": isotropic_grid(Grid(SHAPE, STRAIGHT), (5.5, 2.0, 1.9)),
    "turned": Grid((19, 17, 23), turned(STRAIGHT, (0.3, -0.2, 0.1)) @ np.diag([0.5, 1, 1, 1])),
    "sheared": Grid((19, 17, 23), turned(STRAIGHT, (0.1, 0.1, 0.2), 0.1) @ np.diag([0.5, 1, 1, 1])),
}


# --- where labels lie


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), dtype=st.sampled_from(["u1", "i2", "i4", "u2"]), low=st.sampled_from([0, 1, 70000, -3])
)
def test_find_labels(seed: int, dtype: str, low: int) -> None:
    rng = np.random.default_rng(seed)
    if low < np.iinfo(dtype).min or low + 3 > np.iinfo(dtype).max:
        low = 0
    label = rng.choice([0, 0, 0, low, low + 3], tuple(rng.integers(1, 8, 3))).astype(dtype)
    found = find_labels(label)
    assert list(found) == sorted(np.unique(label).tolist())
    for value, region in found.items():
        where = np.argwhere(label == value)
        assert region.voxels == len(where)
        ends = [(0, n) for n in label.shape] if value == 0 else list(zip(where.min(0), where.max(0) + 1, strict=True))
        assert [(axis.start, axis.stop) for axis in region.box] == ends


def test_find_labels_in_a_memory_map(tmp_path: Path) -> None:
    label = np.zeros((5, 6, 7), "u1")
    label[1:3, 2:5, 6] = 9
    label.tofile(tmp_path / "label")
    found = find_labels(np.memmap(tmp_path / "label", "u1", "r", shape=label.shape))
    assert found[9] == Region((slice(1, 3), slice(2, 5), slice(6, 7)), 6)


# --- shares


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("fill", [None, 0, 7])
def test_slabs_are_the_whole(target: Grid, interpolation: str, fill: int | None) -> None:
    wide = target.cropped((-2, -1, -3), tuple(np.array(target.shape) + 5))
    resampler = LabelResampler(blobs(), Grid(SHAPE, STRAIGHT), wide, interpolation=interpolation, fill=fill)
    together = whole(resampler)
    assert set(np.unique(together)) <= {0, 1, 7, 200}
    for planes in (1, 5):
        np.testing.assert_array_equal(whole(resampler, planes), together)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("fill", [None, 0, 7])
def test_the_largest_share_wins(target: Grid, fill: int | None) -> None:
    source, label, values = Grid(SHAPE, STRAIGHT), blobs(), (0, 1, 7, 200)
    got = whole(LabelResampler(label, source, target, fill=fill, smoothing=1.0, thin=0.0))
    shares = []
    for value in values:
        outside = None if fill is None else float(value == fill)
        one = ImageResampler((label == value).astype("f4"), source, target, padding=None, fill=outside)
        shares.append(one.slab(0, target.shape[0]))
    ordered = np.sort(shares, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(got[clear], np.array(values)[np.argmax(shares, axis=0)][clear])


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_nearest_is_what_simpleitk_does(target: Grid) -> None:
    source = Grid(SHAPE, STRAIGHT)
    ours = whole(LabelResampler(blobs(), source, target, interpolation="nearest", fill=0))
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)
    at = source.world_to_index(target.index_to_world(index))
    voxel = np.floor(at + 0.5).astype(int)
    inside = ((voxel >= 0) & (voxel < SHAPE)).all(axis=-1)
    clear = (np.abs(at + 0.5 - np.round(at + 0.5)) > 1e-6).all(axis=-1)
    voxel = np.clip(voxel, 0, np.array(SHAPE) - 1)
    expected = np.where(inside, blobs()[0][tuple(np.moveaxis(voxel, -1, 0))], 0)
    np.testing.assert_array_equal(ours[0][clear], expected[clear])


# --- ties


@pytest.mark.parametrize(
    ("row", "expected"), [((0, 0, 4, 4, 4, 4, 0, 0), (0, 4, 4, 4, 4, 4, 0)), ((7, 7, 7, 4, 4, 4), (7, 7, 4, 4, 4))]
)
def test_ties_go_to_the_lower_label_and_the_background_last(row: tuple[int, ...], expected: tuple[int, ...]) -> None:
    label = np.tile(np.array(row, "u1"), (1, 5, 5, 1))
    between = np.eye(4)
    between[2, 3] = 0.5
    source, target = Grid((5, 5, len(row)), np.eye(4)), Grid((5, 5, len(row) - 1), between)
    got = whole(LabelResampler(label, source, target, fill=0))
    assert (got == np.array(expected)).all()


def test_a_ball_keeps_its_volume_on_any_grid_ties_or_not() -> None:
    d, h, w = np.ogrid[:33, :36, :35]
    label = ((d - 16) ** 2 + (h - 17.5) ** 2 + (w - 17) ** 2 <= 10.2**2).astype("u1")[None]
    grid, ratios = Grid((33, 36, 35), np.eye(4)), []
    for spacing in (0.5, 2 / 3, 1.0, 1.3, 1.5, 2.0, 2.7, 3.0):
        for shift in (0.0, 0.25, 0.5, 0.37):
            target = isotropic_grid(grid, (spacing,) * 3)
            affine = target.affine.copy()
            affine[:3, 3] -= shift * spacing
            depth, height, width = target.shape
            moved = Grid((depth + 1, height + 1, width + 1), affine)
            there = whole(LabelResampler(label, grid, moved, fill=0))
            back = whole(LabelResampler(there, moved, grid, fill=0))
            ratios += [there.sum() * spacing**3 / label.sum(), back.sum() / label.sum()]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.015)
    assert max(ratios) < 1.1
    assert min(ratios) > 0.9


# --- thin and small


def test_a_thin_sheet_keeps_its_volume_at_twice_the_spacing() -> None:
    label = np.zeros((1, 40, 40, 40), "u1")
    d, h, w = np.ogrid[:40, :40, :40]
    label[0][np.abs(d - 0.31 * h - 0.23 * w - 9.4) <= 0.5] = 1
    grid = Grid((40, 40, 40), np.eye(4))
    coarse = isotropic_grid(grid, (2.0, 2.0, 2.0))
    volumes = [
        8 * whole(LabelResampler(label, grid, coarse, fill=0, thin=thin)).sum() / label.sum() for thin in (0.0, 0.8)
    ]
    assert volumes[0] < 0.1
    assert volumes[1] == pytest.approx(1.0, abs=0.15)


def test_thick_structures_are_left_to_linear_shares() -> None:
    label = np.zeros((1, 40, 40, 40), "u1")
    d, h, w = np.ogrid[:40, :40, :40]
    label[0][(d - 19) ** 2 + (h - 20) ** 2 + (w - 18.3) ** 2 < 150] = 1
    grid = Grid((40, 40, 40), np.eye(4))
    coarse = isotropic_grid(grid, (2.1, 2.2, 2.3))
    linear, ours = (whole(LabelResampler(label, grid, coarse, fill=0, thin=thin)) for thin in (0.0, 0.8))
    np.testing.assert_array_equal(linear, ours)


@settings(max_examples=30, deadline=None)
@given(place=st.tuples(*[st.integers(0, 14)] * 3), spacing=st.floats(0.5, 6))
def test_a_single_voxel_never_vanishes(place: tuple[int, int, int], spacing: float) -> None:
    label = np.zeros((1, 15, 15, 15), "u1")
    label[0][place] = 4
    grid = Grid((15, 15, 15), np.eye(4))
    resampler = LabelResampler(label, grid, isotropic_grid(grid, (spacing,) * 3), fill=0)
    assert (whole(resampler, 3) == 4).any()


# --- there and back


@settings(max_examples=40, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.4, 4)] * 3),
    angles=st.tuples(*[st.floats(-3.2, 3.2)] * 3),
    shear=st.sampled_from([0.0, 0.0, 0.2]),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    order=st.permutations([0, 1, 2]),
    new=st.floats(0.5, 1.5),
)
def test_a_label_map_comes_back_onto_its_own_grid(
    spacing: tuple[float, ...],
    angles: tuple[float, ...],
    shear: float,
    flips: tuple[int, ...],
    order: list[int],
    new: float,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * spacing * flips)[:, order]
    affine = turned(affine, angles, shear)
    affine[:3, 3] = 31.7, -12.1, 4.4
    label = LabelMap(blobs(shape=(9, 12, 15)), affine)
    prepared = isotropic_grid(label.grid, (min(label.spacing_mm) * new,) * 3)
    there = resample_to(label, prepared, fill=0.0)
    back = resample_to(there, label.grid, fill=0.0)
    assert back.shape == label.shape
    np.testing.assert_array_equal(back.affine, label.affine)
    assert back.orientation == label.orientation
    assert back.array.dtype == label.array.dtype
    assert (back.array == label.array).mean() > (0.75 if new > 1 else 0.9)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", ">i2"])
def test_the_same_voxels_are_copied(dtype: str) -> None:
    label, grid = blobs(dtype=dtype), Grid(SHAPE, turned(STRAIGHT, (0.4, 0.1, 0.2), 0.2))
    resampler = LabelResampler(label, grid, grid)
    np.testing.assert_array_equal(whole(resampler, 4), label)


def test_the_type_of_the_slabs() -> None:
    grid = Grid(SHAPE, STRAIGHT)
    assert whole(LabelResampler(blobs(dtype="i4"), grid, TARGETS["finer"], dtype=np.uint8)).dtype == np.uint8
    with pytest.raises(InputError, match=r"label 300 does not fit uint8 \(0 to 255\)"):
        LabelResampler(blobs((0, 300), "i4"), grid, grid, dtype=np.uint8)
    with pytest.raises(InputError, match="labels are integers"):
        LabelResampler(blobs(), grid, grid, dtype=np.float32)
