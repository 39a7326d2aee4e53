from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medi3d import io
from medi3d.config import PreprocessConfig
from medi3d.preprocess.foreground import find_background, sample_voxels
from medi3d.preprocess.intensity import NORMALIZATIONS

SHAPE = (20, 24, 28)


def head(rng: np.random.Generator, *, air: float = 0.0, noise: float = 0.0, dtype: str = "f4") -> np.ndarray:
    """An ellipsoid of tissue around 100, in air with the noise of magnitude images."""
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    tissue = np.where((place**2).sum(0) < 0.8, rng.normal(100, 15, SHAPE), air)
    magnitude = np.hypot(tissue + noise * rng.normal(size=SHAPE), noise * rng.normal(size=SHAPE)) if noise else tissue
    return magnitude.astype(dtype)


def test_small_channels_are_measured_whole(rng: np.random.Generator) -> None:
    channel = head(rng)
    assert np.shares_memory(sample_voxels(channel), channel)
    np.testing.assert_array_equal(sample_voxels(channel[::-1, :, ::-1]), channel[::-1, :, ::-1].ravel())


def test_large_channels_are_sampled_evenly() -> None:
    d, h, w = np.meshgrid(*map(np.arange, (40, 36, 30)), indexing="ij")
    for coordinate in (d, h, w):
        sampled = sample_voxels(coordinate, limit=10_000)
        assert 4_000 < sampled.size <= 10_000
        assert sampled.mean() == pytest.approx(coordinate.mean(), rel=0.05)
        assert set(np.unique(sampled)) == set(np.unique(coordinate))


def test_a_memory_map_gives_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    channel = head(rng, noise=4, dtype="i2")
    mapped = np.memmap(tmp_path / "voxels", dtype="i2", mode="w+", shape=SHAPE)
    mapped[:] = channel
    assert find_background(mapped) == find_background(channel)
    np.testing.assert_array_equal(sample_voxels(mapped, 900), sample_voxels(channel, 900))


@pytest.mark.parametrize("air", [0.0, -3.0, 4.0])
def test_a_constant_background(air: float, rng: np.random.Generator) -> None:
    channel = head(rng, air=air)
    found = find_background(channel)
    assert found.value == air
    assert found.ceiling is None
    np.testing.assert_array_equal(found.foreground(channel), channel != air)
    np.testing.assert_array_equal(found.select(channel), channel[channel != air])


def test_air_with_noise(rng: np.random.Generator) -> None:
    clean, noisy = (head(np.random.default_rng(3), noise=noise) for noise in (0.0, 5.0))
    found = find_background(noisy)
    assert found.value is None
    assert found.ceiling == pytest.approx(2 * 5.0 * np.sqrt(-2 * np.log(0.05)), rel=0.15)  # Rayleigh's 95 %
    assert (found.foreground(noisy) == (clean > 0)).mean() > 0.999


def test_padding_around_air_with_noise(rng: np.random.Generator) -> None:
    channel = head(rng, noise=5.0)
    channel[:, :, 0] = channel[:, :, -1] = 0
    found = find_background(channel)
    assert found.value == 0
    assert found.ceiling is not None
    assert 15 < found.ceiling < 40
    np.testing.assert_array_equal(found.foreground(channel), channel > found.ceiling)


def test_zeros_here_and_there_are_no_background(rng: np.random.Generator) -> None:
    """In two real heads the corner voxels and 5 % of the air are exactly 0 amid noise: not one constant background."""
    channel = head(rng, noise=5.0)
    channel[channel < 3] = 0
    channel[::19, ::23, ::27] = 0
    found = find_background(channel)
    assert found.value is None
    assert found.ceiling is not None


def test_crops_and_constants_have_no_background(rng: np.random.Generator) -> None:
    crop = rng.normal(50, 10, SHAPE)
    assert find_background(crop).value is None
    assert find_background(crop).ceiling is None
    assert find_background(crop).foreground(crop).all()
    crop[::19, ::23, ::27] = 0.0
    assert find_background(crop).value is None  # the corners alone are no background
    assert find_background(np.zeros((1, 1, 1), "f4")).value == 0.0
    assert not find_background(np.full((3, 4, 5), 7, "u1")).foreground(np.full((3, 4, 5), 7, "u1")).any()


@pytest.mark.real_data
def test_crops_of_real_brains_keep_all_their_voxels(real_data: Callable[[str], Path]) -> None:
    for path in sorted((real_data("hippocampus") / "imagesTr").iterdir())[::20]:
        found = find_background(io.read_volume(path).array[0])
        assert (found.value, found.ceiling) == (None, None)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["dicom/mr_t1_oblique", "odd_volumes/brain1_image.nrrd"])
def test_the_field_of_view_of_a_real_head_does_not_matter(real_data: Callable[[str], Path], name: str) -> None:
    channel = io.read_volume(real_data(name)).array[0]
    assert find_background(channel).value is None
    config = PreprocessConfig()
    brain = np.percentile(channel[:, 60:-60, 60:-60], (25, 50, 75))
    scores = []
    for margin in (0, 40, 80):
        wide = np.pad(channel, [(0, 0), (margin, margin), (margin, margin)], mode="wrap")  # air stands beside air
        outside = np.ones(wide.shape, bool)
        outside[:, margin : wide.shape[1] - margin, margin : wide.shape[2] - margin] = False
        noise = np.random.default_rng(0).choice(channel[:, :20, :20].ravel(), int(outside.sum()))
        wide[outside] = noise
        fitted = NORMALIZATIONS["mr"](wide, config, None)
        scores.append((brain - fitted.offset) / fitted.scale)
    assert np.ptp(scores, axis=0).max() < 0.1
