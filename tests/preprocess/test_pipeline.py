from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medi3d import io
from medi3d.config import PreprocessConfig, TaskConfig, load_task
from medi3d.errors import ConfigError, InputError
from medi3d.preprocess import RawCase, list_raw_cases, prepare_case, prepare_image, read_image, resample_to
from medi3d.preprocess.pipeline import estimate_bytes, open_case
from medi3d.volume import LabelMap, Volume

AFFINE = np.array([[-0.8, 0.05, 0.1, 5], [0.05, 0.9, 0.1, 6], [0.1, -0.1, 2.5, 7], [0, 0, 0, 1]])[:, [2, 1, 0, 3]]
SHAPE = (8, 30, 40)
TASK = load_task("hippocampus")


def task(**preprocess: object) -> TaskConfig:
    return replace(TASK, preprocess=PreprocessConfig(**preprocess))  # type: ignore[arg-type]


def image(seed: int = 0, affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE) -> Volume:
    return Volume(np.random.default_rng(seed).normal(100, 20, (1, *shape)).astype("f4"), affine)


def mask() -> LabelMap:
    array = np.zeros((1, *SHAPE), "uint8")
    array[0, 2:6, 8:20, 10:25] = 1
    array[0, 2:6, 20:24, 10:25] = 2
    return LabelMap(array, AFFINE)


def save(folder: Path, volume: Volume, name: str) -> Path:
    io.write_volume(volume, folder / name)
    return folder / name


def raw_case(folder: Path, volume: Volume | None = None, label: LabelMap | None = None, **more: object) -> RawCase:
    return RawCase(
        "a",
        "P",
        (save(folder, volume or image(), "i.nii.gz"),),
        label=save(folder, label or mask(), "l.nii.gz"),
        **more,  # type: ignore[arg-type]
    )


def test_image_and_label_share_the_recorded_grid(tmp_path: Path) -> None:
    prepared, label, record = prepare_case(raw_case(tmp_path), TASK)
    assert label is not None
    assert prepared.grid.is_close(record.prepared)
    assert label.grid.is_close(record.prepared)
    assert record.native.is_close(image().grid)
    assert prepared.orientation == "SPL"
    assert prepared.spacing_mm == pytest.approx((1, 1, 1))
    assert prepared.array.dtype == np.float32
    assert label.array.dtype == np.uint8
    assert set(np.unique(label.array)) == {0, 1, 2}
    assert [step["step"] for step in record.steps] == ["normalize", "orient", "crop", "resample"]


def test_prediction_prepares_what_training_prepares(tmp_path: Path) -> None:
    raw = raw_case(tmp_path)
    from_training, _, _ = prepare_case(raw, TASK)
    for_prediction, _ = prepare_image(read_image(raw.images, channels=1), TASK)
    np.testing.assert_array_equal(from_training.array, for_prediction.array)


def test_the_record_undoes_a_label_map(tmp_path: Path) -> None:
    _, label, record = prepare_case(raw_case(tmp_path), TASK)
    assert label is not None
    back = resample_to(label, record.native, fill=0.0)
    assert back.shape == SHAPE
    for value in (1, 2):
        both = ((back.array == value) & (mask().array == value)).sum()
        assert 2 * both / ((back.array == value).sum() + (mask().array == value).sum()) > 0.93


def test_an_unchanged_grid_keeps_the_voxels() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])[:, [2, 1, 0, 3]]
    volume = image(affine=affine)
    prepared, _ = prepare_image(volume, task(normalize=("none",)))
    np.testing.assert_array_equal(prepared.array, volume.array[:, :, ::-1, ::-1])


def test_cube_around_the_mask_of_every_case(tmp_path: Path) -> None:
    cube = task(crop="cube", cube_mm=24.0)
    raw = raw_case(tmp_path)
    prepared, label, record = prepare_case(raw, cube)
    assert prepared.shape == (24, 24, 24)
    assert label is not None
    center = record.prepared.index_to_world([11.5] * 3)
    np.testing.assert_allclose(center, mask().grid.index_to_world(np.argwhere(mask().array[0]).mean(0)), atol=1e-4)
    # a centre mask of its own goes first
    dot = np.zeros((1, *SHAPE), "uint8")
    dot[0, 1, 3, 4] = 1
    other = replace(raw, center=save(tmp_path, LabelMap(dot, AFFINE), "c.nii.gz"), label=None)
    _, label, record = prepare_case(other, cube)
    assert label is None
    np.testing.assert_allclose(
        record.prepared.index_to_world([11.5] * 3), mask().grid.index_to_world([1, 3, 4]), atol=1e-4
    )
    save(tmp_path, LabelMap(dot * 0, AFFINE), "c.nii.gz")
    with pytest.raises(InputError, match=r"c\.nii\.gz: the mask has no voxel above 0"):
        prepare_case(other, cube)


