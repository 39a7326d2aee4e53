from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medi3d.config import PreprocessConfig
from medi3d.errors import ConfigError, InputError
from medi3d.preprocess import foreground
from medi3d.preprocess.intensity import NORMALIZATIONS, IntensityMap

CONFIG = PreprocessConfig(window_hu=(-1000.0, 400.0))
DATASET = (10.0, 90.0, 50.0, 12.5)


def brain(scale: float = 1.0, background: float | None = 0.0) -> np.ndarray:
    array = np.random.default_rng(0).normal(50, 10, (12, 14, 16))
    if background is not None:
        mask = np.zeros(array.shape, bool)
        mask[3:9, 3:11, 3:13] = True
        array[~mask] = background
    return (array * scale).astype("f4")


def normalize(method: str, channel: np.ndarray, config: PreprocessConfig = CONFIG) -> np.ndarray:
    return NORMALIZATIONS[method](channel, config, DATASET)(channel)


# --- the map


def test_ct_maps_the_window_to_zero_one() -> None:
    channel = np.array([-2000, -1000, -300, 400, 3000], "i2").reshape(1, 1, 5)
    normalized = normalize("ct", channel)
    np.testing.assert_allclose(normalized.ravel(), [0, 0, 0.5, 1, 1])
    assert normalized.dtype == np.float32


@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
def test_padding_of_a_ct_becomes_air_in_its_own_type(padding: int) -> None:
    channel = np.random.default_rng(0).integers(-900, 300, (4, 5, 6)).astype("i2")
    channel[:, 0] = padding
    fitted = NORMALIZATIONS["ct"](channel, CONFIG, None)
    clipped = fitted.before(channel)
    assert clipped.dtype == np.int16  # 79 M voxels stay 2 bytes each
    assert (clipped[:, 0] == -1000).all()
    np.testing.assert_array_equal(clipped[:, 1:], channel[:, 1:])


def test_types_stay_where_that_is_exact() -> None:
    small = np.arange(60, dtype="u1").reshape(3, 4, 5)
    assert IntensityMap(low=-1000.0, high=400.0).before(small) is small  # nothing to clip: no copy
    assert IntensityMap().before(small) is small
    assert IntensityMap(low=2.5, high=40.0).before(small).dtype == np.float32
    assert IntensityMap(low=-5.0, high=40.5).before(small).dtype == np.float32
    assert IntensityMap(low=2.0).before(small).dtype == np.uint8
    assert IntensityMap(low=2.0, background=0.0).before(small).dtype == np.float32
    assert IntensityMap(low=2.0).before(small.astype("f8")).dtype == np.float32
    whole = small.astype("f4")
    assert IntensityMap().before(whole) is whole


def test_background_is_zero_and_does_not_bleed() -> None:
    channel = brain(background=-3.0)
    fitted = NORMALIZATIONS["mr"](channel, CONFIG, None)
    before = fitted.before(channel)
    assert (before[channel == -3.0] == np.float32(fitted.offset)).all()
    halfway = (before[2] + before[3]) / 2  # what interpolation does at the rim
    assert (np.abs(fitted.after(halfway)) <= np.abs(fitted(channel)[3]) / 2 + 1e-5).all()


def test_after_works_in_place_and_before_does_not() -> None:
    channel = brain()
    kept = channel.copy()
    fitted = NORMALIZATIONS["mr"](channel, CONFIG, None)
    slab = fitted.before(channel)
    assert fitted.after(slab) is slab
    np.testing.assert_array_equal(channel, kept)


@given(
    low=st.floats(-1e3, 0), width=st.floats(1, 1e3), offset=st.floats(-1e3, 1e3), scale=st.floats(1e-3, 1e3),
    kind=st.sampled_from(["u1", "i2", "u2", "i4", "f4", "f8"]),
)  # fmt: skip
def test_the_map_is_its_formula(low: float, width: float, offset: float, scale: float, kind: str) -> None:
    values = np.linspace(0 if kind[0] == "u" else -2000, 255 if kind == "u1" else 2000, 60).reshape(3, 4, 5)
    channel = values.astype(kind)
    expected = (np.clip(channel.astype("f8"), low, low + width) - offset) / scale
    normalized = IntensityMap(low, low + width, offset, scale)(channel)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-3 / scale)


def test_the_record_is_plain_json() -> None:
    assert IntensityMap(low=1.0, offset=2.0).to_json() == {
        "low": 1.0, "high": None, "offset": 2.0, "scale": 1.0, "background": None,
    }  # fmt: skip


