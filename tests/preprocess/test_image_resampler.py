"""Slabs of images: equal to the whole, to SimpleITK called by hand, and to scipy on grids that no image can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from medi3d import io
from medi3d.preprocess.orient import reorient
from medi3d.preprocess.resampling.mapping import box_inside, map_between, smoothing_sigma
from medi3d.preprocess.resampling.oblique import ObliqueMap
from medi3d.preprocess.resampling.resample import ImageResampler, isotropic_grid
from medi3d.preprocess.resampling.separable import SeparableMap
from medi3d.volume import Grid, Volume

ORDERS = {"linear": 1, "bspline": 3}
SHEAR = np.array([[1, 0.15, 0], [0, 1, -0.1], [0.2, 0, 1]])
STRAIGHT = np.array([[0.0, 0, -0.7, 5], [0, -0.9, 0, 6], [2.5, 0, 0, 7], [0, 0, 0, 1]])  # SPL


def turned(angles: tuple[float, ...], shear: float = 0.0, affine: np.ndarray = STRAIGHT) -> np.ndarray:
    """An affine that is turned and sheared about the origin."""
    rotation = np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix(), (3, 3))
    result = affine.copy()
    result[:3, :3] = rotation @ (np.eye(3) + shear * (SHEAR - np.eye(3))) @ affine[:3, :3]
    return result


def noise(shape: tuple[int, int, int] = (11, 22, 31), channels: int = 1, dtype: str = "i2") -> np.ndarray:
    rng = np.random.default_rng(5)
    return (3000 * gaussian_filter(rng.normal(size=(channels, *shape)), (0, 1, 1, 1))).astype(dtype)


def whole(resampler: ImageResampler, planes: int | None = None) -> np.ndarray:
    depth = resampler.shape[1]
    step = planes or depth
    slabs = [resampler.slab(start, min(start + step, depth)) for start in range(0, depth, step)]
    return np.concatenate(slabs, axis=1)


def by_scipy(array: np.ndarray, source: Grid, target: Grid, order: int) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)
    at = np.moveaxis(source.world_to_index(target.index_to_world(index)), -1, 0)
    mode = "nearest" if order == 1 else "mirror"
    return map_coordinates(array[0].astype("f8"), at, order=order, mode=mode)


TARGETS = {
    "finer": isotropic_grid(Grid((11, 22, 31), STRAIGHT), (0.9, 0.6, 0.5)),
    "coarser": isotropic_grid(Grid((11, 22, 31), STRAIGHT), (5.5, 2.0, 1.9)),
    "turned": Grid((19, 17, 23), turned((0.3, -0.2, 0.1)) @ np.diag([0.5, 1, 1, 1])),
    "sheared": Grid((19, 17, 23), turned((0.1, 0.1, 0.2), 1.0) @ np.diag([0.5, 1, 1, 1])),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(("interpolation", "bound"), [("linear", 1e-6), ("bspline", 1e-5), ("nearest", 0.0)])
@pytest.mark.parametrize("planes", [1, 4, 7])
def test_slabs_are_the_whole(target: Grid, interpolation: str, bound: float, planes: int) -> None:
    array = noise(channels=2)
    resampler = ImageResampler(array, Grid((11, 22, 31), STRAIGHT), target, interpolation=interpolation, padding=None)
    assert resampler.shape == (2, *target.shape)
    together = whole(resampler)
    assert together.dtype == np.float32
    assert np.abs(whole(resampler, planes) - together).max() <= bound * np.ptp(array.astype(float))


@pytest.mark.parametrize("shear", [0.0, 1.0])
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("bspline", 3)])
def test_turned_and_sheared_grids_are_resampled_where_they_lie(shear: float, interpolation: str, order: int) -> None:
    source = Grid((25, 22, 31), turned((0.3, -0.2, 0.4), shear))
    assert source.is_orthogonal == (shear == 0.0)
    array = noise(source.shape, dtype="f4")
    target = isotropic_grid(source.cropped((5, 5, 6), (12, 10, 14)), (1.9, 0.8, 0.75))
    resampler = ImageResampler(array, source, target, interpolation=interpolation, padding=None)
    expected = by_scipy(array, source, target, order)
    inside = np.s_[2:-2, 2:-2, 2:-2]
    assert np.abs(whole(resampler, 5)[0][inside] - expected[inside]).max() < 1e-3 * np.ptp(array)


def test_a_sheared_grid_is_not_straightened() -> None:
    """A ramp along a world axis stays that ramp."""
    source = Grid((25, 22, 31), turned((0.0, 0.0, 0.0), 1.0))
    index = np.stack(np.meshgrid(*map(np.arange, source.shape), indexing="ij"), -1)
    target = isotropic_grid(source.cropped((8, 8, 8), (9, 8, 12)), (1.0, 1.0, 1.0))
    inside = source.world_to_index(
        target.index_to_world(np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1))
    )
    valid = ((inside >= 0) & (inside <= np.array(source.shape) - 1)).all(axis=-1)
    assert valid.mean() > 0.5
    for axis in range(3):
        ramp = source.index_to_world(index)[..., axis][None].astype("f4")
        places = target.index_to_world(np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1))
        got = whole(ImageResampler(ramp, source, target, padding=None))[0]
        np.testing.assert_allclose(got[valid], places[..., axis][valid], atol=2e-4)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4)] * 3),
    new=st.tuples(*[st.floats(0.5, 3)] * 3),
    interpolation=st.sampled_from(["linear", "bspline"]),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    order=st.permutations([0, 1, 2]),
)
def test_parallel_grids_agree_with_simpleitk(
    shape: tuple[int, int, int],
    spacing: tuple[float, ...],
    new: tuple[float, float, float],
    interpolation: str,
    flips: tuple[int, ...],
    order: list[int],
) -> None:
    assume(interpolation == "linear" or min(shape) > 3)  # ITK mirrors once: two voxels are too few for it
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * spacing * flips)[:, order]
    source = Grid(shape, affine)
    array = np.random.default_rng(0).normal(size=(1, *shape)).astype("f4")
    finer = tuple(float(min(n, s)) for n, s in zip(new, source.spacing_mm, strict=True))
    target = isotropic_grid(reorient(Volume(array, affine)).grid, (min(finer),) * 3)
    ours = whole(ImageResampler(array, source, target, interpolation=interpolation, padding=None), 3)[0]
    reference = sitk.ResampleImageFilter()
    reference.SetReferenceImage(io.to_sitk(Volume(np.zeros((1, *target.shape), "f4"), target.affine)))
    reference.SetInterpolator(sitk.sitkBSpline if interpolation == "bspline" else sitk.sitkLinear)
    reference.SetDefaultPixelValue(np.nan)
    theirs = sitk.GetArrayFromImage(reference.Execute(io.to_sitk(Volume(array, affine))))
    inside = np.isfinite(theirs)
    assert np.abs(ours - theirs)[inside].max(initial=0.0) < 2e-5 * max(np.ptp(array), 1.0)
    assert np.isfinite(ours).all()


def test_the_same_and_turned_grids_copy_voxels_bit_for_bit() -> None:
    array = noise(channels=2)
    source = Grid((11, 22, 31), turned((0.2, 0.3, 0.1), 1.0))
    for letters in ("SPL", "RAS", "PIL"):
        target = reorient(Volume(array, source.affine), letters)
        np.testing.assert_array_equal(whole(ImageResampler(array, source, target.grid), 4), target.array)
    inner = source.cropped((2, 3, 4), (5, 6, 7))
    np.testing.assert_array_equal(whole(ImageResampler(array, source, inner)), array[:, 2:7, 3:9, 4:11])


def test_before_acts_on_native_voxels_of_its_channel() -> None:
    array = noise(channels=2)
    source, target = Grid((11, 22, 31), STRAIGHT), TARGETS["coarser"]

    def clip(native: np.ndarray, channel: int) -> np.ndarray:
        assert native.dtype == np.int16
        return np.clip(native, -100 * (channel + 1), 200)

    clipped = np.stack([np.clip(array[c], -100 * (c + 1), 200) for c in range(2)])
    expected = whole(ImageResampler(clipped, source, target))
    before = array.copy()
    np.testing.assert_array_equal(whole(ImageResampler(array, source, target, before=clip), 64), expected)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("padding", ["reflect", "edge"])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.0, 0.0, 0.02)])
def test_padding_repeats_what_is_inside(padding: str, angles: tuple[float, ...]) -> None:
    source = Grid((11, 22, 31), turned(angles, 0.2 if any(angles) else 0.0))
    array = noise()
    inner = isotropic_grid(source.cropped((2, 3, 4), (6, 9, 11)), (1.0, 1.0, 1.0))
    outer = inner.cropped((-21, -7, 0), (60, 30, 30))
    got = whole(ImageResampler(array, source, outer, padding=padding), 7)[0]
    start, stop = box_inside(outer, source)
    content = whole(ImageResampler(array, source, outer.cropped(start, stop - start), padding=None))[0]
    widths = list(zip(start, np.array(outer.shape) - stop, strict=True))
    mode = "symmetric" if padding == "reflect" else "edge"
    np.testing.assert_allclose(got, np.pad(content, widths, mode=mode), atol=1e-3)  # type: ignore[call-overload]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_fill_lies_outside_and_only_there(target: Grid) -> None:
    source = Grid((11, 22, 31), STRAIGHT)
    wide = target.cropped((-3, -2, -4), tuple(np.array(target.shape) + 7))
    index = np.stack(np.meshgrid(*map(np.arange, wide.shape), indexing="ij"), -1)
    at = source.world_to_index(wide.index_to_world(index))
    inside = ((at >= -0.5) & (at <= np.array(source.shape) - 0.5)).all(axis=-1)
    filled = whole(ImageResampler(np.full((1, 11, 22, 31), 5, "u1"), source, wide, fill=-7.0), 5)[0]
    np.testing.assert_allclose(filled, np.where(inside, 5.0, -7.0), atol=1e-5)


def test_smoothing_makes_up_for_what_interpolation_lacks() -> None:
    source = Grid((20, 20, 20), np.eye(4))

    def sigma(spacing: float, interpolation: str = "linear") -> float:
        return smoothing_sigma(source, Grid((9, 9, 9), np.diag([spacing, 1, 0.5, 1])), interpolation)[0]

    assert sigma(1.0) == sigma(0.4) == sigma(1.3) == sigma(9.0, "nearest") == 0.0
    assert sigma(2.0) == pytest.approx(np.sqrt(3 / (8 * np.log(2)) - 1 / 6))
    assert sigma(2.0, "bspline") == pytest.approx(np.sqrt(3 / (8 * np.log(2))))
    assert sigma(1.1, "bspline") > 0
    assert smoothing_sigma(source, Grid((9, 9, 9), np.diag([2.0, 1, 0.5, 1])), "linear")[1:] == (0.0, 0.0)


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
@pytest.mark.parametrize("kind", ["coarser", "turned"])
def test_a_coarser_image_is_the_smoothed_one_interpolated(interpolation: str, kind: str) -> None:
    source, target, array = Grid((21, 22, 31), STRAIGHT), TARGETS["coarser"], noise((21, 22, 31), dtype="f4")
    if kind == "turned":
        target = Grid((7, 9, 10), turned((0.2, 0.1, 0.3)) @ np.diag([2.2, 2.4, 2.6, 1]))
    sigma = smoothing_sigma(source, target, interpolation)
    assert min(sigma) > 0.4
    smooth = gaussian_filter(array[0].astype("f8"), sigma, mode="nearest", truncate=3.0)[None]
    expected = by_scipy(smooth, source, target, ORDERS[interpolation])
    got = whole(ImageResampler(array, source, target, interpolation=interpolation, padding=None), 2)[0]
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)
    at = source.world_to_index(target.index_to_world(index))
    inside = ((at >= 0) & (at <= np.array(source.shape) - 1)).all(axis=-1)
    assert inside.sum() > 50
    np.testing.assert_allclose(got[inside], expected[inside], atol=1e-4 * np.ptp(array))


@pytest.mark.parametrize("dtype", ["?", ">i2", ">f4", "f2", "i4", "u8", "f8"])
@pytest.mark.parametrize("target", ["coarser", "turned"])
def test_every_stored_type_is_resampled(dtype: str, target: str) -> None:
    source, array = Grid((11, 22, 31), STRAIGHT), np.abs(noise()).astype(dtype)
    results = [whole(ImageResampler(a, source, TARGETS[target])) for a in (array, array.astype("f4"))]
    np.testing.assert_array_equal(*results)


def test_which_way_is_taken() -> None:
    source = Grid((11, 22, 31), STRAIGHT)

    def kind(target: Grid) -> type:
        return type(map_between(source, target, interpolation="linear", smoothing=1.0, fill=None))

    assert kind(TARGETS["finer"]) is SeparableMap
    assert kind(Grid((11, 22, 31), turned((0, 0, 1e-6)))) is SeparableMap  # a header's rounding
    assert kind(Grid((11, 22, 31), turned((0, 0, 1e-3)))) is ObliqueMap
    assert kind(TARGETS["sheared"]) is ObliqueMap


def test_a_memory_map_is_read_only_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "voxels"
    array = noise()
    array.tofile(path)
    mapped = np.memmap(path, array.dtype, "r", shape=array.shape)
    read: list[int] = []

    def note(native: np.ndarray, channel: int) -> np.ndarray:
        read.append(len(native))
        return native

    resampler = ImageResampler(mapped, Grid((11, 22, 31), STRAIGHT), TARGETS["finer"], before=note)
    resampler.slab(0, 2)
    assert sum(read) <= 3
