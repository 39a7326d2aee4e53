from __future__ import annotations

from typing import Any

import pytest
import torch

from medi3d.config import AugmentConfig
from medi3d.data.augment import Augmenter
from medi3d.errors import ConfigError

SIZE = (10, 18, 14)
OFF = {"mirror_axes": (), "rotate_degrees": 0.0, "scale": 0.0, "noise_std": 0.0, "brightness": 0.0, "contrast": 0.0}
FULL = AugmentConfig(
    mirror_axes=("D", "H", "W"), rotate_degrees=20, scale=0.2, translate=0.1, elastic=2.0, blur=1.0, low_resolution=2.0,
    intensity_probability=0.7,
)  # fmt: skip


def make_batch(numbers: list[int]) -> dict[str, Any]:
    """Patches told by their number, with labels 0, 1, 2 and 200."""
    images = [torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(number)) for number in numbers]
    labels = [(image[0] > 0.4).long() + (image[0] > 0.9) + 198 * (image[0] > 1.5) for image in images]
    return {
        "image": torch.stack(images),
        "label": torch.stack(labels),
        "number": torch.tensor(numbers),
        "case_id": [f"case_{number}" for number in numbers],
    }


def make_augmenter(config: AugmentConfig = FULL, seed: int = 5) -> Augmenter:
    return Augmenter(config, patch_size=SIZE, seed=seed)


def test_a_patch_comes_out_the_same_to_the_last_bit_whatever_its_batch() -> None:
    numbers = list(range(3, 15))
    together = make_augmenter()(make_batch(numbers))
    torch.manual_seed(1)
    for size in (1, 5):
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size][::-1]
            apart = make_augmenter()(make_batch(part))
            for place, number in enumerate(part):
                row = numbers.index(number)
                assert torch.equal(apart["image"][place], together["image"][row])
                assert torch.equal(apart["label"][place], together["label"][row])
    moved = [not torch.equal(*pair) for pair in zip(together["image"], make_batch(numbers)["image"], strict=True)]
    assert sum(moved) > 9
    assert not torch.equal(make_augmenter(seed=6)(make_batch(numbers))["image"], together["image"])


def test_what_comes_out() -> None:
    batch = make_batch([0, 1, 2, 3])
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)}
    state = torch.get_rng_state()
    augmented = make_augmenter()(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert augmented["image"].shape == (4, 2, *SIZE)
    assert augmented["image"].dtype == torch.float32
    assert augmented["label"].shape == (4, *SIZE)
    assert augmented["label"].dtype == torch.int64
    assert set(augmented["label"].unique().tolist()) == {0, 1, 2, 200}
    assert augmented["case_id"] == batch["case_id"]
    assert torch.equal(augmented["number"], batch["number"])
    assert all(torch.equal(batch[key], value) for key, value in before.items())


def test_everything_off_and_probability_zero_change_nothing() -> None:
    off = AugmentConfig(**OFF, gamma=0.0, spatial_probability=1.0, intensity_probability=1.0)  # type: ignore[arg-type]
    never = AugmentConfig(mirror_axes=(), spatial_probability=0.0, intensity_probability=0.0)
    batch = make_batch(list(range(6)))
    for config in (off, never):
        augmented = make_augmenter(config)(batch)
        assert torch.equal(augmented["image"], batch["image"])
        assert torch.equal(augmented["label"], batch["label"])


def test_labels_move_with_the_image() -> None:
    config = AugmentConfig(**{**OFF, "mirror_axes": ("D", "H", "W"), "rotate_degrees": 20.0}, gamma=0.0)  # type: ignore[arg-type]
    grid = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"), -1)
    ball = ((grid - torch.tensor([4, 11, 5])).double().norm(dim=-1) < 3.6).float()
    batch = {
        "number": torch.arange(16),
        "image": ball.expand(16, 1, *SIZE),
        "label": (3 * ball).byte().expand(16, *SIZE),
    }
    augmented = make_augmenter(config)(batch)
    for image, label in zip(augmented["image"][:, 0], augmented["label"], strict=True):
        assert set(label.unique().tolist()) == {0, 3}
        assert torch.equal(label == 3, image > 0.5)
    assert len({tuple(label.flatten().tolist()) for label in augmented["label"]}) > 10


def test_mixup_mixes_with_the_patch_before_and_tells_its_truth() -> None:
    config = AugmentConfig(**OFF, gamma=0.0, mixup=0.5)  # type: ignore[arg-type]
    batch = make_batch([6, 7, 8]) | {"target": torch.tensor([0, 1, 2])}
    mixed = make_augmenter(config)(batch)
    share = mixed["share"]
    assert 0 < share < 1
    expected = share * batch["image"] + (1 - share) * batch["image"][[2, 0, 1]]
    torch.testing.assert_close(mixed["image"], expected)
    assert torch.equal(mixed["label"], batch["label"])
    assert torch.equal(mixed["mixed_label"], batch["label"][[2, 0, 1]])
    assert mixed["mixed_target"].tolist() == [2, 0, 1]
    shares = [make_augmenter(config)(make_batch([n, n + 1]))["share"] for n in range(0, 40, 2)]
    assert len(set(shares)) == 20
    with pytest.raises(ConfigError, match=r"batch_size at least 2"):
        make_augmenter(config)(make_batch([1]))


def test_images_without_labels() -> None:
    batch = make_batch([0, 1])
    del batch["label"]
    augmented = make_augmenter()(batch)
    assert "label" not in augmented
    assert augmented["image"].shape == (2, 2, *SIZE)
