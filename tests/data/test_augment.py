from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medi3d.config import AugmentConfig
from medi3d.data.augment import Augmenter

OFF = {
    "mirror_axes": (),
    "rotate_degrees": 0.0,
    "scale": 0.0,
    "noise_std": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
}
ALWAYS = {"spatial_probability": 1.0, "intensity_probability": 1.0}


def make_augmenter(**options: object) -> Augmenter:
    return Augmenter(AugmentConfig(**{**OFF, **ALWAYS, **options}))  # type: ignore[arg-type]


def make_ball(shape: tuple[int, int, int] = (18, 24, 21)) -> Tensor:
    """A ball off the centre, (1, D, H, W) of zeros and ones."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    away = np.linalg.norm(index - (np.array(shape) / 2 + [1, -2, 2]), axis=-1)
    return torch.from_numpy((away < 5.5).astype(np.uint8))[None]


def noise(seed: int, channels: int = 1) -> Tensor:
    return torch.randn(channels, 6, 9, 8, generator=torch.Generator().manual_seed(seed))


def test_everything_off_changes_nothing() -> None:
    image, label = noise(0, channels=2), make_ball((6, 9, 8))
    moved, same = make_augmenter()(image, label, seed=5)
    assert torch.equal(moved, image)
    assert same is not None
    assert torch.equal(same, label)
    assert make_augmenter()(image, None, seed=5)[1] is None


def test_probability_zero_changes_nothing() -> None:
    config = AugmentConfig(mirror_axes=(), spatial_probability=0.0, intensity_probability=0.0)
    image = noise(1)
    assert all(torch.equal(Augmenter(config)(image, None, seed=seed)[0], image) for seed in range(5))


def test_inputs_are_not_changed() -> None:
    image, label = noise(2), make_ball((6, 9, 8))
    before = image.clone(), label.clone()
    Augmenter(AugmentConfig(spatial_probability=1.0, intensity_probability=1.0))(image, label, seed=1)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


@pytest.mark.parametrize(("axes", "dims"), [(("D",), [1]), (("H",), [2]), (("W",), [3]), (("D", "W"), [1, 3])])
def test_only_the_axes_of_the_configuration_are_mirrored(axes: tuple[str, ...], dims: list[int]) -> None:
    image = noise(3)
    possible = [image]
    for dim in dims:
        possible += [torch.flip(one, [dim]) for one in possible]
    seen = set()
    for seed in range(24):
        moved = make_augmenter(mirror_axes=axes)(image, None, seed=seed)[0]
        seen.add(next(n for n, one in enumerate(possible) if torch.equal(one, moved)))
    assert seen == set(range(len(possible)))


@pytest.mark.parametrize("options", [{"rotate_degrees": 25.0}, {"scale": 0.2}, {"rotate_degrees": 15.0, "scale": 0.15}])
def test_the_label_moves_with_the_image(options: dict[str, float]) -> None:
    label = make_ball()
    augmenter = make_augmenter(mirror_axes=("D", "H", "W"), **options)
    moved_any = False
    for seed in range(6):
        moved, moved_label = augmenter(label.float(), label, seed=seed)
        assert moved_label is not None
        assert moved_label.shape == label.shape
        assert set(moved_label.unique().tolist()) == {0, 1}
        # the image was interpolated, the label was not; a voxel's difference at the rim is left
        apart = (moved > 0.5) ^ (moved_label > 0)
        assert apart.sum() <= 0.15 * moved_label.sum()
        shift = torch.argwhere(moved > 0.5).double().mean(0) - torch.argwhere(moved_label > 0).double().mean(0)
        assert shift.abs().max() < 0.25
        moved_any |= bool((moved_label != label).sum() > 0.2 * label.sum())
    assert moved_any


def test_several_labels_are_not_mixed() -> None:
    label = make_ball() * 3
    moved = make_augmenter(rotate_degrees=30.0)(label.float(), label, seed=2)[1]
    assert moved is not None
    assert set(moved.unique().tolist()) == {0, 3}


def test_one_seed_gives_one_result() -> None:
    augmenter = Augmenter(AugmentConfig(spatial_probability=1.0, intensity_probability=1.0))
    image = noise(4)
    first = augmenter(image, None, seed=8)[0]
    torch.manual_seed(0)
    assert torch.equal(augmenter(image, None, seed=8)[0], first)
    assert not torch.equal(augmenter(image, None, seed=9)[0], first)


def test_brightness_adds_a_constant_of_at_most_its_share_of_the_spread() -> None:
    image = noise(5) * 7 + 100
    for seed in range(10):
        added = make_augmenter(brightness=0.2)(image, None, seed=seed)[0] - image
        torch.testing.assert_close(added, added.mean().expand_as(added), rtol=0, atol=1e-3)
        assert abs(float(added.mean())) <= 0.2 * float(image.std())


def test_contrast_scales_about_the_mean() -> None:
    image = noise(6) * 3 - 20
    for seed in range(10):
        changed = make_augmenter(contrast=0.25)(image, None, seed=seed)[0]
        assert float(changed.mean()) == pytest.approx(float(image.mean()), abs=1e-3)
        assert 0.75 <= float(changed.std() / image.std()) <= 1.25


def test_gamma_keeps_range_and_order() -> None:
    image = noise(7) * 3 - 20
    changed = make_augmenter(gamma=0.3)(image, None, seed=1)[0]
    torch.testing.assert_close(changed.min(), image.min())
    torch.testing.assert_close(changed.max(), image.max())
    assert torch.equal(changed.flatten().argsort(), image.flatten().argsort())
    assert not torch.allclose(changed, image, atol=1e-2)


def test_noise_is_relative_to_the_spread() -> None:
    image = torch.randn(1, 20, 24, 22, generator=torch.Generator().manual_seed(8)) * 1e5
    strengths = [float((make_augmenter(noise_std=0.1)(image, None, seed=s)[0] - image).std()) for s in range(10)]
    assert max(strengths) <= 0.1 * float(image.std()) * 1.02
    assert max(strengths) > 0.05 * float(image.std())


def test_a_constant_image_stays_finite() -> None:
    image = torch.full((1, 6, 7, 8), 3.0)
    changed = Augmenter(AugmentConfig(spatial_probability=1.0, intensity_probability=1.0))(image, None, seed=3)[0]
    assert torch.isfinite(changed).all()
