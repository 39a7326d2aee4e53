"""Every loss against MONAI where it has an equal, and against formulas written out with one-hot maps where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import monai.losses
import numpy as np
import pytest
import torch
from torch import Tensor

from medi3d.config import TaskConfig, load_task
from medi3d.errors import ConfigError, InputError
from medi3d.models.outputs import Outputs
from medi3d.train.losses import LOSSES, create_loss
from medi3d.train.losses.boundary import measure_distances
from medi3d.train.losses.loss import weigh_levels
from medi3d.train.losses.truth import sample_labels

SIZE = (4, 5, 6)
WEIGHTS = (0.5, 1.0, 2.0)
REGIONS = {"whole": (1, 2), "core": (2,)}


def make_task(loss: str, *, data: dict[str, Any] | None = None, name: str = "hippocampus", **train: Any) -> TaskConfig:
    task = load_task(name)
    return replace(task, data=replace(task.data, **(data or {})), train=replace(task.train, loss=loss, **train))


def compute(task: TaskConfig, logits: Tensor | Outputs, progress: float = 0.5, **batch: Any) -> float:
    return float(create_loss(task)(logits, batch, progress=progress))


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    """Logits and labels of two volumes, so unlike that a mean over volumes is another number than one over all."""
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 3, (2, *SIZE), generator=generator)
    label[1, 1:] = 0
    return torch.randn(2, 3, *SIZE, generator=generator), label


def spell_out(logits: Tensor, target: Tensor, known: Tensor, *, gamma: float = 0.0) -> dict[str, Tensor]:
    """Dice and cross-entropy or focal loss of soft targets (B, K, …) written out densely, where known (B, 1, …)."""
    shares = logits.softmax(1)
    hit, predicted, true = (
        (part * known).sum((0, 2, 3, 4)) for part in (shares * target, shares, target.expand_as(shares))
    )
    penalty = -((1 - shares) ** gamma) * logits.log_softmax(1)
    entropy = (penalty * target * known).sum() / known.sum()
    return {"dice": (1 - 2 * hit / (predicted + true))[1:].mean(), "entropy": entropy}


def one_hot(label: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()


# Against MONAI


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_dice_and_cross_entropy(weights: tuple[float, ...], smoothing: float, drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn
    dice = monai.losses.DiceLoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    entropy = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights) if weights else None, label_smoothing=smoothing)
    task = make_task("dice_ce", class_weights=weights, label_smoothing=smoothing)
    expected = float(dice(logits, label[:, None]) + entropy(logits, label))
    assert compute(task, logits, label=label) == pytest.approx(expected, rel=1e-5)
    alone = replace(task, train=replace(task.train, loss="cross_entropy"))
    assert compute(alone, logits, label=label) == pytest.approx(float(entropy(logits, label)), rel=1e-5)


def test_dice_and_cross_entropy_together_are_monais(drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn
    expected = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    assert compute(make_task("dice_ce"), logits, label=label) == pytest.approx(
        float(expected(logits, label[:, None])), rel=1e-5
    )


def test_gradients_are_monais(drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    create_loss(make_task("dice_ce"))(ours, {"label": label}, progress=0.0).backward()
    loss = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    loss(theirs, label[:, None]).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal(gamma: float, drawn: tuple[Tensor, Tensor]) -> None:
    """MONAI's mean is over the labels as well."""
    logits, label = drawn
    theirs = monai.losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma)
    expected = 3 * float(theirs(logits, label[:, None]))
    assert compute(make_task("focal", focal_gamma=gamma), logits, label=label) == pytest.approx(expected, rel=1e-5)


def test_dice_and_focal(drawn: tuple[Tensor, Tensor]) -> None:
    """MONAI's DiceFocalLoss takes the focal loss of sigmoids, whatever its Dice is of."""
    logits, label = drawn
    dice = monai.losses.DiceLoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    focal = monai.losses.FocalLoss(to_onehot_y=True, use_softmax=True)
    expected = float(dice(logits, label[:, None]) + 3 * focal(logits, label[:, None]))
    assert compute(make_task("dice_focal"), logits, label=label) == pytest.approx(expected, rel=1e-5)
    inside = torch.stack([label > 0, label == 2], 1).float()
    both = float(monai.losses.DiceFocalLoss(sigmoid=True, batch=True)(logits[:, :2], inside))
    found = compute(make_task("dice_focal", data={"regions": REGIONS}), logits[:, :2], label=label)
    assert found == pytest.approx(both, rel=1e-5)


