"""Post-processing against hand-made masks, scipy and SimpleITK, on unequal spacings and flipped axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medi3d import io
from medi3d.config import TaskConfig, load_task
from medi3d.config.postprocess import FillHoles, LargestComponent, PostprocessStep, RemoveSmall, Smooth
from medi3d.errors import ConfigError
from medi3d.infer.postprocess import postprocess, voxel_ml
from medi3d.infer.predictor import Predictor
from medi3d.runs.folder import RunFolder
from medi3d.volume import Grid, LabelMap

SPACING = (4.0, 0.5, 1.25)
AFFINE = np.array([[0, 0.5, 0, 3], [0, 0, -1.25, 5], [-4.0, 0, 0, -2], [0, 0, 0, 1]])
"""D runs downwards, H to the right, W backwards."""


def as_map(array: np.ndarray, affine: np.ndarray = AFFINE) -> LabelMap:
    return LabelMap(array[None].astype(np.uint8), affine)


def done(array: np.ndarray, *steps: PostprocessStep, affine: np.ndarray = AFFINE) -> np.ndarray:
    before = array.copy()
    result = postprocess(as_map(array, affine), steps)
    np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(result.affine, affine)
    assert result.array.dtype == np.uint8
    return result.array[0]


def random_map(seed: int, shape: tuple[int, int, int] = (7, 9, 11), values: int = 3) -> np.ndarray:
    """Blobs of several labels, with islands of one voxel and holes of one."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 0.8) for _ in range(values)]
    array = np.argmax(np.stack([np.full(shape, 0.12), *fields]), axis=0).astype(np.uint8)
    array[0:3, 0:3, 0:3] = 0
    array[1, 1, 1] = 1
    array[4:7, 4:7, 4:7] = 2
    array[5, 5, 5] = 0
    return array


# --- what each step does, by hand


def test_the_largest_piece_of_each_label_or_of_all_together_stays() -> None:
    array = np.zeros((3, 4, 8), np.uint8)
    array[1, 1:3, 0:3] = 1  # 6 voxels, touching 4 of label 2
    array[1, 1:3, 3:5] = 2
    array[2, 3, 5] = 2  # by a corner only
    array[0, 0, 6:8] = 1  # an island
    alone = done(array, LargestComponent())
    assert [np.count_nonzero(alone == value) for value in (1, 2)] == [6, 5]
    assert [np.count_nonzero(done(array, LargestComponent(labels=(2,))) == value) for value in (1, 2)] == [8, 5]
    assert np.count_nonzero(done(array, LargestComponent(labels=(2,), connectivity=18)) == 2) == 4
    array[0, 0, 1:8] = 1  # by itself larger than the 6, not than all that they touch
    array[0, 1, 1] = 0
    assert np.count_nonzero(done(array, LargestComponent(connectivity=6)) == 1) == 7
    together = done(array, LargestComponent(together=True, connectivity=6))
    assert [np.count_nonzero(together == value) for value in (1, 2)] == [6, 4]


def test_pieces_of_equal_size_all_stay_whichever_way_the_axes_run() -> None:
    array = np.zeros((3, 4, 8), np.uint8)
    array[0, 0, :2] = array[2, 3, 4:6] = 1
    array[1, 2, 7] = 1
    assert np.count_nonzero(done(array, LargestComponent())) == 4


def test_small_pieces_go_by_their_volume_in_millilitres() -> None:
    array = np.zeros((4, 6, 12), np.uint8)
    array[0, :2, :2] = 1  # 4 voxels of 2.5 mm³: 0.01 ml
    array[3, 3:6, 0] = 2  # 3 voxels: 0.0075 ml
    array[0, 0, 10:] = 1  # 2 voxels: 0.005 ml
    assert voxel_ml(Grid((4, 6, 12), AFFINE)) == pytest.approx(0.0025)
    kept = done(array, RemoveSmall(min_ml=0.01))
    assert [np.count_nonzero(kept == value) for value in (1, 2)] == [4, 0]
    kept = done(array, RemoveSmall(min_ml=0.0075, labels=(2,)))
    assert [np.count_nonzero(kept == value) for value in (1, 2)] == [6, 3]
    in_file = AFFINE.astype(np.float32).astype(np.float64) * np.array([1 - 5e-8, 1 - 5e-8, 1 - 5e-8, 1])
    assert np.count_nonzero(done(array, RemoveSmall(min_ml=0.01), affine=in_file) == 1) == 4


def test_a_hole_takes_the_label_that_is_nearest_in_millimetres() -> None:
    array = np.zeros((5, 7, 7), np.uint8)
    array[:, 1:6, 1:6] = 1
    array[1:4, 2:5, 2:5] = 0
    array[1:4, 1, 2:5] = 2  # one wall of the hole, 0.5 mm away from its first row along H
    filled = done(array, FillHoles())
    assert not (filled[1:4, 1:6, 1:6] == 0).any()
    # (2, 2, 3) is 0.5 mm from the wall of 2 along H, 2.5 mm from 1 along W, 8 mm along D
    assert filled[2, 2, 3] == 2
    # (2, 4, 3) is 0.5 mm from 1 along H
    assert filled[2, 4, 3] == 1
    np.testing.assert_array_equal(filled[array > 0], array[array > 0])
    np.testing.assert_array_equal(done(array, FillHoles(labels=(1,))), array)  # 2 touches it
    np.testing.assert_array_equal(done(array, FillHoles(labels=(1, 2))), filled)
    hole_ml = 27 * 0.0025
    np.testing.assert_array_equal(done(array, FillHoles(max_ml=hole_ml)), filled)
    np.testing.assert_array_equal(done(array, FillHoles(max_ml=hole_ml * 0.99)), array)


