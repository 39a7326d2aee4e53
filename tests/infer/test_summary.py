"""The report file: its numbers against SimpleITK's LabelShapeStatistics, its shape, and what it does not tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from quick_predictor import QuickPredictor

from medi3d import io
from medi3d._version import __version__
from medi3d.config import TaskConfig
from medi3d.infer.batch import BatchOptions, predict_files
from medi3d.infer.summary import measure_volumes, write_report
from medi3d.volume import LabelMap


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for name in ("case_0", "case_1"):
        volume = io.read_volume(tiny / "raw" / "tiny_segmentation" / "imagesTr" / f"{name}.nii.gz")
        io.write_volume(volume, folder / f"{name}.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"nothing")
    return folder


def test_the_report_agrees_with_simpleitk(segmentation_task: TaskConfig, source: Path, tmp_path: Path) -> None:
    quick = QuickPredictor(segmentation_task)
    summary = predict_files(quick, source, tmp_path / "out", options=BatchOptions(probabilities=(1,)))
    write_report(tmp_path / "deep" / "report.json", quick, summary)
    report = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert list(report) == ["medi3d", "task", "models", "cases"]
    assert (report["medi3d"], report["task"]) == (__version__, "tiny_segmentation")
    assert report["models"] == [{"run": "runs/one", "checkpoint_sha256": "a" * 64, "plan_sha256": "b" * 64}]
    cases = {case["case_id"]: case for case in report["cases"]}
    assert [(name, case["status"]) for name, case in cases.items()] == [
        ("bad", "failed"),
        ("case_0", "predicted"),
        ("case_1", "predicted"),
    ]
    assert "bad.nii.gz" in cases["bad"]["error"]
    for name in ("case_0", "case_1"):
        case = cases[name]
        image = sitk.ReadImage(str(source / f"{name}.nii.gz"))
        assert case["input"]["shape"] == list(image.GetSize())[::-1]
        np.testing.assert_allclose(case["input"]["spacing_mm"], image.GetSpacing()[::-1], rtol=1e-6)
        assert case["input"]["orientation"] == "IRP"  # downwards, to the right, backwards
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.Execute(sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz")))
        for value, label in ((1, "bright"), (2, "dark")):
            assert case["volumes_ml"][label] == pytest.approx(statistics.GetPhysicalSize(value) / 1000, abs=2e-6)
            assert case["volumes_ml"][label] > 0
        assert set(case["seconds"]) == {"read", "prepare", "network", "restore", "write"}
        assert (case["seconds"]["prepare"], case["seconds"]["network"]) == (0.25, 0.5)
        assert case["warnings"] == ["unfamiliar"]
        assert "error" not in case


def test_volumes_of_a_sheared_grid_are_those_of_its_voxels() -> None:
    affine = np.array([[0, 0.3, 2.0, 0], [0, 1.5, 0, 0], [4.0, 0.7, 0, 0], [0, 0, 0, 1]])
    label = LabelMap(np.full((1, 2, 3, 5), 3, np.uint8), affine)
    volume_ml = 30 * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert measure_volumes(label, {1: "a", 3: "b"}) == {"a": 0.0, "b": pytest.approx(volume_ml, abs=1e-6)}


def test_where_file_names_tell_of_patients_messages_are_left_out(
    segmentation_task: TaskConfig, source: Path, tmp_path: Path
) -> None:
    (source / "bad.nii.gz").rename(source / "Mr_Smith.nii.gz")
    for hide in (False, True):
        quick = QuickPredictor(replace(segmentation_task, data=replace(segmentation_task.data, hash_case_ids=hide)))
        summary = predict_files(quick, source, tmp_path / "out")
        write_report(tmp_path / "report.json", quick, summary)
        errors = [
            case["error"] for case in json.loads((tmp_path / "report.json").read_text())["cases"] if "error" in case
        ]
        assert ("Smith" in errors[0]) is not hide