def test_foreground_crop_restores_to_the_whole_native_grid(tmp_path: Path) -> None:
    volume = image()
    array = volume.array.copy()
    array[0, :, :6] = array[0, :, 26:] = array[0, :, :, :8] = array[0, :, :, 33:] = 0
    prepared, label, record = prepare_case(
        raw_case(tmp_path, Volume(array, AFFINE)), task(crop="foreground", spacing_mm=(2.0, 1.0, 1.0))
    )
    assert label is not None
    assert record.native.shape == SHAPE
    assert prepared.shape[2] < SHAPE[2] * 0.8
    back = resample_to(label, record.native, fill=0.0)
    assert ((back.array > 0) & (mask().array > 0)).sum() / (mask().array > 0).sum() > 0.95
    assert (back.array[0, :, :2] == 0).all()


def test_a_coronal_series_keeps_its_thick_axis_as_depth() -> None:
    coronal = image(affine=np.diag([0.8, 4.0, 0.9, 1.0]), shape=(20, 6, 24))
    prepared, record = prepare_image(coronal, task(spacing_mm=(4.0, 0.8, 0.8)))
    assert prepared.orientation == "PIL"
    assert prepared.shape[0] == 6
    assert {"step": "orient", "from": "RAS", "to": "PIL"} in record.steps


# --- several channels


def test_files_become_channels(tmp_path: Path) -> None:
    paths = [save(tmp_path, image(seed), f"{seed}.nii.gz") for seed in (1, 2)]
    both = read_image(paths, channels=2)
    np.testing.assert_array_equal(both.array[1], image(2).array[0])
    stacked = save(tmp_path, both, "both.nii.gz")
    np.testing.assert_array_equal(read_image([stacked], channels=2).array, both.array)
    with pytest.raises(
        InputError, match=r"expected 3 channels \(data\.channels\), got 2 files: 1\.nii\.gz, 2\.nii\.gz"
    ):
        read_image(paths, channels=3)
    with pytest.raises(InputError, match=r"expected 1 channels \(T1\), got 2"):
        prepare_image(both, TASK)


def test_a_channel_on_another_grid_is_resampled_onto_the_first_ones(tmp_path: Path) -> None:
    first = image(affine=np.diag([2.0, 1.0, 1.0, 1.0]))
    ramp = np.add.outer(np.add.outer(2.5 * np.arange(9.0), 0.0 * np.arange(33)), 0.8 * np.arange(52.0))
    second = Volume(ramp[None].astype("f4"), np.diag([2.5, 1.0, 0.8, 1.0]))
    both = read_image([save(tmp_path, first, "1.nii"), save(tmp_path, second, "2.nii.gz")], channels=2)
    assert both.grid.is_close(first.grid)
    np.testing.assert_array_equal(both.array[0], first.array[0])
    expected = np.add.outer(2.0 * np.arange(SHAPE[0]), np.arange(SHAPE[2]))  # the ramp is its own place in mm
    np.testing.assert_allclose(both.array[1], np.repeat(expected[:, None], SHAPE[1], axis=1), atol=1e-4)


def test_a_channel_that_ends_early_holds_its_background_beyond(tmp_path: Path) -> None:
    second = Volume(image(3).array[:, :6] + 500, AFFINE)
    both = read_image([save(tmp_path, image(), "1.nii"), save(tmp_path, second, "2.nii")])
    np.testing.assert_allclose(both.array[1, :6], second.array[0], rtol=1e-6)
    assert (both.array[1, 6:] == second.array.min()).all()


def test_a_channel_elsewhere_is_refused(tmp_path: Path) -> None:
    paths = [save(tmp_path, image(), "1.nii"), save(tmp_path, image(affine=moved(2, 12.0)), "2.nii")]
    with pytest.raises(InputError, match=r"2\.nii: covers \d+% of .*1\.nii.*one patient"):
        read_image(paths)


