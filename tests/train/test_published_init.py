"""A run that starts from a published 3D network: trained, resumed and predicted with, without its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medi3d import io
from medi3d.config import TaskConfig, load_task
from medi3d.infer.batch import predict_files
from medi3d.infer.predictor import Predictor
from medi3d.models.volumetric.networks import NETWORKS_3D
from medi3d.runs.folder import RunFolder
from medi3d.train import train_task


@pytest.mark.slow
def test_a_run_starts_from_a_published_network_and_predicts_without_its_file(
    tiny: Path, segmentation_task: TaskConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    file = tmp_path / "resnet_10.pth"
    torch.save({"state_dict": NETWORKS_3D["medicalnet:resnet10"].build().state_dict()}, file)
    model = {"init": f"medicalnet:resnet10@{file}", "stages": 2, "decoder_channels": (4, 6), "stem_stride": 1}
    overrides = {f"model.{key}": value for key, value in model.items()}
    task = load_task(tiny / "tiny_segmentation.yaml", overrides=overrides)
    task = replace(task, train=replace(task.train, steps=2, validations=1, batch_size=1))
    run = tmp_path / "run"
    train_task(task, prepared=tiny / "prepared" / task.name, run=run, device="cpu")
    file.unlink()
    assert RunFolder(run).load_config().model.backbone == "medicalnet:resnet10"
    case = tiny / "raw" / task.name / "imagesTr" / "case_0.nii.gz"
    predict_files(Predictor([run], device="cpu"), case, tmp_path / "predicted")
    predicted = io.read_label_map(tmp_path / "predicted" / "case_0.nii.gz")
    assert predicted.array.shape == io.read_volume(case).array.shape
