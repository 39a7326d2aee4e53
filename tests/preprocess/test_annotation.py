"""Label maps that are annotated in part, on other grids: foreground and background are kept alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medi3d import io
from medi3d.preprocess.resampling.labels import LabelResampler
from medi3d.preprocess.resampling.resample import ImageResampler, isotropic_grid
from medi3d.volume import Grid

SHAPE = (17, 24, 31)
AFFINE = np.array([[0.0, 0, -0.7, 5], [0, -0.9, 0, 6], [2.5, 0, 0, 7], [0, 0, 0, 1]])  # SPL
SOURCE = Grid(SHAPE, AFFINE)
IGNORED = 200


def blobs(shape: tuple[int, int, int] = SHAPE, seed: int = 3) -> np.ndarray:
    heights = gaussian_filter(np.random.default_rng(seed).normal(size=(3, *shape)), (0, 1, 3, 3))
    return np.array([0, 1, 7], "u1")[heights.argmax(axis=0)][None]


def sliced(label: np.ndarray, every: int, axis: int = 0) -> np.ndarray:
    """Keep one slice in so many."""
    sparse = np.full_like(label, IGNORED)
    kept = np.moveaxis(sparse[0], axis, 0)
    kept[1::every] = np.moveaxis(label[0], axis, 0)[1::every]
    return sparse


def patchy(label: np.ndarray) -> np.ndarray:
    """Ignore blobs of all shapes."""
    noise = gaussian_filter(np.random.default_rng(9).normal(size=label.shape[1:]), 2)
    return np.where(noise[None] > np.median(noise), label, IGNORED).astype(label.dtype)


def resample(label: np.ndarray, target: Grid, *, source: Grid = SOURCE, planes: int | None = None, **how: float):
    resampler = LabelResampler(label, source, target, fill=0, ignore_label=IGNORED, **how)  # type: ignore[arg-type]
    step = planes or target.shape[0]
    return np.concatenate(
        [resampler.slab(start, min(start + step, target.shape[0]))[0] for start in range(0, target.shape[0], step)]
    )


TURNED = Grid((19, 17, 23), AFFINE @ np.diag([0.6, 1.3, 1.2, 1]) @ np.array(
    [[0.98, -0.17, 0.1, 2.013], [0.18, 0.97, 0.05, -1.037], [-0.1, -0.03, 0.99, 1.0071], [0, 0, 0, 1]]
))  # fmt: skip
TARGETS = {
    "finer": isotropic_grid(SOURCE, (0.9, 0.6, 0.5)),
    "coarser": isotropic_grid(SOURCE, (5.5, 2.0, 1.9)),
    "turned": TURNED,
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_slabs_are_the_whole_and_no_value_appears(target: Grid) -> None:
    label = patchy(blobs())
    together = resample(label, target)
    assert set(np.unique(together)) <= {0, 1, 7, IGNORED}
    assert (together == IGNORED).any()
    for planes in (1, 5):
        np.testing.assert_array_equal(resample(label, target, planes=planes), together)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_where_all_is_annotated_nothing_changes(target: Grid) -> None:
    plain = LabelResampler(blobs(), SOURCE, target, fill=0).slab(0, target.shape[0])[0]
    np.testing.assert_array_equal(resample(blobs(), target), plain)


def test_the_same_grid_copies_it() -> None:
    np.testing.assert_array_equal(resample(patchy(blobs()), SOURCE), patchy(blobs())[0])


def test_whether_goes_by_the_nearest_voxel_and_as_what_by_the_shares_of_what_is_annotated() -> None:
    label, target = patchy(blobs()), isotropic_grid(SOURCE, (1.7, 0.83, 0.61))
    got = resample(label, target, smoothing=1.0, thin=0.0)
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)
    nearest = np.floor(SOURCE.world_to_index(target.index_to_world(index)) + 0.5).astype(int)
    nearest = np.clip(nearest, 0, np.array(SHAPE) - 1)
    ignored = label[0][tuple(np.moveaxis(nearest, -1, 0))] == IGNORED
    np.testing.assert_array_equal(got == IGNORED, ignored)
    shares = []
    for value in (0, 1, 7):
        resampler = ImageResampler((label == value).astype("f4"), SOURCE, target, padding=None, fill=float(value == 0))
        shares.append(resampler.slab(0, target.shape[0])[0])
    ordered = np.sort(shares, axis=0)
    clear = ~ignored & (ordered[-1] - ordered[-2] > 1e-4)
    assert clear.sum() > 0.9 * (~ignored).sum()
    np.testing.assert_array_equal(got[clear], np.array([0, 1, 7])[np.argmax(shares, axis=0)][clear])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), ratio=st.sampled_from([(2, 1, 1), (1, 3, 2), (3, 2, 1)]))
def test_on_a_coarser_grid_one_annotated_voxel_in_the_cell_is_enough(seed: int, ratio: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    label = np.where(rng.random((1, 12, 12, 12)) < 0.1, rng.integers(0, 2, (1, 12, 12, 12)), IGNORED).astype("u1")
    source = Grid((12, 12, 12), np.eye(4))
    target = isotropic_grid(source, tuple(map(float, ratio)))  # cells are whole blocks of voxels
    d, h, w = ratio
    blocks = label[0].reshape(12 // d, d, 12 // h, h, 12 // w, w)
    expected = (blocks == IGNORED).all(axis=(1, 3, 5))
    np.testing.assert_array_equal(resample(label, target, source=source) == IGNORED, expected)


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.3, 2.0, 2.6, 3.0])
def test_foreground_and_background_are_kept_alike(every: int, axis: int, spacing: float) -> None:
    shape = (60, 40, 61)
    label = (gaussian_filter(np.random.default_rng(1).normal(size=shape), 4) > 0.02).astype("u1")[None]
    source = Grid(shape, np.eye(4))
    target = isotropic_grid(source, (spacing,) * 3)
    got = resample(sliced(label, every, axis), target, source=source)
    known = got != IGNORED
    kept = np.moveaxis(label[0], axis, 0)[1::every].mean()
    assert known.mean() > 0.7 / every
    assert (got[known] == 1).mean() == pytest.approx(kept, rel=0.1)


def test_a_small_label_that_is_annotated_does_not_vanish() -> None:
    label = np.full((1, 15, 15, 15), IGNORED, "u1")
    label[0, 4:8, 3:12, 3:12] = 0
    label[0, 6, 7, 7] = 4
    source = Grid((15, 15, 15), np.eye(4))
    assert (resample(label, isotropic_grid(source, (3.0, 3.0, 3.0)), source=source) == 4).sum() == 1


@pytest.mark.real_data
def test_every_second_slice_of_real_hippocampi(real_data: Callable[[str], Path]) -> None:
    paths = sorted((real_data("hippocampus") / "labelsTr").glob("hip*"))[:6]
    shares: list[tuple[float, float]] = []
    for path in paths:
        full = io.read_label_map(path)
        target = isotropic_grid(full.grid, (2.0, 2.0, 2.0))
        got = resample(sliced(full.array, 2), target, source=full.grid)
        known = got != IGNORED
        shares.append((float((got[known] > 0).mean()), float((full.array[0] > 0).mean())))
    sparse, dense = np.mean(shares, axis=0)
    assert sparse == pytest.approx(dense, rel=0.1)
