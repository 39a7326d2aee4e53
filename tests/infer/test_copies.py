"""Averages over turned copies, against scipy's rotations and what they must do to a linear function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation
from torch import Tensor

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.infer.copies import predict_copies
from medi3d.types import FloatTriple

SIZE = (14, 17, 12)


def turning(
    task: TaskConfig, degrees: float, *, spacing_mm: FloatTriple | str = (1.0, 1.0, 1.0), mirror: bool = False
) -> TaskConfig:
    return replace(
        task,
        preprocess=replace(task.preprocess, spacing_mm=spacing_mm),
        infer=replace(task.infer, rotate_degrees=degrees, mirror=mirror),
    )


def turn_by_scipy(volume: NDArray[np.float64], axis: int, degrees: float, spacing_mm: FloatTriple) -> Tensor:
    """Turn about the centre, in space; beyond the volume all is zero."""
    rotation = Rotation.from_rotvec(np.deg2rad(degrees) * np.eye(3)[axis]).as_matrix()
    matrix = np.diag(1 / np.array(spacing_mm)) @ rotation @ np.diag(spacing_mm)
    centre = (np.array(volume.shape) - 1) / 2
    moved = affine_transform(volume, matrix, centre - matrix @ centre, order=1, mode="grid-constant")
    return torch.from_numpy(moved).float()


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 0.9, 1.3)])
def test_copies_are_those_that_scipy_turns(segmentation_task: TaskConfig, spacing_mm: FloatTriple) -> None:
    """A network that squares each voxel, so that turning before and after it are not the same."""
    image = torch.rand(2, 1, *SIZE) + 1
    found = predict_copies(image, torch.square, turning(segmentation_task, 20, spacing_mm=spacing_mm))
    for window, result in zip(image[:, 0].double().numpy(), found[:, 0], strict=True):
        total, seen = torch.from_numpy(window**2).float(), torch.ones(SIZE)
        for axis in range(3):
            for degrees in (-20, 20):
                answer = turn_by_scipy(window, axis, degrees, spacing_mm).double().numpy() ** 2
                total = total + turn_by_scipy(answer, axis, -degrees, spacing_mm)
                seen = seen + turn_by_scipy(np.ones(SIZE), axis, -degrees, spacing_mm)
        torch.testing.assert_close(result, total / seen, rtol=1e-4, atol=1e-4)


def test_what_depends_on_the_place_alone_is_evened_out(segmentation_task: TaskConfig) -> None:
    """Turned to and fro about each axis, a linear function of the place about the centre is (3 + 4 cos)/7 of itself."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in SIZE]
    ramp = sum(factor * x for factor, x in zip((1.0, -2.0, 0.5), torch.meshgrid(*axes, indexing="ij"), strict=True))
    assert isinstance(ramp, Tensor)
    found = predict_copies(
        torch.zeros(1, 1, *SIZE), lambda windows: ramp.expand_as(windows), turning(segmentation_task, 15)
    )
    inside = (slice(4, -4),) * 3
    expected = ramp * (3 + 4 * np.cos(np.deg2rad(15))) / 7
    torch.testing.assert_close(found[0, 0][inside], expected[inside], rtol=1e-4, atol=1e-4)


def test_a_network_that_says_the_same_everywhere_is_left_alone(segmentation_task: TaskConfig) -> None:
    """Corners that a turned window has lost are not drawn towards zero."""
    logits = torch.tensor([1.0, -3.0, 2.0])[:, None, None, None].expand(1, 3, *SIZE)
    found = predict_copies(torch.randn(1, 1, *SIZE), lambda _: logits, turning(segmentation_task, 45))
    torch.testing.assert_close(found, logits)


@pytest.mark.parametrize(
    ("spacing_mm", "copies"), [((1.0, 1.0, 1.0), 7), ((5.0, 1.0, 1.0), 3), ((1.0, 1.0, 4.0), 3), ((0.7, 0.7, 1.25), 7)]
)
def test_thick_slices_are_turned_in_their_plane(
    segmentation_task: TaskConfig, spacing_mm: FloatTriple, copies: int
) -> None:
    seen: list[Tensor] = []

    def predict(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows

    predict_copies(torch.randn(1, 1, *SIZE), predict, turning(segmentation_task, 8, spacing_mm=spacing_mm))
    assert len(seen) == copies
    assert len({one.numpy().tobytes() for one in seen}) == copies
    seen.clear()
    predict_copies(torch.randn(1, 1, *SIZE), predict, turning(segmentation_task, 8, spacing_mm=spacing_mm, mirror=True))
    axes = len(segmentation_task.train.augment.mirror_axes)
    assert axes
    assert len(seen) == copies * 2**axes


def test_a_classifier_is_asked_of_every_copy(classification_task: TaskConfig) -> None:
    cube = torch.rand(1, 1, *SIZE)
    weights = torch.rand(SIZE)

    def predict(windows: Tensor) -> Tensor:
        said = (windows[:, 0] * weights).sum((1, 2, 3))
        return torch.stack([said, -said], 1)

    found = predict_copies(cube, predict, turning(classification_task, 30))
    window = cube[0, 0].double().numpy()
    copies = [cube[0, 0]]
    copies += [turn_by_scipy(window, axis, degrees, (1.0, 1.0, 1.0)) for axis in range(3) for degrees in (-30, 30)]
    expected = predict(torch.stack(copies)[:, None]).mean(0, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_turning_needs_to_know_the_voxels_size(segmentation_task: TaskConfig) -> None:
    task = turning(segmentation_task, 8, spacing_mm="median")
    with pytest.raises(ConfigError, match=r"infer\.rotate_degrees needs one voxel size, and preprocess\.spacing_mm is"):
        predict_copies(torch.zeros(1, 1, *SIZE), torch.square, task)
