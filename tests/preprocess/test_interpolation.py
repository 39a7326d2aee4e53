from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d, map_coordinates

from medi3d.errors import ConfigError
from medi3d.preprocess.resampling.interpolation import axis_weights, cubic_kernel, linear_kernel, reach_of

ORDER = {"linear": 1, "bspline": 3, "nearest": 0}


def weights(
    at: np.ndarray, extent: int, interpolation: str = "linear", sigma: float = 0.0, extend: bool = True
) -> np.ndarray:
    return axis_weights(at, extent, interpolation=interpolation, sigma=sigma, extend=extend)


@settings(max_examples=60, deadline=None)
@given(extent=st.integers(2, 60), seed=st.integers(0, 999), interpolation=st.sampled_from(["linear", "bspline"]))
def test_inside_it_is_what_scipy_does(extent: int, seed: int, interpolation: str) -> None:
    rng = np.random.default_rng(seed)
    voxels, at = rng.normal(size=extent), rng.uniform(0, extent - 1, 40)
    expected = map_coordinates(voxels, [at], order=ORDER[interpolation], mode="mirror")
    np.testing.assert_allclose(weights(at, extent, interpolation) @ voxels, expected, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["linear", "bspline", "nearest"])
def test_it_is_what_simpleitk_does_up_to_the_rim(interpolation: str) -> None:
    voxels = np.random.default_rng(0).normal(size=23)
    at = np.linspace(-0.5, 22.5, 93)[1:-1] + 1e-3
    image = sitk.GetImageFromArray(np.tile(voxels, (9, 1)))
    codes = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline, "nearest": sitk.sitkNearestNeighbor}
    code = codes[interpolation]
    resampled = sitk.Resample(
        image, (len(at), 1), sitk.Transform(), code, (float(at[0]), 4.0), (float(at[1] - at[0]), 1.0), (1.0, 0, 0, 1.0)
    )
    expected = sitk.GetArrayFromImage(resampled)[0]
    np.testing.assert_allclose(weights(at, 23, interpolation) @ voxels, expected, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(extent=st.integers(1, 40), sigma=st.floats(0.2, 4.0), seed=st.integers(0, 99))
def test_smoothing_is_what_scipy_does(extent: int, sigma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    voxels, at = rng.normal(size=extent), rng.uniform(0, extent - 1, 20)
    smooth = gaussian_filter1d(voxels, sigma, mode="nearest", truncate=3.0)
    expected = np.interp(at, np.arange(extent), smooth)
    np.testing.assert_allclose(weights(at, extent, sigma=sigma) @ voxels, expected, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    extent=st.integers(1, 50),
    interpolation=st.sampled_from(sorted(ORDER)),
    sigma=st.sampled_from([0.0, 0.5, 1.7]),
    extend=st.booleans(),
    seed=st.integers(0, 99),
)
def test_weights_add_up_to_one_and_reach_no_further_than_said(
    extent: int, interpolation: str, sigma: float, extend: bool, seed: int
) -> None:
    at = np.random.default_rng(seed).uniform(-5, extent + 5, 30)
    matrix = weights(at, extent, interpolation, sigma, extend)
    inside = (at >= -0.5) & (at <= extent - 0.5)
    np.testing.assert_allclose(matrix.sum(axis=1), np.ones(30) if extend else inside, atol=1e-12)
    assert not np.any((np.abs(matrix) > 0) & (np.abs(matrix) < 1e-10)), "denormals in float32 products"
    distance = np.abs(np.arange(extent) - np.clip(at, 0, extent - 1)[:, None])
    assert (matrix[distance > reach_of(interpolation, sigma) + 1] == 0).all()


def test_beyond_the_field_of_view_lies_the_outermost_voxel() -> None:
    at = np.array([-3.0, -0.51, 6.51, 40.0])
    for interpolation in ("linear", "bspline", "nearest"):
        np.testing.assert_allclose(weights(at, 7, interpolation)[:, [0, 0, 6, 6]].diagonal(), 1.0, atol=1e-12)


def test_kernels_are_one_at_their_voxel_and_zero_at_the_others() -> None:
    for kernel in (linear_kernel, cubic_kernel):
        np.testing.assert_allclose(kernel(np.arange(-6.0, 7.0)), np.arange(-6, 7) == 0, atol=1e-6)


def test_an_unknown_interpolation() -> None:
    with pytest.raises(ConfigError, match="unknown interpolation 'cubic'"):
        weights(np.zeros(1), 3, "cubic")