# --- the methods


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 255.0, 1.7e6, 1e12])
@pytest.mark.parametrize("background", [None, 0.0, -3.0])
@pytest.mark.parametrize("method", ["mr", "percentile"])
def test_scales_do_not_matter(method: str, scale: float, background: float | None) -> None:
    channel = brain(scale, background)
    normalized = normalize(method, channel)
    np.testing.assert_allclose(normalized, normalize(method, brain(1.0, background)), atol=1e-4)
    mask = np.ones(channel.shape, bool) if background is None else channel != np.float32(background * scale)
    if method == "mr":
        assert normalized[mask].mean() == pytest.approx(0, abs=1e-3)
        assert normalized[mask].std() == pytest.approx(1, abs=1e-3)
        assert (normalized[~mask] == 0).all()
    else:
        assert normalized.min() == 0
        assert normalized.max() == pytest.approx(1)


def test_mr_is_by_hand() -> None:
    channel = brain(background=None)
    low, high = np.percentile(channel, [0.5, 99.5])
    clipped = np.clip(channel, low, high)
    np.testing.assert_allclose(normalize("mr", channel), (clipped - clipped.mean()) / clipped.std(), atol=1e-4)
    config = replace(CONFIG, clip_percentiles=(5.0, 80.0))
    low, high = np.percentile(channel, [5, 80])
    expected = (np.clip(channel, low, high) - low) / (high - low)
    np.testing.assert_allclose(normalize("percentile", channel, config), expected, atol=1e-5)


def test_dataset_is_by_hand() -> None:
    channel = brain().astype("i2")
    expected = (np.clip(channel.astype("f8"), 10, 90) - 50) / 12.5
    np.testing.assert_allclose(normalize("dataset", channel), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"needs preprocess\.dataset_intensities"):
        NORMALIZATIONS["dataset"](channel, CONFIG, None)


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
@pytest.mark.parametrize("method", list(NORMALIZATIONS))
def test_every_stored_type(method: str, kind: str) -> None:
    channel = brain().astype(kind)
    kept = channel.copy()
    normalized = normalize(method, channel)
    assert normalized.dtype == np.float32
    assert not np.shares_memory(normalized, channel)
    np.testing.assert_array_equal(channel, kept)
    np.testing.assert_allclose(normalized, normalize(method, channel.astype("f8")), atol=1e-4)


@pytest.mark.parametrize("method", ["mr", "percentile"])
def test_one_hot_voxel_does_not_matter(method: str) -> None:
    channel = brain(background=None)
    hot = channel.copy()
    hot[5, 5, 5] = 1e9
    ours, theirs = (np.delete(normalize(method, array).ravel(), 5 * 14 * 16 + 85) for array in (channel, hot))
    np.testing.assert_allclose(ours, theirs, atol=0.05)


@pytest.mark.parametrize("value", [0.0, 5.0, -1024.0])
@pytest.mark.parametrize("method", list(NORMALIZATIONS))
def test_a_constant_image_is_refused(method: str, value: float) -> None:
    with pytest.raises(InputError, match="the image is constant"):
        normalize(method, np.full((4, 5, 6), value, "f4"))


@pytest.mark.parametrize("method", ["mr", "percentile"])
def test_nothing_but_one_voxel_is_refused(method: str) -> None:
    lonely = np.zeros((4, 5, 6), "f4")
    lonely[2, 2, 2] = 1e9
    with pytest.raises(InputError, match=r"the image is constant \(outside its background\)"):
        normalize(method, lonely)
    sparse = np.full((19, 18, 17), 4, "i2")
    sparse[::18, ::17, ::16] = np.arange(8).reshape(2, 2, 2)
    with pytest.raises(InputError, match=r"constant between its percentiles 0\.5 and 99\.5 .*, both 4"):
        normalize(method, sparse)


@pytest.mark.parametrize(("value", "side"), [(500, "above"), (-2000, "below")])
def test_a_ct_outside_its_window_is_refused(value: int, side: str) -> None:
    channel = value + np.arange(60, dtype="i2").reshape(3, 4, 5)
    with pytest.raises(InputError, match=f"every voxel lies {side} the window -1000 to 400"):
        normalize("ct", channel)


def test_unknown_normalisation() -> None:
    with pytest.raises(ConfigError, match="unknown normalisation 'mri'; did you mean 'mr'"):
        NORMALIZATIONS["mri"]


def test_sampled_statistics_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = np.random.default_rng(0).gamma(2, 100, (40, 36, 30)).astype("f4")
    whole = NORMALIZATIONS["mr"](channel, CONFIG, None)
    monkeypatch.setattr(foreground, "MAX_VOXELS", 10_000)
    sampled = NORMALIZATIONS["mr"](channel, CONFIG, None)
    assert sampled.offset == pytest.approx(whole.offset, rel=0.02)
    assert sampled.scale == pytest.approx(whole.scale, rel=0.03)
