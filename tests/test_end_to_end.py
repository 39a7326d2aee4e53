"""The main job through the library, from raw files to scores, once for each kind of task, and twice the same."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.evaluate import evaluate_classification, evaluate_segmentation
from medi3d.infer.batch import predict_files
from medi3d.infer.predictor import Predictor
from medi3d.preprocess import prepare_dataset
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.train import train_task


def for_real(task: TaskConfig, **train: object) -> TaskConfig:
    """The real ImageNet weights, and as much training as a few seconds hold."""
    values = {"validations": 1, "learning_rate": 5e-3, "schedule": "cosine", **train}
    model = replace(task.model, init="imagenet-inflated", decoder_channels=(8, 12))
    return replace(task, model=model, train=replace(task.train, **values))  # type: ignore[arg-type]


def run_job(task: TaskConfig, raw: Path, source: Path, folder: Path) -> Path:
    prepared = prepare_dataset(raw, task, folder / "prepared")
    assert not prepared.problems
    result = train_task(task, prepared=folder / "prepared", run=folder / "run", device="cpu")
    predictor = Predictor([result.run], device="cpu")
    summary = predict_files(predictor, source, folder / "out")
    assert not summary.problems
    return summary.output


def test_segmentation(tiny: Path, segmentation_task: TaskConfig, tmp_path: Path) -> None:
    task = for_real(segmentation_task, steps=120)
    raw = tiny / "raw" / task.name
    outputs = [run_job(task, raw, raw / "imagesTr", tmp_path / name) for name in ("first", "second")]

    # twice the same, down to the written voxels
    for path in sorted(outputs[0].glob("*.nii.gz")):
        one, two = io.read_label_map(path), io.read_label_map(outputs[1] / path.name)
        np.testing.assert_array_equal(one.array, two.array)

    # the held-out cases, scored in their own space, by our evaluation and by hand
    held_out = RunFolder(tmp_path / "first" / "run").load_split().validation
    references = {name: raw / "labelsTr" / f"{name}.nii.gz" for name in held_out}
    evaluation = evaluate_segmentation(outputs[0], references, task.data.labels, bootstrap=50, seed=0)
    for value, name in task.data.labels.items():
        dice = []
        for case, reference in references.items():
            found = io.read_label_map(outputs[0] / f"{case}.nii.gz").array == value
            truth = io.read_label_map(reference).array == value
            dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        assert evaluation.scores[name]["dice"].value == pytest.approx(np.mean(dice))
        assert np.mean(dice) > 0.6
    # validation saw the same cases on the prepared grid
    score = load_checkpoint(RunFolder(tmp_path / "first" / "run").best)["score"]
    native = np.mean([evaluation.scores[name]["dice"].value for name in task.data.labels.values()])
    assert abs(score - native) < 0.1


def test_classification(tiny: Path, classification_task: TaskConfig, tmp_path: Path) -> None:
    task = for_real(classification_task, steps=30, learning_rate=1e-2)
    raw = tiny / "raw" / task.name
    outputs = [run_job(task, raw, raw / "cases.csv", tmp_path / name) for name in ("first", "second")]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()

    with (raw / "cases.csv").open(newline="") as stream:
        truth = {row["case_id"]: row["class"] for row in csv.DictReader(stream)}
    with outputs[0].open(newline="") as stream:
        found = {row["case_id"]: float(row["dark"]) for row in csv.DictReader(stream)}
    held_out = RunFolder(tmp_path / "first" / "run").load_split().validation
    patients = {name: min(int(name[-1]) // 2, 2) for name in truth}
    trained = set(RunFolder(tmp_path / "first" / "run").load_split().train)
    assert not {patients[name] for name in held_out if patients[name] < 2} & {patients[name] for name in trained}
    auc = roc_auc_score([truth[name] == "dark" for name in held_out], [found[name] for name in held_out])
    assert auc == 1.0

    evaluation = evaluate_classification(
        outputs[0],
        raw / "cases.csv",
        task.data.classes,
        case_column="case_id",
        target_column="class",
        group_column="patient_id",
        bootstrap=50,
        seed=0,
    )
    labelled = [name for name, label in truth.items() if label]
    expected = roc_auc_score([truth[name] == "dark" for name in labelled], [found[name] for name in labelled])
    assert expected in [pytest.approx(score["auc"].value) for score in evaluation.scores.values() if "auc" in score]