def test_a_frame_of_a_file_is_a_case_of_its_own(tmp_path: Path) -> None:
    frames = Volume(np.concatenate([image(seed).array for seed in (1, 2)]), AFFINE)
    raw = RawCase("a_t001", "P", (save(tmp_path, frames, "i.nii.gz"),), save(tmp_path, mask(), "l.nii.gz"), frame=1)
    of_frame, label, _ = prepare_case(raw, TASK)
    alone, _, _ = prepare_case(raw_case(tmp_path, volume=image(2)), TASK)
    np.testing.assert_array_equal(of_frame.array, alone.array)
    assert label is not None


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
@pytest.mark.parametrize("method", ["ct", "mr", "percentile", "none"])
def test_slabs_and_scratch_files_change_nothing(tmp_path: Path, method: str, interpolation: str) -> None:
    config = task(normalize=(method,), spacing_mm=(0.9, 0.8, 0.7), interpolation=interpolation, crop="foreground")
    raw = raw_case(tmp_path, volume=image(shape=(40, 30, 24)), label=LabelMap(np.ones((1, 40, 30, 24), "u1"), AFFINE))
    whole, label, _ = prepare_case(raw, config)
    opened = open_case(raw, config, scratch=tmp_path)
    assert opened.label is not None
    assert label is not None
    steps = range(0, whole.shape[0], 7)
    in_slabs = np.concatenate([opened.image.slab(n, min(n + 7, whole.shape[0])) for n in steps], axis=1)
    np.testing.assert_allclose(in_slabs, whole.array, atol=2e-6 * np.abs(whole.array).max())
    labels = np.concatenate([opened.label.slab(n, min(n + 7, whole.shape[0])) for n in steps], axis=1)
    np.testing.assert_array_equal(labels, label.array)
    assert opened.statistics["labels"]["1"]["prepared_voxels"] == int((label.array == 1).sum())


def test_the_native_voxels_stay_as_they_are() -> None:
    volume = image()
    before = volume.array.copy()
    for method in ("mr", "none"):
        prepare_image(volume, task(normalize=(method,), spacing_mm="native"))
    np.testing.assert_array_equal(volume.array, before)


def test_native_spacing_keeps_every_voxel() -> None:
    upright = image(affine=np.diag([2.5, 0.9, 0.8, 1.0]))
    prepared, record = prepare_image(upright, task(normalize=("none",), spacing_mm="native"))
    np.testing.assert_array_equal(np.sort(prepared.array, axis=None), np.sort(image().array, axis=None))
    assert record.prepared.is_close(prepared.grid)


def test_median_spacing_must_be_measured_first() -> None:
    with pytest.raises(ConfigError, match="medi3d preprocess"):
        prepare_image(image(), task(spacing_mm="median"))


def test_a_bias_field_is_removed_where_the_task_asks_for_it() -> None:
    shade = np.exp(np.linspace(-0.7, 0.7, 40, dtype="f4"))
    body = Volume((image(shape=(20, 40, 40)).array * shade)[:, ::-1], np.diag([3.0, 3.0, 3.0, 1.0]))
    plain, _ = prepare_image(body, task(spacing_mm="native"))
    corrected, record = prepare_image(body, task(spacing_mm="native", bias_correction="n4"))
    slope = [np.ptp(array.mean(axis=(0, 2, 3))) for array in (plain.array, corrected.array)]
    assert slope[1] < 0.5 * slope[0]
    assert record.steps[0] == {"step": "bias", "method": "n4", "channels": ["T1"]}


def test_the_estimated_memory_grows_with_the_volume(tmp_path: Path) -> None:
    sizes = [estimate_bytes(raw_case(tmp_path, image(shape=shape)), TASK) for shape in (SHAPE, (80, 60, 80))]
    assert sizes[1] > sizes[0] + 4 * (80 * 60 * 80 - np.prod(SHAPE))
    (tmp_path / "i.nii.gz").write_bytes(b"")
    assert 0 < estimate_bytes(RawCase("a", "P", (tmp_path / "i.nii.gz",)), TASK) < sizes[0]


# --- bad input