def test_what_reaches_the_border_of_the_volume_is_no_hole() -> None:
    array = np.ones((3, 5, 5), np.uint8)
    array[0:2, 2, 2] = 0
    np.testing.assert_array_equal(done(array, FillHoles()), array)
    array[0, 2, 2] = 1
    assert done(array, FillHoles()).all()


def test_holes_of_one_label_are_those_of_scipy() -> None:
    for seed in range(6):
        mask = random_map(seed, (9, 10, 12)) > 0
        np.testing.assert_array_equal(done(mask, FillHoles()) > 0, ndimage.binary_fill_holes(mask))


def test_a_smoothed_surface_is_that_of_simpleitks_gaussian() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(9, 48, 30)), (0.5, 4, 2)) > 0
    label = as_map(mask)
    image = sitk.Cast(io.to_sitk(label), sitk.sitkFloat32)
    blurred = sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, [4.0**2] * 3, 96, 1e-4, True))
    ours = done(mask, Smooth(sigma_mm=4.0))
    clear = np.abs(blurred - 0.5) > 0.06  # its kernel of Bessel functions differs by so much
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(ours[clear] > 0, (blurred > 0.5)[clear])
    assert (ours != mask).any()


def test_smoothing_leaves_other_labels_and_structures_at_the_border_alone() -> None:
    array = np.zeros((4, 16, 12), np.uint8)
    array[:, :8] = 1  # reaches five faces of the volume
    array[1, 10, 5] = 2
    smoothed = done(array, Smooth(sigma_mm=1.0, labels=(1,)))
    np.testing.assert_array_equal(smoothed, array)
    assert not (done(array, Smooth(sigma_mm=1.0)) == 2).any()


# --- laws of all steps

STEPS = (
    LargestComponent(),
    LargestComponent(together=True, labels=(1, 3), connectivity=6),
    RemoveSmall(min_ml=0.004),
    RemoveSmall(min_ml=0.03, together=True),
    FillHoles(max_ml=0.02),
    Smooth(sigma_mm=1.0, labels=(1, 2)),
)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.step}{step.labels}")
def test_flipped_and_reordered_axes_change_nothing(step: PostprocessStep) -> None:
    array = random_map(11)
    expected = done(array, step)
    assert (expected != array).any()
    flipped_affine = AFFINE @ np.diag([1.0, -1.0, -1.0, 1.0])
    flipped = done(np.flip(array, (1, 2)), step, affine=flipped_affine)
    np.testing.assert_array_equal(np.flip(flipped, (1, 2)), expected)
    order = (2, 0, 1)
    turned = done(np.transpose(array, order), step, affine=AFFINE[:, [*order, 3]])
    np.testing.assert_array_equal(turned, np.transpose(expected, order))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.step}{step.labels}")
def test_an_empty_map_stays_empty_and_steps_follow_each_other(step: PostprocessStep) -> None:
    assert not done(np.zeros((3, 4, 5), np.uint8), step).any()
    array = random_map(12)
    np.testing.assert_array_equal(done(array, step, FillHoles()), done(done(array, step), FillHoles()))
    wide = postprocess(LabelMap(array[None].astype(np.uint16), AFFINE), [step])
    assert wide.array.dtype == np.uint16
    np.testing.assert_array_equal(wide.array[0], done(array, step))


def test_without_steps_the_map_itself_comes_back() -> None:
    label = as_map(random_map(1))
    assert postprocess(label, ()) is label


# --- in a task


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"step": "fill_hole"}], r"infer\.postprocess\.0: .*did you mean 'fill_holes'"),
        ([{"largest_component": [1]}], r"name a step, as in \{step: fill_holes\}"),
        ([{"step": "smooth", "sigma": 1}], r"unknown key of smooth 'sigma'; did you mean 'sigma_mm'"),
        ([{"step": "remove_small"}], r"infer\.postprocess\.0\.remove_small\.min_ml: Field required"),
        ([{"step": "remove_small", "min_ml": 0}], r"greater than 0"),
        ([{"step": "fill_holes", "labels": [9]}], r"infer\.postprocess: name values of data\.labels"),
        (["smooth"], r"infer\.postprocess\.0"),
    ],
)
def test_a_wrong_step_is_refused_with_its_key(steps: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task("hippocampus", overrides={"infer.postprocess": steps})


def test_a_classification_has_no_label_map_to_post_process() -> None:
    with pytest.raises(ConfigError, match=r"infer\.postprocess: it acts on label maps"):
        load_task("lung_nodule", overrides={"infer.postprocess": [{"step": "fill_holes"}]})


def test_prediction_does_the_steps_of_the_runs_task(
    segmentation_runs: tuple[Path, Path], segmentation_task: TaskConfig, tiny: Path, tmp_path: Path
) -> None:
    import shutil

    import yaml

    image = io.read_volume(tiny / "raw" / "tiny_segmentation" / "imagesTr" / "case_0.nii.gz")
    plain = Predictor(segmentation_runs[:1], device="cpu").predict_labels(image)
    run = RunFolder(tmp_path / "run")
    shutil.copytree(segmentation_runs[0], run.path)
    values = yaml.safe_load(run.config_file.read_text())
    values["infer"]["postprocess"] = [{"step": "largest_component"}]
    run.config_file.write_text(yaml.safe_dump(values))
    predictor = Predictor([run.path], device="cpu")
    label = predictor.predict_labels(image)
    np.testing.assert_array_equal(label.array, postprocess(plain, [LargestComponent()]).array)
    assert (label.array != plain.array).any()
    without = Predictor([run.path], device="cpu", overrides={"infer.postprocess": []})
    np.testing.assert_array_equal(without.predict_labels(image).array, plain.array)
    with pytest.raises(ConfigError, match="other post-processing than"):
        Predictor([segmentation_runs[0], run.path], device="cpu")
