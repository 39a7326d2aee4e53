from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.infer.windows import label_logits, predict_logits, predict_with_classes


class Pointwise(nn.Module):
    """Logits that depend on a voxel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 3, 1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        out: Tensor = self.layer(x)
        return out


class Ramp(nn.Module):
    """Logits that depend on the place within the window along one axis: nothing that mirroring would leave alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * 5
        shape[self.dim] = x.shape[self.dim]
        ramp = torch.arange(x.shape[self.dim], dtype=torch.float32).reshape(shape)
        return torch.cat([x * 0, x * self.weight + ramp], 1)


def change(task: TaskConfig, *, train: dict[str, object] | None = None, **infer: object) -> TaskConfig:
    return replace(task, train=replace(task.train, **(train or {})), infer=replace(task.infer, **infer))  # type: ignore[arg-type]


def test_one_window_over_the_volume_is_the_network_itself(segmentation_task: TaskConfig) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 3, padding=1)).eval()
    image = torch.randn(1, 8, 10, 9)
    task = change(segmentation_task, train={"patch_size": (8, 10, 9)})
    with torch.inference_mode():
        expected = model(image[None])[0]
    torch.testing.assert_close(predict_logits(model, image, task), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("batch", [1, 3])
def test_windows_agree_where_their_answers_do(segmentation_task: TaskConfig, overlap: float, batch: int) -> None:
    torch.manual_seed(0)
    model = Pointwise().eval()
    image = torch.randn(1, 13, 11, 17)
    task = change(segmentation_task, train={"patch_size": (6, 5, 8)}, overlap=overlap, window_batch=batch)
    found = predict_logits(model, image, task)
    with torch.inference_mode():
        expected = model.layer(image[None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert {shape[2:] for shape in model.shapes[:-1]} == {(6, 5, 8)}
    assert max(shape[0] for shape in model.shapes) == batch


def test_a_volume_smaller_than_the_window_keeps_its_size(segmentation_task: TaskConfig) -> None:
    model = Pointwise().eval()
    image = torch.randn(1, 3, 11, 2)
    found = predict_logits(model, image, change(segmentation_task, train={"patch_size": (6, 5, 8)}))
    with torch.inference_mode():
        torch.testing.assert_close(found, model.layer(image[None])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("axis", "dim"), [("D", 2), ("H", 3), ("W", 4)])
def test_mirroring_averages_over_the_configured_axis(segmentation_task: TaskConfig, axis: str, dim: int) -> None:
    shape = (6, 8, 10)
    augment = replace(segmentation_task.train.augment, mirror_axes=(axis,))
    train = {"patch_size": shape, "augment": augment}
    image = torch.randn(1, *shape)
    plain = predict_logits(Ramp(dim), image, change(segmentation_task, train=train))[1]
    mirrored = predict_logits(Ramp(dim), image, change(segmentation_task, train=train, mirror=True))[1]
    size = shape[dim - 2]
    ramp = torch.arange(size, dtype=torch.float32).reshape([size if d == dim else 1 for d in (2, 3, 4)])
    torch.testing.assert_close(plain, image[0] + ramp)
    torch.testing.assert_close(mirrored, image[0] + (size - 1) / 2)


def test_all_subsets_of_the_axes_are_mirrored(segmentation_task: TaskConfig) -> None:
    model = Pointwise().eval()
    augment = replace(segmentation_task.train.augment, mirror_axes=("D", "H", "W"))
    image = torch.randn(1, 6, 8, 10)
    task = change(segmentation_task, train={"patch_size": (6, 8, 10), "augment": augment}, mirror=True)
    found = predict_logits(model, image, task)
    assert len(model.shapes) == 8
    with torch.inference_mode():
        torch.testing.assert_close(found, model.layer(image[None])[0], rtol=1e-4, atol=1e-5)


def test_a_classifier_sees_the_whole_cube(classification_task: TaskConfig) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3, 4))[:, None] * self.weight

    image = torch.randn(1, 9, 7, 8)
    for mirror in (False, True):
        found = predict_logits(Mean(), image, change(classification_task, mirror=mirror))
        np.testing.assert_allclose(found.numpy(), [float(image.mean()), -float(image.mean())], rtol=1e-4, atol=1e-6)


# --- regions

REGIONS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
NESTED = {1: (1, 0, 0), 2: (1, 1, 0), 3: (1, 1, 1)}


def with_regions(task: TaskConfig, regions: dict[str, tuple[int, ...]], labels: int = 3) -> TaskConfig:
    named = {value: f"label {value}" for value in range(1, labels + 1)}
    return replace(task, data=replace(task.data, labels=named, regions=regions))


def test_label_probabilities_are_the_posterior_over_the_patterns_that_are_possible(
    segmentation_task: TaskConfig,
) -> None:
    """By enumeration: the product of the regions' probabilities for each of the 8 patterns, the 4 valid ones kept."""
    torch.manual_seed(0)
    task = with_regions(segmentation_task, REGIONS)
    logits = 3 * torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    yes = torch.sigmoid(logits)
    probability = {
        pattern: torch.stack([yes[:, r] if bit else 1 - yes[:, r] for r, bit in enumerate(pattern)]).prod(0)
        for pattern in product((0, 1), repeat=3)
    }
    torch.testing.assert_close(sum(probability.values()), torch.ones(2, 4, 5, 6, dtype=torch.float64))
    valid = torch.stack([probability[pattern] for pattern in ((0, 0, 0), *NESTED.values())], 1)
    found = torch.softmax(label_logits(logits, task), 1)
    torch.testing.assert_close(found, valid / valid.sum(1, keepdim=True))


def test_sure_nested_regions_are_thresholded_and_the_innermost_wins(segmentation_task: TaskConfig) -> None:
    task = with_regions(segmentation_task, REGIONS)
    depth = torch.randint(0, 4, (1, 4, 5, 6), generator=torch.Generator().manual_seed(1))  # how deep a voxel lies
    inside = torch.stack([depth > level for level in range(3)], 1)
    logits = torch.where(inside, 1.0, -1.0) * (0.5 + 5 * torch.rand(1, 3, 4, 5, 6))
    thresholded = (torch.sigmoid(logits) > 0.5).sum(1)
    torch.testing.assert_close(label_logits(logits, task).argmax(1), thresholded)
    torch.testing.assert_close(thresholded, depth)


@pytest.mark.parametrize(
    ("logits", "label"),
    [
        ((-1.0, 3.0, 3.0), 3),  # a core outside of the whole: rather the whole missed than the core made up
        ((-5.0, 1.0, 1.0), 0),
        ((4.0, -1.0, 2.0), 3),
        ((4.0, -3.0, 2.0), 1),
    ],
)
def test_regions_that_contradict_each_other_go_to_the_likeliest_label(
    segmentation_task: TaskConfig, logits: tuple[float, ...], label: int
) -> None:
    task = with_regions(segmentation_task, REGIONS)
    assert int(label_logits(torch.tensor(logits).reshape(1, 3, 1, 1, 1), task).argmax(1)) == label


def test_regions_that_overlap_without_being_nested(segmentation_task: TaskConfig) -> None:
    task = with_regions(segmentation_task, {"left": (1, 2), "upper": (2, 3)})
    logits = torch.tensor([[-2.0, -2.0], [2.0, -2.0], [2.0, 2.0], [-2.0, 2.0]]).T[None, :, :, None, None]
    assert label_logits(logits, task).argmax(1).flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("mirror", [False, True])
def test_windows_of_regions_give_labels(segmentation_task: TaskConfig, mirror: bool) -> None:
    torch.manual_seed(0)
    model = Pointwise().eval()
    image = torch.randn(1, 13, 11, 17)
    task = with_regions(change(segmentation_task, train={"patch_size": (6, 5, 8)}, mirror=mirror), REGIONS)
    with torch.inference_mode():
        expected = label_logits(model.layer(image[None]), task)[0]
    found = predict_logits(model, image, task)
    assert found.shape == (4, 13, 11, 17)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- a second head


class TwoHeads(nn.Module):
    """Foreground where the image is above 0; the class head answers with the sum of the window."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x * 0, x * self.weight, x * 0 - 9], 1)

    def classify(self, x: Tensor) -> Tensor:
        self.seen += list(x.clone())
        total = x.sum((1, 2, 3, 4))
        return torch.stack([total, -total, total * 0 + 1], 1)


def two_tasks(task: TaskConfig, **train: object) -> TaskConfig:
    return change(replace(task, data=replace(task.data, classes=("a", "b", "c"))), train=train)


def test_classes_are_averaged_over_windows_by_the_foreground_they_hold(segmentation_task: TaskConfig) -> None:
    image = torch.full((1, 8, 6, 12), -1.0)
    image[0, 1, 2, 1:4] = 5.0  # 3 voxels of foreground in the first of three windows, 1 in the second
    image[0, 0, 0, 4] = 7.0
    task = change(two_tasks(segmentation_task, patch_size=(8, 6, 4)), overlap=0.0, window_batch=2)
    model = TwoHeads().eval()
    labels, classes = predict_with_classes(model, image, task)
    torch.testing.assert_close(labels, predict_logits(model, image, task))
    sums = torch.stack([image[..., start : start + 4].sum() for start in (0, 4, 8)])
    expected = (3 * sums[0] + 1 * sums[1]) / 4
    torch.testing.assert_close(classes, torch.stack([expected, -expected, torch.tensor(1.0)]))
    assert len(model.seen) == 3  # one answer a window


def test_without_foreground_all_windows_have_the_same_say(segmentation_task: TaskConfig) -> None:
    image = -torch.rand(1, 8, 6, 12) - 0.1
    task = change(two_tasks(segmentation_task, patch_size=(8, 6, 4)), overlap=0.0)
    _, classes = predict_with_classes(TwoHeads().eval(), image, task)
    torch.testing.assert_close(classes[0], image.sum() / 3)


def test_classes_are_averaged_over_mirrored_copies_too(segmentation_task: TaskConfig) -> None:
    image = torch.randn(1, 6, 8, 10)
    augment = replace(segmentation_task.train.augment, mirror_axes=("H", "W"))
    task = change(two_tasks(segmentation_task, patch_size=(6, 8, 10), augment=augment), mirror=True)
    model = TwoHeads().eval()
    labels, classes = predict_with_classes(model, image, task)
    assert len(model.seen) == 4
    torch.testing.assert_close(classes[0], image.sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(labels[1], image[0], rtol=1e-4, atol=1e-5)