def moved(axis: int, amount: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[axis, 3] += amount
    return affine


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (LabelMap(mask().array[:, :-1], AFFINE), r"shapes \(D, H, W\) disagree: \(8, 30, 40\) against \(7, 30, 40\)"),
        (LabelMap(mask().array, moved(0, 3.0)), r"affines disagree: .* origins 3\.00 mm apart"),
        (LabelMap(mask().array, AFFINE * [1, -1, 1, 1]), "affines disagree: .* SAL against .* SPL"),
        (LabelMap(mask().array * 3, AFFINE), r"unknown label values 3, 6; data\.labels knows 0, 1, 2"),
        (LabelMap(mask().array.astype("int16") - 1, AFFINE), "unknown label values -1"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, label: LabelMap, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prepare_case(raw_case(tmp_path, label=label), TASK)
    assert str(tmp_path / "l.nii.gz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rounded_affines_are_one_grid(tmp_path: Path) -> None:
    prepare_case(raw_case(tmp_path, label=LabelMap(mask().array, moved(1, 0.01))), TASK)


def test_an_all_background_label_is_refused_unless_it_is_the_truth(tmp_path: Path) -> None:
    raw = raw_case(tmp_path, label=LabelMap(mask().array * 0, AFFINE))
    with pytest.raises(InputError, match=r"l\.nii\.gz: the label map is all background"):
        prepare_case(raw, TASK)
    healthy = replace(TASK, data=replace(TASK.data, allow_empty_labels=True))
    label = prepare_case(raw, healthy)[1]
    assert label is not None
    assert not label.array.any()


def test_a_constant_channel_is_named() -> None:
    with pytest.raises(InputError, match="channel T1: the image is constant"):
        prepare_image(Volume(np.ones((1, *SHAPE), "f4"), AFFINE), TASK)


# --- real volumes


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "data_name"),
    [("hippocampus", "hippocampus"), ("lung_nodule", "lung_nodule"), ("lung_nodule_seg", "lung_nodule")],
)
def test_real_cases(real_data: Callable[[str], Path], name: str, data_name: str) -> None:
    config = load_task(name)
    cases, problems = list_raw_cases(real_data(data_name), config.data, need_label=True)
    assert problems == []
    for raw in cases[:: max(len(cases) // 3, 1)]:
        prepared, label, record = prepare_case(raw, config)
        assert prepared.spacing_mm == pytest.approx((1, 1, 1))
        assert prepared.orientation == "SPL"
        assert (label is not None) == (config.kind == "segmentation")
        if label is not None:
            native = io.read_label_map(raw.label or "")
            volumes = [(m.array > 0).sum() * np.prod(m.spacing_mm) for m in (native, label)]
            assert volumes[1] == pytest.approx(volumes[0], rel=0.15)
        if config.preprocess.crop == "cube":
            assert prepared.shape == (32, 32, 32)
            assert prepared.array.min() >= 0
            assert prepared.array.max() <= 1
        assert record.native.is_close(io.read_volume(raw.images[0]).grid)


@pytest.mark.real_data
def test_real_brain(real_data: Callable[[str], Path]) -> None:
    config = load_task("brain_tumor")
    cases, problems = list_raw_cases(real_data("brain_tumor"), config.data, need_label=True)
    assert problems == []
    assert len(cases) == 4
    prepared, label, record = prepare_case(cases[0], config)
    assert label is not None
    assert prepared.num_channels == 2
    assert max(prepared.shape) < 200
    assert record.native.shape == (155, 240, 240)
    native = io.read_label_map(cases[0].label or "")
    back = resample_to(label, record.native, fill=0.0)
    np.testing.assert_array_equal(back.array, native.array)  # 1 mm stays 1 mm: nothing is lost


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mr_t1_oblique", "mr_hippocampus_crop", "ct_small"])
def test_real_dicom(real_data: Callable[[str], Path], name: str) -> None:
    folder = real_data("dicom") / name
    prepared, record = prepare_image(read_image([folder]), task(spacing_mm=(2.0, 2.0, 2.0)))
    assert prepared.orientation == "SPL"
    assert np.isfinite(prepared.array).all()
    extent = [np.array(grid.shape) * grid.spacing_mm for grid in (record.native, record.prepared)]
    assert np.sort(extent[1]) == pytest.approx(np.sort(extent[0]), abs=2.01)
