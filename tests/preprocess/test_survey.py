from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medi3d import io
from medi3d.config import PreprocessConfig, TaskConfig, load_task
from medi3d.errors import InputError
from medi3d.io.raw import Header
from medi3d.preprocess import RawCase, list_raw_cases
from medi3d.preprocess.survey import (
    VOXELS_A_CASE,
    join_foreground,
    measure_foreground,
    median_spacing,
    needs_survey,
    resolve,
    survey_case,
)
from medi3d.volume import Grid, LabelMap, Volume

TASK = load_task("hippocampus")
SHAPE = (8, 20, 30)


def task(**preprocess: object) -> TaskConfig:
    return replace(TASK, preprocess=PreprocessConfig(**preprocess))  # type: ignore[arg-type]


DATASET = task(normalize=("dataset",))


def header(affine: list[list[float]], shape: tuple[int, int, int] = (4, 5, 6)) -> Header:
    full = np.eye(4)
    full[:3, :3] = affine
    return Header(1, Grid(shape, full), np.dtype("i2"))


def axial(d: float, h: float, w: float) -> Header:
    return header([[0, 0, -w], [0, -h, 0], [d, 0, 0]])


def coronal(thick: float, fine: float) -> Header:
    """Stored with the thick axis last."""
    return header([[fine, 0, 0], [0, 0, thick], [0, fine, 0]])


def save(folder: Path, name: str, seed: int, spacing: float = 2.0, *, label: bool = True) -> RawCase:
    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, spacing, 4.0, 1.0])[:, [2, 1, 0, 3]]
    io.write_volume(Volume(rng.normal(100 + seed, 20, (1, *SHAPE)).astype("f4"), affine), folder / f"{name}.nii")
    mask = np.zeros((1, *SHAPE), "u1")
    mask[0, 2:5, 3:9, 4:20] = 1
    mask[0, 3:5, 9:15, 4:20] = 2
    if label:
        io.write_label_map(LabelMap(mask, affine), folder / f"{name}_label.nii")
    return RawCase(name, name, (folder / f"{name}.nii",), label=folder / f"{name}_label.nii" if label else None)


# --- spacing


def test_the_median_goes_along_the_prepared_axes() -> None:
    mixed = [axial(1.25, 0.7, 0.7), axial(2.5, 0.8, 0.8), axial(5.0, 0.9, 0.9)]
    assert median_spacing(mixed) == (2.5, 0.8, 0.8)
    turned = [header([[0, h, 0], [w, 0, 0], [0, 0, d]]) for d, h, w in ((1, 2, 3), (1.1, 2.1, 3.1), (0.9, 1.9, 2.9))]
    assert median_spacing(turned) == (1, 3, 2)  # S is stored as W, P as D, L as H; none of them is thick


def test_thick_slices_are_depth_whatever_their_plane() -> None:
    assert median_spacing([coronal(4.0, 0.8)] * 3) == (4.0, 0.8, 0.8)
    assert median_spacing([coronal(4.0, 0.8), axial(5.0, 0.7, 0.7), axial(6.0, 0.6, 0.6)]) == (5.0, 0.7, 0.7)


def test_one_thick_series_among_isotropic_ones_changes_nothing() -> None:
    assert median_spacing([axial(1, 1, 1)] * 4 + [coronal(5.0, 0.5)]) == (1, 1, 1)


# --- intensities


def test_labelled_voxels_are_measured(tmp_path: Path) -> None:
    raw = save(tmp_path, "a", 1)
    sample = measure_foreground(raw, DATASET)
    image, label = io.read_volume(raw.images[0]).array[0], io.read_label_map(raw.label or "").array[0]
    np.testing.assert_array_equal(np.sort(sample[0]), np.sort(image[label > 0]))
    assert sample.dtype == np.float32
    low, high, mean, std = join_foreground([sample])[0]
    assert (low, high) == pytest.approx(tuple(np.percentile(image[label > 0], [0.5, 99.5])), rel=1e-5)
    assert mean == pytest.approx(image[label > 0].mean(), rel=1e-5)
    assert std == pytest.approx(image[label > 0].std(), rel=1e-4)


