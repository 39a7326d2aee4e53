from __future__ import annotations

import numpy as np
import pytest

from medi3d.config import PreprocessConfig
from medi3d.errors import ConfigError, InputError
from medi3d.preprocess.intensity import NORMALIZATIONS, background_value

CONFIG = PreprocessConfig(window_hu=(-1000.0, 400.0))


def brain(scale: float = 1.0, background: float | None = 0.0) -> np.ndarray:
    array = np.random.default_rng(0).normal(50, 10, (12, 14, 16))
    if background is not None:
        mask = np.zeros(array.shape, bool)
        mask[3:9, 3:11, 3:13] = True
        array[~mask] = background
    return (array * scale).astype("f4")


def test_ct_maps_the_window_to_zero_one() -> None:
    channel = np.array([-2000, -1000, -300, 400, 3000], "i2").reshape(1, 1, 5)
    normalized, _ = NORMALIZATIONS["ct"](channel, CONFIG)
    np.testing.assert_allclose(normalized.ravel(), [0, 0, 0.5, 1, 1])
    assert normalized.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0, 1.7e6])
@pytest.mark.parametrize("background", [None, 0.0, -3.0])
def test_mr_is_a_z_score_at_any_scale(scale: float, background: float | None) -> None:
    channel = brain(scale, background)
    normalized, measured = NORMALIZATIONS["mr"](channel, CONFIG)
    mask = np.ones(channel.shape, bool) if background is None else channel != np.float32(background * scale)
    assert normalized[mask].mean() == pytest.approx(0, abs=1e-3)
    assert normalized[mask].std() == pytest.approx(1, abs=1e-3)
    assert (normalized[~mask] == 0).all()
    assert measured["mean"] == pytest.approx(channel[mask].mean(), rel=0.01)
    assert normalized.dtype == np.float32


def test_mr_is_by_hand() -> None:
    channel = brain(background=None)
    low, high = np.percentile(channel, [0.5, 99.5])
    clipped = np.clip(channel, low, high)
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(NORMALIZATIONS["mr"](channel, CONFIG)[0], expected, atol=1e-4)


def test_one_hot_voxel_does_not_matter() -> None:
    channel = brain(background=None)
    hot = channel.copy()
    hot[5, 5, 5] = 1e9
    ours, theirs = (NORMALIZATIONS["mr"](array, CONFIG)[0] for array in (channel, hot))
    np.testing.assert_allclose(
        np.delete(ours.ravel(), 5 * 14 * 16 + 85), np.delete(theirs.ravel(), 5 * 14 * 16 + 85), atol=0.05
    )


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_constant_image_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="the image is constant"):
        NORMALIZATIONS["mr"](np.full((4, 5, 6), value, "f4"), CONFIG)


def test_none_trusts_the_values_and_inputs_stay() -> None:
    channel = brain()
    before = channel.copy()
    for name in NORMALIZATIONS:
        normalized, _ = NORMALIZATIONS[name](channel, CONFIG)
        assert not np.shares_memory(normalized, channel)
        np.testing.assert_array_equal(channel, before)
    np.testing.assert_array_equal(NORMALIZATIONS["none"](channel, CONFIG)[0], channel)


def test_unknown_normalisation() -> None:
    with pytest.raises(ConfigError, match="unknown normalisation 'mri'; did you mean 'mr'"):
        NORMALIZATIONS["mri"]


def test_background() -> None:
    assert background_value(brain(background=-3.0)) == -3.0
    assert background_value(brain(background=None)) is None
    rare = brain(background=None)
    rare[:: rare.shape[0] - 1, :: rare.shape[1] - 1, :: rare.shape[2] - 1] = 0.0
    assert background_value(rare) is None  # the corners alone are no background
    assert background_value(np.zeros((1, 1, 1), "f4")) == 0.0
