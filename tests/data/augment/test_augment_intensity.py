from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medi3d.data.augment.draw import IntensityChange
from medi3d.data.augment.intensity import change_intensities, smoothing_matrix

SHAPE = (14, 22, 18)


def still(channels: int = 2) -> IntensityChange:
    zeros, ones = np.zeros(channels), np.ones(channels)
    return IntensityChange(zeros, ones, np.ones(3, bool), 0.0, 7, ones, zeros, ones, inverted=False)


def noise(channels: int = 2) -> Tensor:
    random = torch.randn(channels, *SHAPE, generator=torch.Generator().manual_seed(1))
    return random * torch.tensor([3.0, 50.0])[:channels, None, None, None] + 10


def change(image: Tensor, **options: object) -> Tensor:
    before = image.clone()
    changed = change_intensities(image, replace(still(image.shape[0]), **options), torch.Generator())  # type: ignore[arg-type]
    assert torch.equal(image, before)
    return changed


def test_nothing_drawn_changes_nothing() -> None:
    image = noise()
    assert torch.equal(change(image), image)


def test_blur_is_a_gaussian_of_each_channel_alone() -> None:
    image = noise()
    blurred = change(image, blur=np.array([1.2, 0.0]))
    expected = gaussian_filter(image[0].numpy().astype(np.float64), 1.2, mode="constant", truncate=12)
    weight = gaussian_filter(np.ones(SHAPE), 1.2, mode="constant", truncate=12)  # at the rim it is normalised
    np.testing.assert_allclose(blurred[0], expected / weight, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(blurred[1], image[1], rtol=1e-6, atol=1e-4)


def test_coarsening_averages_and_reads_linearly() -> None:
    # 4 voxels, factor 2: averages of pairs lie at 0.5 and 2.5
    matrix = smoothing_matrix(4, blur=0, coarsen=2)
    a, b = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.5, 0.5])
    np.testing.assert_allclose(matrix, [a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, b])
    # 5 voxels to 2: a coarse voxel covers two and a half
    both = smoothing_matrix(5, blur=0, coarsen=2.4)
    np.testing.assert_allclose(both[0], [0.4, 0.4, 0.2, 0, 0])
    np.testing.assert_allclose(both[2], np.full(5, 0.2))
    np.testing.assert_allclose(smoothing_matrix(3, blur=0, coarsen=9), np.full((3, 3), 1 / 3))


@pytest.mark.parametrize(("blur", "coarsen"), [(0.0, 1.7), (0.8, 1.0), (1.5, 2.5)])
def test_smoothing_keeps_a_constant(blur: float, coarsen: float) -> None:
    np.testing.assert_allclose(smoothing_matrix(13, blur=blur, coarsen=coarsen).sum(1), 1)


def test_thick_axes_are_not_smoothed() -> None:
    image = noise()
    options = {"blur": np.ones(2), "coarsen": np.full(2, 2.0)}
    smoothed = change(image, **options, smoothed=np.array([False, True, True]))
    one_plane = change(image[:, 3:4].contiguous(), **options, smoothed=np.array([False, True, True]))
    torch.testing.assert_close(smoothed[:, 3:4], one_plane)
    assert not torch.allclose(change(image, **options)[:, 3:4], one_plane, atol=0.1)


def test_contrast_and_brightness_are_relative_to_each_channel() -> None:
    image = noise()
    changed = change(image, contrast=np.array([1.25, 0.8]), brightness=np.array([0.0, -0.1]))
    for channel, (factor, added) in enumerate(((1.25, 0.0), (0.8, -0.1))):
        values = image[channel].numpy().astype(np.float64)
        expected = (values - values.mean()) * factor + values.mean() + added * values.std()
        np.testing.assert_allclose(changed[channel], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_bends_the_range_and_keeps_its_ends(inverted: bool) -> None:
    image = noise()
    changed = change(image, gamma=np.array([1.3, 0.7]), inverted=inverted)
    for channel, exponent in enumerate((1.3, 0.7)):
        values = image[channel].numpy().astype(np.float64)
        low, high = values.min(), values.max()
        share = (values - low) / (high - low)
        share = 1 - (1 - share) ** exponent if inverted else share**exponent
        np.testing.assert_allclose(changed[channel], share * (high - low) + low, rtol=1e-4, atol=1e-2)


def test_noise_is_relative_to_the_channel_and_drawn_from_its_seed() -> None:
    image = noise()
    added = change(image, noise=0.1) - image
    np.testing.assert_allclose(added.std((1, 2, 3)), 0.1 * image.std((1, 2, 3)), rtol=0.05)
    assert float(torch.corrcoef(added.flatten(1))[0, 1].abs()) < 0.05
    assert torch.equal(change(image, noise=0.1) - image, added)
    assert not torch.equal(change(image, noise=0.1, noise_seed=8) - image, added)


def test_a_constant_patch_stays_finite() -> None:
    image = torch.full((2, *SHAPE), 3.0)
    drawn = {"blur": np.ones(2), "noise": 0.1, "contrast": np.full(2, 1.2), "gamma": np.full(2, 0.7)}
    for inverted in (False, True):
        changed = change(image, **drawn, inverted=inverted)
        torch.testing.assert_close(changed, image, rtol=0, atol=1e-3)