def test_large_labels_are_thinned_out_evenly(tmp_path: Path) -> None:
    shape = (40, 50, 60)
    ramp = np.arange(np.prod(shape), dtype="f4").reshape(1, *shape)
    io.write_volume(Volume(ramp, np.eye(4)), tmp_path / "i.nii")
    label = np.ones((1, *shape), "u1")
    label[0, 10:30] = 0
    io.write_label_map(LabelMap(label, np.eye(4)), tmp_path / "l.nii")
    sample = measure_foreground(RawCase("a", "a", (tmp_path / "i.nii",), label=tmp_path / "l.nii"), DATASET)
    assert sample.shape == (1, VOXELS_A_CASE)
    assert len(np.unique(sample)) == VOXELS_A_CASE
    assert sample.mean() == pytest.approx(ramp[label > 0].mean(), rel=1e-3)
    assert not ((sample >= 10 * 3000) & (sample < 30 * 3000)).any()


def test_without_a_label_the_foreground_counts(tmp_path: Path) -> None:
    sample = measure_foreground(save(tmp_path, "a", 1, label=False), DATASET)
    assert sample.shape == (1, 4800)


def test_every_case_has_the_same_say_and_order_none() -> None:
    samples = [np.full((2, n), value, "f4") for n, value in ((10, 1.0), (10, 3.0))]
    first, second = join_foreground(samples)
    assert first == second
    assert first[2:] == (2.0, 1.0)
    assert join_foreground(samples[::-1]) == join_foreground(samples)
    with pytest.raises(InputError, match="voxels of channel 1 all have the value 4 over the whole data set"):
        join_foreground([np.full((1, 9), 4.0)])


# --- the task


def test_only_what_is_missing_is_measured() -> None:
    assert not needs_survey(TASK)
    assert resolve(TASK, []) is TASK
    assert needs_survey(task(spacing_mm="median"))
    assert needs_survey(DATASET)
    assert not needs_survey(task(normalize=("dataset",), dataset_intensities=((0.0, 1.0, 0.5, 0.1),)))


def test_resolving_fills_in_numbers(tmp_path: Path) -> None:
    cases = [save(tmp_path, f"c{n}", n, 1.0 + n / 4) for n in range(5)]
    wanted = task(normalize=("dataset",), spacing_mm="median")
    resolved = resolve(wanted, cases)
    assert resolved.preprocess.spacing_mm == (4.0, 1.5, 1.0)
    assert len(resolved.preprocess.dataset_intensities) == 1
    assert not needs_survey(resolved)
    with ThreadPoolExecutor(2) as pool:
        assert resolve(wanted, cases[::-1], pool.map) == resolved
    assert pickle.loads(pickle.dumps(survey_case(cases[0], wanted))) is not None


def test_unreadable_cases_have_no_say(tmp_path: Path) -> None:
    good = save(tmp_path, "a", 1)
    (tmp_path / "b.nii").write_bytes(b"no image")
    bad = RawCase("b", "b", (tmp_path / "b.nii",))
    empty = save(tmp_path, "c", 2)
    nothing = np.zeros((1, *SHAPE), "u1")
    io.write_label_map(LabelMap(nothing, np.diag([1.0, 2, 4, 1])[:, [2, 1, 0, 3]]), empty.label or "")
    other = replace(good, case_id="d", label=save(tmp_path, "e", 3).label)
    io.write_label_map(LabelMap(nothing[:, 1:], np.eye(4)), other.label or "")
    wanted = task(normalize=("dataset",), spacing_mm="median")
    assert resolve(wanted, [good, bad, empty, other]) == resolve(wanted, [good])
    with pytest.raises(InputError, match="none of the 2 cases can be read"):
        resolve(wanted, [bad, empty])


@pytest.mark.real_data
def test_real_nodules(real_data: Callable[[str], Path]) -> None:
    config = load_task("lung_nodule_seg")
    cases, _ = list_raw_cases(real_data("lung_nodule"), config.data, need_label=True)
    config = replace(config, preprocess=PreprocessConfig(spacing_mm="median", normalize=("dataset",)))
    resolved = resolve(config, cases[::40]).preprocess
    assert isinstance(resolved.spacing_mm, tuple)
    d, h, w = resolved.spacing_mm
    assert d > h == w
    low, high, mean, std = resolved.dataset_intensities[0]
    assert -1000 < low < mean < high < 1500
    assert 50 < std < 400
