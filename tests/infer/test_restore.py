"""A label map goes to the prepared grid and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from medi3d.config import TaskConfig
from medi3d.infer.restore import restore_labels
from medi3d.io.record import Record
from medi3d.preprocess import isotropic_grid, prepare_image, resample_to
from medi3d.volume import Grid, LabelMap, Volume


def make_affine(
    spacing: tuple[float, float, float],
    *,
    angles: tuple[float, float, float] = (0, 0, 0),
    axes: tuple[int, int, int] = (0, 1, 2),
    signs: tuple[int, int, int] = (1, 1, 1),
) -> np.ndarray:
    """Axes along RAS axes ``axes`` with ``signs``, then turned."""
    direction = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        direction[axis, column] = sign
    turn = np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix(), (3, 3))
    affine = np.eye(4)
    affine[:3, :3] = turn @ direction * spacing
    affine[:3, 3] = -20, 31, 7
    return affine


GRIDS = {
    "as prepared": Grid((36, 40, 38), make_affine((1, 1, 1), axes=(2, 1, 0), signs=(1, -1, -1))),
    "flipped": Grid((28, 36, 38), make_affine((1.5, 1.2, 1.0), axes=(2, 1, 0), signs=(-1, 1, 1))),
    "permuted": Grid((34, 28, 42), make_affine((1.2, 1.4, 0.9), axes=(0, 2, 1), signs=(1, -1, 1))),
    "oblique": Grid((32, 44, 36), make_affine((1.3, 0.9, 1.1), angles=(0.3, -0.2, 0.4), axes=(2, 1, 0))),
    "anisotropic": Grid((12, 52, 56), make_affine((3.5, 0.8, 0.7), axes=(2, 1, 0), signs=(1, -1, 1))),
}


def make_case(grid: Grid) -> tuple[Volume, LabelMap]:
    """Two balls of 7 and 6 mm, one bright and one dark, in a body of noise; outside it the image is zero."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    place = grid.index_to_world(index)
    middle = grid.index_to_world((np.array(grid.shape) - 1) / 2)
    axis = grid.direction[:, 2]
    label = np.zeros(grid.shape, np.uint8)
    label[np.linalg.norm(place - (middle - 4 * axis), axis=-1) < 6.5] = 1
    label[np.linalg.norm(place - (middle + 4 * axis + [1, 1, 1]), axis=-1) < 5.5] = 2
    noise = np.random.default_rng(0).normal(100, 5, grid.shape)
    image = np.where(np.linalg.norm(place - middle, axis=-1) < 11, noise + 50 * label, 0)
    return Volume(image[None].astype("f4"), grid.affine), LabelMap(label[None], grid.affine)


def one_hot(label: LabelMap, classes: int) -> Tensor:
    return torch.stack([torch.from_numpy((label.array[0] == value).astype("f4")) for value in range(classes)])


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


def with_preprocess(task: TaskConfig, **options: object) -> TaskConfig:
    return replace(task, preprocess=replace(task.preprocess, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("crop", ["none", "foreground"])
@pytest.mark.parametrize("name", GRIDS)
def test_there_and_back(name: str, crop: str, segmentation_task: TaskConfig) -> None:
    image, label = make_case(GRIDS[name])
    task = with_preprocess(segmentation_task, spacing_mm=(1.0, 1.0, 1.0), crop=crop)
    _, record = prepare_image(image, task)
    cropped = np.prod(record.prepared.shape) < 0.9 * np.prod(isotropic_grid(image.grid, (1.0, 1.0, 1.0)).shape)
    assert cropped == (crop == "foreground")
    prepared = resample_to(label, record.prepared, fill=0.0)
    back = restore_labels(one_hot(prepared, 3), record)
    assert back.array.dtype == np.uint8
    assert back.grid.is_close(label.grid)
    np.testing.assert_array_equal(back.affine, label.affine)
    for value in (1, 2):
        assert dice(back.array == value, label.array == value) > 0.93
    if name == "as prepared" and crop == "none":
        np.testing.assert_array_equal(back.array, label.array)


def test_what_was_cropped_away_is_background(segmentation_task: TaskConfig) -> None:
    image, label = make_case(GRIDS["oblique"])
    task = with_preprocess(segmentation_task, spacing_mm=(1.0, 1.0, 1.0), crop="foreground")
    _, record = prepare_image(image, task)
    everywhere = torch.zeros(3, *record.prepared.shape)
    everywhere[2] = 1
    back = restore_labels(everywhere, record).array[0]
    index = np.stack(np.meshgrid(*map(np.arange, label.shape), indexing="ij"), -1)
    inner = record.prepared.world_to_index(record.native.index_to_world(index))
    shape = np.array(record.prepared.shape)
    inside = ((inner >= 0) & (inner <= shape - 1)).all(-1)
    outside = ((inner < -1) | (inner > shape)).any(-1)
    assert outside.any()
    assert (back[inside] == 2).all()
    assert (back[outside] == 0).all()


def test_the_cube_of_a_classifier_is_not_needed_to_restore(segmentation_task: TaskConfig) -> None:
    """A cube that reaches outside the volume is restored within it."""
    image, label = make_case(GRIDS["flipped"])
    task = with_preprocess(segmentation_task, spacing_mm=(1.0, 1.0, 1.0), crop="cube", cube_mm=60.0)
    _, record = prepare_image(image, task, center_mm=None)
    back = restore_labels(one_hot(resample_to(label, record.prepared, fill=0.0), 3), record)
    assert dice(back.array > 0, label.array > 0) > 0.95


def test_the_largest_interpolated_probability_wins() -> None:
    """Between two voxels of different labels the border lies in the middle, wherever the native voxels are."""
    native = Grid((1, 1, 8), np.diag([1.0, 1.0, 0.25, 1.0]))
    prepared = Grid((1, 1, 2), np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.375], [0, 0, 0, 1.0]]))
    probabilities = torch.tensor([[[[0.1, 0.1]]], [[[0.9, 0.0]]], [[[0.0, 0.9]]]])
    back = restore_labels(probabilities, Record(native, prepared))
    np.testing.assert_array_equal(back.array[0, 0, 0], [1, 1, 1, 1, 2, 2, 2, 2])


def test_many_classes_need_a_wider_type() -> None:
    grid = Grid((2, 3, 4), np.diag([2.0, 1.5, 1.0, 1.0]))
    probabilities = torch.zeros(300, *grid.shape)
    probabilities[299] = 1
    back = restore_labels(probabilities, Record(grid, grid))
    assert back.array.dtype == np.uint16
    assert (back.array == 299).all()