def test_tversky_and_cross_entropy(drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn
    index = monai.losses.TverskyLoss(
        to_onehot_y=True, softmax=True, include_background=False, batch=True, alpha=0.2, beta=0.8
    )
    expected = float(index(logits, label[:, None]) + torch.nn.functional.cross_entropy(logits, label))
    assert compute(make_task("tversky", tversky_beta=0.8), logits, label=label) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_regions_have_the_binary_forms(smoothing: float, drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn[0][:, :2], drawn[1]
    inside = torch.stack([label > 0, label == 2], 1).float()
    dice = monai.losses.DiceLoss(sigmoid=True, batch=True)(logits, inside)
    smooth = inside * (1 - smoothing) + smoothing / 2
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean((0, 2, 3, 4))
    weights = torch.tensor([1.0, 3.0])
    expected = float(dice + (weights * entropy).sum() / weights.sum())
    task = make_task("dice_ce", data={"regions": REGIONS}, class_weights=(1.0, 3.0), label_smoothing=smoothing)
    assert compute(task, logits, label=label) == pytest.approx(expected, rel=1e-5)


def test_focal_of_regions(drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn[0][:, :2], drawn[1]
    inside = torch.stack([label > 0, label == 2], 1).float()
    expected = float(monai.losses.FocalLoss(gamma=2.0)(logits, inside))
    assert compute(make_task("focal", data={"regions": REGIONS}), logits, label=label) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_classes_of_volumes(weights: tuple[float, ...], rng: np.random.Generator) -> None:
    logits, target = torch.from_numpy(rng.normal(size=(5, 2))).float(), torch.tensor([0, 1, 1, 0, 1])
    expected = torch.nn.functional.cross_entropy(logits, target, torch.tensor(weights) if weights else None)
    task = make_task("cross_entropy", name="lung_nodule", class_weights=weights)
    assert compute(task, logits, target=target) == pytest.approx(float(expected), rel=1e-5)


def test_a_class_that_is_not_known_counts_nowhere(rng: np.random.Generator) -> None:
    logits, target = torch.from_numpy(rng.normal(size=(5, 2))).float(), torch.tensor([0, -1, 1, -1, 1])
    expected = torch.nn.functional.cross_entropy(logits, target, ignore_index=-1)
    task = make_task("cross_entropy", name="lung_nodule")
    assert compute(task, logits, target=target) == pytest.approx(float(expected), rel=1e-5)


# What is not annotated


@pytest.mark.parametrize("data", [{}, {"regions": REGIONS}])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_what_the_network_says_of_ignored_voxels_changes_nothing(
    loss: str, data: dict[str, Any], drawn: tuple[Tensor, Tensor]
) -> None:
    logits, label = drawn[0][:, : 2 if data else 3].clone(), drawn[1].clone()
    label[:, :, 2:] = 9
    create = create_loss(make_task(loss, data={**data, "ignore_label": 9}, label_smoothing=0.1))
    value = create(logits, {"label": label}, progress=0.7)
    other = logits.clone()
    other[:, :, :, 2:] = 50 * torch.randn(other[:, :, :, 2:].shape)
    other.requires_grad_()
    changed = create(other, {"label": label}, progress=0.7)
    torch.testing.assert_close(changed.detach(), value)
    changed.backward()
    assert other.grad is not None
    assert not other.grad[:, :, :, 2:].any()
    assert other.grad[:, :, :, :2].any()


@pytest.mark.parametrize("data", [{}, {"regions": REGIONS}])
@pytest.mark.parametrize("loss", sorted({*LOSSES} - {"boundary"}))
def test_what_is_annotated_counts_as_if_it_were_all(
    loss: str, data: dict[str, Any], drawn: tuple[Tensor, Tensor]
) -> None:
    """Distances to a boundary are others where more is seen, so that loss is not here."""
    logits, label = drawn[0][:, : 2 if data else 3], drawn[1]
    weights = WEIGHTS[: logits.shape[1]]
    task = make_task(loss, data=data, class_weights=weights, label_smoothing=0.1)
    part = compute(task, logits[..., :2], label=label[..., :2])
    sparse = label.clone()
    sparse[..., 2:] = 200
    ignoring = replace(task, data=replace(task.data, ignore_label=200))
    assert compute(ignoring, logits, label=sparse) == pytest.approx(part, rel=1e-5)


@pytest.mark.parametrize("data", [{}, {"regions": REGIONS}])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_batch_without_annotation_has_no_loss_and_no_gradient(loss: str, data: dict[str, Any]) -> None:
    logits = torch.randn(2, 2 if data else 3, *SIZE, requires_grad=True)
    task = make_task(loss, data={**data, "ignore_label": 7}, label_smoothing=0.1, class_weights=())
    value = create_loss(task)(logits, {"label": torch.full((2, *SIZE), 7)}, progress=0.5)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert not logits.grad.any()


# Mixed truth


@pytest.mark.parametrize("loss", ["dice_ce", "dice_focal", "cross_entropy"])
def test_mixed_truth_is_a_soft_target(loss: str, drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn
    mixed = label.roll(1, 0)
    target = 0.7 * one_hot(label) + 0.3 * one_hot(mixed)
    parts = spell_out(logits, target, torch.ones(2, 1, *SIZE), gamma=2.0 if loss == "dice_focal" else 0.0)
    expected = parts["entropy"] + (parts["dice"] if loss.startswith("dice") else 0)
    found = compute(make_task(loss), logits, label=label, share=0.7, mixed_label=mixed)
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_mixed_classes(rng: np.random.Generator) -> None:
    logits, target = torch.from_numpy(rng.normal(size=(4, 2))).float(), torch.tensor([0, 1, 1, 0])
    mixed = target.roll(1)
    entropy = torch.nn.functional.cross_entropy
    expected = float(0.6 * entropy(logits, target) + 0.4 * entropy(logits, mixed))
    task = make_task("cross_entropy", name="lung_nodule")
    assert compute(task, logits, target=target, share=0.6, mixed_target=mixed) == pytest.approx(expected, rel=1e-5)


# Boundary


def test_distances_to_a_boundary_are_those_to_the_nearest_voxel_of_the_other_side(rng: np.random.Generator) -> None:
    mask = np.zeros(SIZE, bool)
    mask[1:3, 0:3, 2:5] = rng.random((2, 3, 3)) < 0.8
    places = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1).reshape(-1, 3)
    between = np.linalg.norm(places[:, None] - places[None], axis=-1)
    flat = mask.ravel()
    to_other = np.where(flat, between[:, ~flat].min(1), between[:, flat].min(1)) * np.where(flat, -1, 1)
    found = measure_distances(torch.from_numpy(mask)[None, None], None)
    np.testing.assert_allclose(found[0, 0].numpy().ravel(), to_other, rtol=1e-6)


def test_the_edge_of_what_is_annotated_is_no_boundary() -> None:
    """One annotated slice in three stands for its neighbours: distances are those of a volume of equal slices."""
    inside = torch.zeros(1, 1, 3, 7, 6, dtype=torch.bool)
    inside[:, :, :, 2:5, 1:4] = True
    known = torch.zeros(1, 3, 7, 6, dtype=torch.bool)
    known[:, 1] = True
    whole = measure_distances(inside, None)
    torch.testing.assert_close(measure_distances(inside & known[:, None], known), whole)


def test_boundary_is_the_mean_of_probability_times_distance(drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn
    distances = measure_distances(one_hot(label).bool(), None)
    term = (logits.softmax(1) * distances)[:, 1:].mean()
    base = compute(make_task("dice_ce"), logits, label=label)
    for progress in (0.0, 0.5, 1.0):
        share = 0.4 * progress
        found = compute(make_task("boundary", boundary_weight=0.4), logits, progress, label=label)
        assert found == pytest.approx((1 - share) * base + share * float(term), rel=1e-4)


# Several outputs


def test_weights_of_levels_halve_and_sum_to_one() -> None:
    assert weigh_levels(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_coarser_logits_are_compared_with_coarser_truth(drawn: tuple[Tensor, Tensor]) -> None:
    """Where 2×2×2 voxels have one label, the coarser truth is that label."""
    coarse_label = drawn[1][:, :2, :2, :3]
    label = coarse_label.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine, coarse = torch.randn(2, 3, 4, 4, 6), torch.randn(2, 3, 2, 2, 3)
    task = make_task("dice_ce")
    expected = (2 * compute(task, fine, label=label) + compute(task, coarse, label=coarse_label)) / 3
    assert compute(task, Outputs((fine, coarse)), label=label) == pytest.approx(expected, rel=1e-5)


def test_coarser_truth_is_the_share_of_each_label(drawn: tuple[Tensor, Tensor]) -> None:
    label = drawn[1][:, :, :4]  # 4 × 4 × 6
    logits = torch.randn(2, 3, 2, 2, 3)
    target = torch.nn.functional.avg_pool3d(one_hot(label), 2)
    parts = spell_out(logits, target, torch.ones(2, 1, 2, 2, 3))
    task = make_task("dice_ce")
    fine = torch.randn(2, 3, 4, 4, 6)
    expected = (2 * compute(task, fine, label=label) + float(parts["dice"] + parts["entropy"])) / 3
    assert compute(task, Outputs((fine, logits)), label=label) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [(2, 3, 3), (4, 2, 1), (3, 5, 6)])
def test_coarser_labels_are_those_in_the_middle_of_each_eighth(size: tuple[int, int, int]) -> None:
    """Whatever the ratio of the sizes is."""
    label = torch.randint(0, 3, (2, *SIZE))
    maps = sample_labels(label, size)
    assert len(maps) == 8
    for number, (depth, height, width) in enumerate(np.ndindex(2, 2, 2)):
        for place in np.ndindex(*size):
            middle = [
                int((index + (0.75 if half else 0.25)) * many / few)
                for index, half, many, few in zip(place, (depth, height, width), SIZE, size, strict=True)
            ]
            assert maps[number][0][place] == label[0][tuple(middle)]
    assert sample_labels(label, SIZE) == [label]


def test_a_second_head_adds_its_cross_entropy(drawn: tuple[Tensor, Tensor]) -> None:
    logits, label = drawn
    classes, target = torch.randn(2, 4), torch.tensor([3, -1])
    task = make_task("dice_ce", data={"classes": ("a", "b", "c", "d")}, classes_weight=0.25)
    entropy = torch.nn.functional.cross_entropy(classes[:1], target[:1])
    expected = compute(task, logits, label=label) + 0.25 * float(entropy)
    assert compute(task, Outputs((logits,), classes), label=label, target=target) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="no 'target' to compare"):
        compute(task, Outputs((logits,), classes), label=label)


# What else


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much() -> None:
    truth = torch.zeros(1, *SIZE, dtype=torch.int64)
    truth[:, 1:3, 2:4] = 1
    truth[:, 1:3, 4:] = 2
    logits = 30 * one_hot(truth)
    assert compute(make_task("dice_ce"), logits, label=truth) == pytest.approx(0, abs=1e-4)
    assert compute(make_task("dice_ce"), logits.roll(1, 1), label=truth) > 5


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_extreme_logits_keep_loss_and_gradient_finite(loss: str, drawn: tuple[Tensor, Tensor]) -> None:
    logits = (200 * drawn[0]).requires_grad_()
    value = create_loss(make_task(loss, focal_gamma=0.5))(logits, {"label": drawn[1]}, progress=1.0)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_gradients_are_those_of_finite_differences(loss: str, independent: bool) -> None:
    """In float32, along one direction; softmax with its logarithm has a backward pass of its own."""
    data = {"regions": REGIONS} if independent else {}
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 2 if independent else 3, 2, 3, 4, generator=generator)
    label = torch.randint(0, 3, (1, 2, 3, 4), generator=generator)
    direction = torch.randn(logits.shape, generator=generator)
    task = make_task(loss, data=data, label_smoothing=0.1)
    leaf = logits.clone().requires_grad_()
    create_loss(task)(leaf, {"label": label}, progress=0.5).backward()
    step = 1e-2
    ahead, behind = (compute(task, logits + sign * step * direction, label=label) for sign in (1, -1))
    assert leaf.grad is not None
    assert float((leaf.grad * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-2, abs=1e-4)


def test_half_precision_logits_give_a_float32_loss(drawn: tuple[Tensor, Tensor]) -> None:
    value = create_loss(make_task("dice_ce"))(drawn[0].bfloat16(), {"label": drawn[1]}, progress=0.0)
    assert value.dtype == torch.float32


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown loss 'dice'"):
        LOSSES["dice"]


def test_a_loss_of_shapes_is_refused_for_classes_of_volumes() -> None:
    with pytest.raises(ConfigError, match="tversky compares shapes, and lung_nodule is classification"):
        create_loss(make_task("tversky", name="lung_nodule"))
