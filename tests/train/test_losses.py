from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medi3d.config import TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.train.losses import LOSSES, create_loss


def with_loss(name: str, loss: str, weights: tuple[float, ...] = ()) -> TaskConfig:
    task = load_task(name)
    return replace(task, train=replace(task.train, loss=loss, class_weights=weights))  # type: ignore[arg-type]


def cross_entropy(logits: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean of -log p(truth), written out."""
    shifted = logits - logits.max(1, keepdims=True)
    logarithm = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    taken = np.take_along_axis(logarithm, truth[:, None], 1)[:, 0]
    return float(-(weights[truth] * taken).sum() / weights[truth].sum())


@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_cross_entropy_of_classes(weights: tuple[float, ...], rng: np.random.Generator) -> None:
    logits, truth = rng.normal(size=(5, 2)), rng.integers(0, 2, 5)
    loss = create_loss(with_loss("lung_nodule", "cross_entropy", weights))
    found = loss(torch.from_numpy(logits).float(), torch.from_numpy(truth))
    assert float(found) == pytest.approx(cross_entropy(logits, truth, np.array(weights or (1, 1))), rel=1e-5)


def test_cross_entropy_of_voxels(rng: np.random.Generator) -> None:
    logits, truth = rng.normal(size=(2, 3, 4, 5, 6)), rng.integers(0, 3, (2, 4, 5, 6))
    found = create_loss(with_loss("hippocampus", "cross_entropy"))(
        torch.from_numpy(logits).float(), torch.from_numpy(truth)
    )
    assert float(found) == pytest.approx(cross_entropy(logits, truth, np.ones(3)), rel=1e-5)


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.0)])
def test_dice_and_cross_entropy_are_added(weights: tuple[float, ...], rng: np.random.Generator) -> None:
    """Dice of the softmax over the foreground labels and the whole batch: one minus the mean over labels."""
    logits, truth = rng.normal(size=(2, 3, 4, 5, 6)), rng.integers(0, 3, (2, 4, 5, 6))
    truth[1, 1:] = 0  # so unlike the first that a mean over the batch's volumes would be another number
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    dice = []
    for label in (1, 2):
        mask, share = truth == label, probabilities[:, label]
        dice.append(2 * (share * mask).sum() / (share.sum() + mask.sum()))
    expected_weights = np.array(weights or (1, 1, 1))
    dice_loss = 1 - np.array(dice)
    if weights:  # MONAI weights the Dice of each foreground label as well
        dice_loss = dice_loss * expected_weights[1:]
    expected = dice_loss.mean() + cross_entropy(logits, truth, expected_weights)
    loss = create_loss(with_loss("hippocampus", "dice_ce", weights))
    found = loss(torch.from_numpy(logits).float(), torch.from_numpy(truth))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much() -> None:
    truth = torch.zeros(1, 4, 5, 6, dtype=torch.int64)
    truth[:, 1:3, 2:4] = 1
    truth[:, 1:3, 4:] = 2
    logits = 30 * torch.nn.functional.one_hot(truth, 3).movedim(-1, 1).float()
    loss = create_loss(load_task("hippocampus"))
    assert float(loss(logits, truth)) == pytest.approx(0, abs=1e-4)
    assert float(loss(logits.roll(1, 1), truth)) > 5


def test_a_batch_without_foreground_has_a_finite_loss_and_gradient() -> None:
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    create_loss(load_task("hippocampus"))(logits, torch.zeros(2, 4, 5, 6, dtype=torch.int64)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_class_weights_follow_the_logits_to_their_device() -> None:
    """The meta device stands for a GPU."""
    loss = create_loss(with_loss("lung_nodule", "cross_entropy", (1.0, 2.0)))
    value = loss(torch.zeros(3, 2, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta"))
    assert value.device.type == "meta"


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown loss 'dice'"):
        LOSSES["dice"]
