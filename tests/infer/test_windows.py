from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.infer.windows import predict_logits


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
