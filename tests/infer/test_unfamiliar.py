"""What sets a case apart is said with both numbers; what is ordinary is passed over in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.export import export_run
from medi3d.infer.predictor import Predictor
from medi3d.infer.unfamiliar import describe_shape, describe_unfamiliar
from medi3d.io.prepared import PreparedStore
from medi3d.preprocess.orient import reorient
from medi3d.runs.folder import RunFolder
from medi3d.types import IntTriple
from medi3d.volume import Grid, Volume


@pytest.fixture
def fingerprint(tiny: Path, segmentation_task: TaskConfig) -> dict[str, Any]:
    return PreparedStore(tiny / "prepared" / segmentation_task.name).fingerprint


@pytest.fixture
def volume(tiny: Path) -> Volume:
    return io.read_volume(tiny / "raw" / "tiny_segmentation" / "imagesTr" / "case_2.nii.gz")


def with_spacing(volume: Volume, factors: tuple[float, float, float]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, :3] *= factors
    return Volume(volume.array, affine)


def test_a_case_like_those_of_training_is_nothing_to_speak_of(
    volume: Volume, segmentation_task: TaskConfig, fingerprint: dict[str, Any]
) -> None:
    assert describe_unfamiliar(volume, segmentation_task, fingerprint) == ()
    assert describe_unfamiliar(with_spacing(volume, (1.4, 1.4, 1.4)), segmentation_task, fingerprint) == ()
    brighter = Volume(volume.array + 5, volume.affine)
    assert describe_unfamiliar(brighter, segmentation_task, fingerprint) == ()


@pytest.mark.parametrize(
    ("factors", "here"), [((2, 1, 1), "5×1.6×1.2"), ((1, 1, 0.45), "2.5×1.2×0.72"), ((0.6, 0.6, 0.6), "1.5×0.96×0.72")]
)
def test_a_spacing_far_from_trainings_is_told_with_both(
    factors: tuple[float, float, float],
    here: str,
    volume: Volume,
    segmentation_task: TaskConfig,
    fingerprint: dict[str, Any],
) -> None:
    (found,) = describe_unfamiliar(with_spacing(volume, factors), segmentation_task, fingerprint)
    expected = f"the voxels are {here} mm; those of the 6 training cases are 2.5×1.6×1.2 mm at the median"
    assert found == f"{expected}, from 2.5×1.6×1.2 to 2.5×1.6×1.2 mm"


def test_axes_in_another_order_are_no_other_spacing_but_another_orientation(
    volume: Volume, segmentation_task: TaskConfig, fingerprint: dict[str, Any]
) -> None:
    (found,) = describe_unfamiliar(reorient(volume, "RAS"), segmentation_task, fingerprint)
    assert found.startswith("the axes run along RAS, those of the training cases along IRP; the image is turned")


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 80.0), (0.01, 0.0), (20.0, 0.0), (-1.0, 0.0)])
def test_intensities_far_from_trainings_are_told_with_both(
    scale: float, offset: float, volume: Volume, segmentation_task: TaskConfig, fingerprint: dict[str, Any]
) -> None:
    other = Volume(volume.array * scale + offset, volume.affine)
    (found,) = describe_unfamiliar(other, segmentation_task, fingerprint)
    here = np.percentile(other.array, (5, 50, 95))
    known = fingerprint["channels"]["MR"]["percentiles"]
    for numbers in (here, known["min"][1:4], known["max"][1:4]):
        assert "/".join(f"{value:.4g}" for value in numbers) in found
    assert found.startswith("channel MR: intensities are ")
    assert found.endswith("each image is normalised by itself, so another scale alone does no harm")
    absolute = replace(segmentation_task, preprocess=replace(segmentation_task.preprocess, normalize=("ct",)))
    assert "normalised by itself" not in describe_unfamiliar(other, absolute, fingerprint)[0]


GRID = Grid((16, 30, 40), np.diag([2.0, 1.0, 1.0, 1.0]))
TRAINED = {"prepared_shape": {"min": [6.0, 15.0, 9.0], "median": [9.0, 20.0, 9.0], "max": [12.0, 25.0, 9.0]}}
"""The smallest training case fills 6 planes of a window of 8, and more than all of its 10 rows."""


@pytest.mark.parametrize("prepared", [(8, 15, 9), (6, 15, 9), (7, 12, 9), (6, 10, 20)])
def test_a_window_that_was_as_empty_in_training_is_nothing_to_speak_of(
    prepared: IntTriple, segmentation_task: TaskConfig
) -> None:
    assert describe_shape(GRID, prepared, segmentation_task, TRAINED) == ()


@pytest.mark.parametrize("prepared", [(5, 15, 9), (6, 9, 9), (6, 15, 8)])
def test_a_window_emptier_than_in_training_is_told(prepared: IntTriple, segmentation_task: TaskConfig) -> None:
    (found,) = describe_shape(GRID, prepared, segmentation_task, TRAINED)
    assert found == (
        f"the prepared image, {'×'.join(map(str, prepared))} voxels, is smaller than the network's window, 8×10×9, and "
        "than the training cases, 6×15×9 or more; it is filled up with zeros"
    )
    assert describe_shape(GRID, prepared, segmentation_task, None) == ()


def test_a_single_slice_is_told(segmentation_task: TaskConfig) -> None:
    for fingerprint in (None, {"prepared_shape": {"min": [1.0, 15.0, 20.0]}}):
        (found,) = describe_shape(Grid((1, 30, 40), GRID.affine), (1, 15, 20), segmentation_task, fingerprint)
        assert found.startswith("the image is a single slice, 1×30×40 voxels; ")


def test_a_run_knows_its_data_and_an_exported_one_too(
    segmentation_runs: tuple[Path, Path], volume: Volume, fingerprint: dict[str, Any], tmp_path: Path
) -> None:
    assert RunFolder(segmentation_runs[0]).load_fingerprint() == fingerprint
    odd = with_spacing(volume, (2, 1, 1))
    for run in (segmentation_runs[0], export_run(segmentation_runs[0], tmp_path / "shared")):
        predictor = Predictor([run], device="cpu")
        assert predictor.predict(volume).warnings == ()
        (found,) = predictor.predict(odd).warnings
        assert found.startswith("the voxels are 5×1.6×1.2 mm; ")
    (tmp_path / "shared" / "fingerprint.json").unlink()  # as in runs of older versions
    assert Predictor([tmp_path / "shared"], device="cpu").predict(odd).warnings == ()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_slice_and_a_thin_volume_are_predicted(
    depth: int, segmentation_runs: tuple[Path, Path], volume: Volume
) -> None:
    thin = Volume(volume.array[:, 4 : 4 + depth], volume.affine)
    found = Predictor(segmentation_runs, device="cpu").predict(thin)
    assert found.label is not None
    assert found.label.shape == (depth, 16, 14)
    assert found.label.grid.is_close(thin.grid)
    told = "\n".join(found.warnings)
    assert ("the image is a single slice" in told) == (depth == 1)
    assert "is smaller than the network's window, 8×10×9" in told
