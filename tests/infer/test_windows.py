from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.infer.layout import leave_out_air, window_starts
from medi3d.infer.planes import Storage
from medi3d.infer.windows import LogitStream, join_blocks, label_logits, predict_logits, predict_with_classes
from medi3d.types import IntTriple


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


def by_monai(model: nn.Module, image: Tensor, task: TaskConfig) -> Tensor:
    with torch.inference_mode():
        found = sliding_window_inference(
            image[None], task.patch_size, 1, model, overlap=task.infer.overlap, mode="gaussian"
        )
    assert isinstance(found, Tensor)
    return found[0]


@pytest.mark.parametrize("shape", [(13, 8, 11), (6, 5, 8), (31, 4, 9), (7, 12, 3)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("batch", [1, 4])
def test_windows_and_their_weights_are_those_of_monai(
    segmentation_task: TaskConfig, shape: IntTriple, overlap: float, batch: int
) -> None:
    """The network sees where its windows end, so that each window, its place and its weight count."""
    torch.manual_seed(0)
    model = nn.Conv3d(1, 3, 3, padding=1).eval()
    image = torch.randn(1, *shape)
    task = change(segmentation_task, train={"patch_size": (6, 5, 8)}, overlap=overlap, window_batch=batch)
    expected = by_monai(model, image, task)
    torch.testing.assert_close(predict_logits(model, image, task), expected, rtol=1e-5, atol=1e-5)
    for thickness in (1, 3, 40):
        blocks = [block.clone() for block in LogitStream(model, image, task, Storage()).blocks(thickness)]
        assert [block.shape[1] for block in blocks[:-1]] == [thickness] * (len(blocks) - 1)
        torch.testing.assert_close(torch.cat(blocks, 1), expected, rtol=1e-5, atol=1e-5)


def test_sums_are_held_for_the_depth_of_a_window(
    segmentation_task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    allocate = Storage.allocate

    def remember(self: Storage, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, object]:
        shapes.append(shape)
        return allocate(self, shape, device)

    monkeypatch.setattr(Storage, "allocate", remember)
    task = change(segmentation_task, train={"patch_size": (6, 5, 8)})
    stream = LogitStream(Pointwise().eval(), torch.randn(1, 61, 11, 17), task, Storage())
    assert sum(block.shape[1] for block in stream.blocks(2)) == 61
    assert shapes == [(3, 7, 11, 17), (1, 7, 11, 17)]  # a window, and a plane of the block that is not full yet


def test_sums_on_disk_are_the_same(segmentation_task: TaskConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Conv3d(1, 3, 3, padding=1).eval()
    image = torch.randn(1, 23, 11, 17)
    task = change(segmentation_task, train={"patch_size": (6, 5, 8)})
    storage = Storage(memory_bytes=1, scratch=tmp_path)
    found = join_blocks(LogitStream(model, image, task, storage).blocks(3), 23)
    assert torch.equal(found, predict_logits(model, image, task))
    assert not list(tmp_path.iterdir())  # the file has no name


@pytest.mark.parametrize(("precision", "kind"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_computes_in_the_precision_asked_for_and_sums_are_float32(
    segmentation_task: TaskConfig, precision: str, kind: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = Pointwise().eval()
    seen: list[torch.dtype] = []
    model.layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    image = torch.randn(1, 13, 11, 17)
    task = change(segmentation_task, train={"patch_size": (6, 5, 8)}, precision=precision)
    found = predict_logits(model, image, task)
    assert set(seen) == {kind}
    assert found.dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(found, model.layer(image[None])[0], rtol=0.02, atol=0.02)


def test_windows_in_air_are_left_out_and_are_background(segmentation_task: TaskConfig) -> None:
    rng = torch.Generator().manual_seed(0)
    image = 0.01 * torch.randn(1, 16, 48, 80, generator=rng).abs()  # air, and its noise
    image[0, :, 16:40, 16:40] = 1 + torch.rand(16, 24, 24, generator=rng)
    torch.manual_seed(0)
    train = {"patch_size": (16, 16, 16)}
    all_of_it, body = Pointwise().eval(), Pointwise().eval()
    body.load_state_dict(all_of_it.state_dict())
    expected = predict_logits(all_of_it, image, change(segmentation_task, train=train))
    found = predict_logits(body, image, change(segmentation_task, train=train, skip_air=True))
    assert len(all_of_it.shapes) == 5 * 9
    assert len(body.shapes) == 4 * 4  # those that reach into 16 … 40 along H and W
    torch.testing.assert_close(found[:, :, 8:48, 8:48], expected[:, :, 8:48, 8:48])
    assert (found[:, :, :, 48:].argmax(0) == 0).all()
    assert (torch.softmax(found[:, :, :, 48:], 0)[0] > 0.999).all()


def test_without_air_or_without_a_body_no_window_is_left_out(segmentation_task: TaskConfig) -> None:
    for image in (torch.randn(1, 16, 24, 20), torch.zeros(1, 16, 24, 20)):
        starts = window_starts((16, 24, 20), (8, 8, 8), 0.5)
        assert leave_out_air(image, starts, (8, 8, 8)) == starts


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
