"""What a finished run gives to others: prepared settings, an exported folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from typer.testing import CliRunner

from medi3d import io
from medi3d.cli.main import app
from medi3d.config import TaskConfig, dump_task
from medi3d.errors import InputError
from medi3d.export import export_run, export_runs
from medi3d.infer.batch import predict_files
from medi3d.infer.predictor import Predictor
from medi3d.preprocess import prepare_dataset
from medi3d.train import train_task


@pytest.fixture(scope="module")
def run(tiny: Path, segmentation_task: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "runs" / "tiny" / "one"
    task = replace(segmentation_task, train=replace(segmentation_task.train, steps=3, validations=1))
    train_task(task, prepared=tiny / "prepared" / task.name, run=folder, device="cpu")
    return folder


def test_an_exported_run_predicts_what_the_run_does(run: Path, tiny: Path, tmp_path: Path) -> None:
    exported = export_run(run, tmp_path / "shared")
    source = tiny / "raw" / "tiny_segmentation" / "imagesTr"
    for name, folder in (("run", run), ("exported", exported)):
        predict_files(Predictor([folder], device="cpu"), source, tmp_path / name)
    for path in io.image_files(tmp_path / "run"):
        other = io.read_label_map(tmp_path / "exported" / path.name)
        assert np.array_equal(io.read_label_map(path).array, other.array)


def test_an_export_holds_the_weights_and_no_case_ids(run: Path, tmp_path: Path) -> None:
    exported = export_run(run, tmp_path / "shared")
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"]
    saved = safetensors.numpy.load_file(exported / "model.safetensors")
    assert {name: tensor.shape for name, tensor in saved.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    card = json.loads((exported / "card.json").read_text())
    assert card["steps"] == 3
    assert not any(re.search(rb"case_\d", path.read_bytes()) for path in exported.glob("*.[jy]*"))


def test_an_export_does_not_overwrite(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match="not empty; give a new folder"):
        export_run(run, tmp_path)


def test_a_folder_of_folds_is_exported_fold_by_fold(run: Path, tiny: Path, tmp_path: Path) -> None:
    folds = tmp_path / "folds"
    for number in (0, 1):
        shutil.copytree(run, folds / f"fold{number}")
    (folds / "cross_validation.json").write_text(json.dumps({"folds": {"0": {}, "1": {}, "2": {}}}))
    answer = CliRunner().invoke(app, ["export", str(folds), "--output", str(tmp_path / "shared")])
    assert answer.exit_code == 0, answer.output
    exported = [tmp_path / "shared" / name for name in ("fold0", "fold1")]
    assert answer.output.split() == [str(path) for path in exported]
    image = tiny / "raw" / "tiny_segmentation" / "imagesTr" / "case_0.nii.gz"
    assert not predict_files(Predictor(exported, device="cpu"), image, tmp_path / "out").problems
    with pytest.raises(InputError, match="not empty; give a new folder"):
        export_runs([folds], tmp_path / "shared")
    with pytest.raises(InputError, match="fold0: two of the runs have this name"):
        export_runs([folds, folds / "fold0"], tmp_path / "other")


def test_export_by_the_command_line(run: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["export", str(run), "--output", str(tmp_path / "x")])
    assert answer.exit_code == 0, answer.output
    assert Path(answer.output.strip()).exists()


def test_training_takes_the_settings_of_the_prepared_cases(
    tiny: Path, segmentation_task: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = replace(segmentation_task, preprocess=replace(segmentation_task.preprocess, spacing_mm=(3.0, 3.5, 4.0)))
    prepare_dataset(tiny / "raw" / coarse.name, coarse, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    words = ["train", "--task", str(tiny / f"{coarse.name}.yaml"), "--prepared", "store", "--print-config"]
    invoke: Callable[[list[str]], str] = lambda extra: CliRunner().invoke(app, words + extra).output  # noqa: E731
    assert yaml.safe_load(invoke([]))["preprocess"] == dump_task(coarse)["preprocess"]
    assert yaml.safe_load(invoke(["--set", "preprocess.crop=foreground"]))["preprocess"]["crop"] == "foreground"


def test_one_mask_for_several_images_is_refused(run: Path, tiny: Path, tmp_path: Path) -> None:
    raw = tiny / "raw" / "tiny_segmentation"
    with pytest.raises(InputError, match="one mask for 6 images"):
        predict_files(
            Predictor([run], device="cpu"), raw / "imagesTr", tmp_path, masks=raw / "labelsTr" / "case_0.nii.gz"
        )
