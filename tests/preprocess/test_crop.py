from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medi3d.config import PreprocessConfig, Spacing
from medi3d.errors import ConfigError, InputError
from medi3d.preprocess.crop import CROPS, bounding_box, mask_center_mm, prepared_spacing
from medi3d.preprocess.resampling.resample import ImageResampler
from medi3d.volume import Grid, LabelMap, Volume

AFFINE = np.array([[0.0, 0, -0.7, 5], [0, -0.9, 0, 6], [2.5, 0, 0, 7], [0, 0, 0, 1]])  # SPL
ONE_MM = (1.0, 1.0, 1.0)


def noise(shape: tuple[int, int, int] = (9, 21, 30), affine: np.ndarray = AFFINE) -> Volume:
    return Volume(np.random.default_rng(0).normal(size=(1, *shape)).astype("f4"), affine)


def padded(volume: Volume, grid: Grid, padding: str) -> Volume:
    slabs = ImageResampler(volume.array, volume.grid, grid, padding=padding)
    return Volume(slabs.slab(0, grid.shape[0]), grid.affine)


def cube(size: float = 20.0) -> PreprocessConfig:
    return PreprocessConfig(crop="cube", cube_mm=size)


@pytest.mark.parametrize(("wanted", "expected"), [("native", (2.5, 0.9, 0.7)), ((3.0, 2.0, 1.0), (3.0, 2.0, 1.0))])
def test_the_prepared_spacing(wanted: Spacing, expected: tuple[float, float, float]) -> None:
    assert prepared_spacing(wanted, noise().grid) == pytest.approx(expected)


def test_a_median_that_no_one_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"still 'median'; `medi3d preprocess` measures"):
        prepared_spacing("median", noise().grid)


def test_native_spacing_keeps_the_grid() -> None:
    spacing = prepared_spacing("native", noise().grid)
    assert CROPS["none"](noise(), PreprocessConfig(spacing_mm="native"), spacing, None).is_close(noise().grid)


def test_bounding_box() -> None:
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 2, 3] = mask[3, 2, 5] = True
    box = bounding_box(mask)
    assert box is not None
    start, stop = box
    assert start.tolist() == [1, 2, 3]
    assert stop.tolist() == [4, 3, 6]
    assert bounding_box(np.zeros((2, 3, 4), bool)) is None


def test_foreground_box_keeps_the_object_and_a_margin() -> None:
    array = np.full((2, 40, 50, 60), -1.0, "f4")
    array[0, 10:20, 12:30, 15:40] = 5
    array[1, 12:25, 12:30, 15:40] = 6  # the union counts
    volume = Volume(array, np.diag([2.0, 1.0, 1.0, 1.0]))
    grid = CROPS["foreground"](volume, PreprocessConfig(crop="foreground"), (2.0, 1.0, 1.0), None)
    assert volume.grid.world_to_index(grid.origin_mm).round().astype(int).tolist() == [8, 8, 11]
    assert grid.shape == (15 + 4, 18 + 8, 25 + 8)


def test_without_background_the_foreground_is_everything() -> None:
    grid = CROPS["foreground"](noise(), PreprocessConfig(crop="foreground"), (2.5, 0.9, 0.7), None)
    assert grid.is_close(noise().grid)


def test_foreground_of_a_constant_image_is_refused() -> None:
    with pytest.raises(InputError, match="every voxel of the image has the same value"):
        CROPS["foreground"](Volume(np.ones((1, 4, 5, 6), "f4"), AFFINE), PreprocessConfig(), ONE_MM, None)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 40)),
    where=st.tuples(*[st.floats(0, 1)] * 3),
    size=st.floats(3, 40),
    spacing=st.tuples(*[st.floats(0.8, 3)] * 3),
    padding=st.sampled_from(["reflect", "edge"]),
)
def test_every_cube_has_the_same_shape_and_lies_around_its_centre(
    shape: tuple[int, int, int],
    where: tuple[float, ...],
    size: float,
    spacing: tuple[float, float, float],
    padding: str,
) -> None:
    volume = noise(shape)
    center = volume.grid.index_to_world(np.array(where) * (np.array(shape) - 1))
    grid = CROPS["cube"](volume, cube(size), spacing, tuple(center))
    assert grid.shape == tuple(max(1, round(size / s)) for s in spacing)
    np.testing.assert_allclose(grid.index_to_world((np.array(grid.shape) - 1) / 2), center, atol=1e-6)
    image = padded(volume, grid, padding)
    assert image.shape == grid.shape
    assert np.isfinite(image.array).all()
    assert image.array.min() >= volume.array.min() - 1e-5
    assert image.array.max() <= volume.array.max() + 1e-5


def test_a_cube_inside_is_a_plain_crop() -> None:
    volume = noise((30, 31, 32), np.diag([1.0, 1.0, 1.0, 1.0]))
    grid = CROPS["cube"](volume, cube(10), ONE_MM, (14.5, 15.5, 16.5))
    image = padded(volume, grid, "reflect")
    np.testing.assert_allclose(image.array, volume.array[:, 10:20, 11:21, 12:22], atol=1e-6)


def test_padding_larger_than_the_volume_repeats_or_mirrors_it() -> None:
    volume = noise((3, 12, 12), np.eye(4))
    grid = volume.grid.cropped((-4, 0, 0), (11, 12, 12))
    image = padded(volume, grid, "edge").array[0]
    np.testing.assert_array_equal(image[:4], np.broadcast_to(volume.array[0, 0], (4, 12, 12)))
    np.testing.assert_array_equal(image[7:], np.broadcast_to(volume.array[0, 2], (4, 12, 12)))
    mirrored = padded(volume, grid, "reflect").array[0]
    np.testing.assert_array_equal(mirrored, np.pad(volume.array[0], ((4, 4), (0, 0), (0, 0)), mode="symmetric"))


def test_without_a_centre_the_cube_is_in_the_middle() -> None:
    grid = CROPS["cube"](noise(), cube(), ONE_MM, None)
    middles = [g.index_to_world((np.array(g.shape) - 1) / 2) for g in (grid, noise().grid)]
    np.testing.assert_allclose(*middles)


def test_a_centre_outside_is_refused() -> None:
    with pytest.raises(InputError, match=r"centre \[500\.0, 0\.0, 0\.0\] mm \(RAS\) lies outside the image"):
        CROPS["cube"](noise(), cube(), ONE_MM, (500.0, 0.0, 0.0))


def test_mask_center() -> None:
    array = np.zeros((1, 9, 21, 30), "uint8")
    array[0, 2:4, 3:6, 7] = 3
    center = mask_center_mm(LabelMap(array, AFFINE))
    np.testing.assert_allclose(center, AFFINE[:3] @ [2.5, 4, 7, 1])
    with pytest.raises(InputError, match="no voxel above 0"):
        mask_center_mm(LabelMap(np.zeros_like(array), AFFINE))
