"""A label map goes to the prepared grid and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.infer import restore
from medi3d.infer.restore import Restorer, restore_labels
from medi3d.io.record import Record
from medi3d.preprocess import isotropic_grid, prepare_image, resample_to
from medi3d.preprocess.resampling.resample import ImageResampler
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


def smooth_probabilities(grid: Grid, classes: int, *, seed: int = 0) -> Tensor:
    """Random probabilities that change over a few voxels: every class wins somewhere, some are nowhere near it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, *(max(n // 5, 2) for n in grid.shape), generator=generator)
    logits = functional.interpolate(coarse, grid.shape, mode="trilinear")[0] * 6
    logits[-1] -= 40
    return torch.softmax(logits, 0)


def restore_plainly(probabilities: Tensor, record: Record) -> np.ndarray:
    """Every class as a whole by SimpleITK, then the largest; voxels beyond the prepared grid are background."""
    prepared, native = record.prepared, record.native
    source = [io.to_sitk(Volume(one[None].numpy(), prepared.affine)) for one in probabilities]
    target = io.to_sitk(Volume(np.zeros((1, *native.shape), np.float32), native.affine))
    restored = []
    for value, image in enumerate(source):
        coarser = np.array(target.GetSpacing()) / np.array(image.GetSpacing())
        assert (coarser < 1.4).all()  # beyond, medi3d smooths first
        restored.append(
            sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), sitk.sitkLinear, float(value == 0)))
        )
    return np.stack(restored)


@pytest.mark.parametrize("thickness", [1, 7])
@pytest.mark.parametrize("crop", ["none", "foreground"])
@pytest.mark.parametrize("name", GRIDS)
def test_plane_by_plane_the_labels_are_those_of_whole_volumes(
    name: str, crop: str, thickness: int, segmentation_task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small slabs and boxes, some classes that win nowhere, against SimpleITK on whole volumes of all classes."""
    monkeypatch.setattr(restore, "_BOX_VOXELS", 3000)
    monkeypatch.setattr(restore, "_SLAB_BYTES", 2**18)
    image, _ = make_case(GRIDS[name])
    spacing_mm = (2.6 if name == "anisotropic" else 1.3, 1.23, 1.37)
    _, record = prepare_image(image, with_preprocess(segmentation_task, spacing_mm=spacing_mm, crop=crop))
    probabilities = smooth_probabilities(record.prepared, 5)
    expected = restore_plainly(probabilities, record)
    restorer = Restorer(record, 5, keep=(2, 0, 2), thickness=thickness)
    for block in torch.split(probabilities, thickness, dim=1):
        restorer.add(block)
    label, kept = restorer.finish()
    assert kept is not None
    np.testing.assert_array_equal(kept.affine, label.affine)
    np.testing.assert_allclose(kept.array, expected[[2, 0, 2]], atol=2e-5)
    first, second = np.sort(expected, axis=0)[[-1, -2]]
    clear = first - second > 1e-4  # SimpleITK computes in another order
    assert clear.mean() > 0.998
    np.testing.assert_array_equal(label.array[0][clear], expected.argmax(0)[clear])
    np.testing.assert_array_equal(label.array, restore_labels(probabilities, record).array)
    assert set(np.unique(label.array)) == {0, 1, 2, 3}


def sheared_grid() -> Grid:
    """A CT whose gantry was tilted: slices are shifted against each other, so that axes are not at right angles."""
    affine = make_affine((2.5, 0.9, 1.1), axes=(2, 1, 0), signs=(1, -1, -1))
    affine[1, 0] = 0.8
    return Grid((14, 44, 36), affine)


@pytest.mark.parametrize(
    ("grid", "spacing_mm"), [(GRIDS["anisotropic"], (1.0, 0.5, 0.5)), (sheared_grid(), (2.0, 1.3, 1.2))]
)
def test_a_finer_prepared_grid_and_a_sheared_native_one(
    grid: Grid, spacing_mm: tuple[float, float, float], segmentation_task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SimpleITK has no words for: all classes as a whole by medi3d's resampler, then the largest."""
    monkeypatch.setattr(restore, "_BOX_VOXELS", 3000)
    monkeypatch.setattr(restore, "_SLAB_BYTES", 2**18)
    image, _ = make_case(grid)
    _, record = prepare_image(image, with_preprocess(segmentation_task, spacing_mm=spacing_mm))
    probabilities = smooth_probabilities(record.prepared, 4)
    whole = [
        ImageResampler(one[None].numpy(), record.prepared, record.native, padding=None, fill=float(value == 0))
        for value, one in enumerate(probabilities)
    ]
    expected = np.stack([one.slab(0, record.native.shape[0])[0] for one in whole]).argmax(0)
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(restore_labels(probabilities, record).array[0], expected)


def test_planes_are_held_no_longer_than_needed(segmentation_task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_SLAB_BYTES", 1)
    image, _ = make_case(GRIDS["permuted"])
    _, record = prepare_image(image, with_preprocess(segmentation_task, spacing_mm=(1.0, 1.0, 1.0)))
    restorer = Restorer(record, 4, thickness=3)
    assert restorer._planes.tensor.shape == (4, 3 + 2, *record.prepared.shape[1:])  # a native plane lies between two


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


def test_a_class_wins_with_hardly_more_than_its_share() -> None:
    """Of four classes one has at least a quarter; one that has less cannot win and is passed over, no other."""
    native, prepared = (Grid((n, 4, 5), np.diag([12.0 / n, 1.0, 1.0, 1.0])) for n in (6, 4))
    probabilities = torch.tensor([0.2495, 0.2496, 0.2512, 0.2497])[:, None, None, None].expand(4, *prepared.shape)
    assert (restore_labels(probabilities, Record(native, prepared)).array == 2).all()


def test_many_classes_need_a_wider_type() -> None:
    grid = Grid((2, 3, 4), np.diag([2.0, 1.5, 1.0, 1.0]))
    probabilities = torch.zeros(300, *grid.shape)
    probabilities[299] = 1
    back = restore_labels(probabilities, Record(grid, grid))
    assert back.array.dtype == np.uint16
    assert (back.array == 299).all()
