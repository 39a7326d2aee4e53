from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from medi3d import io
from medi3d.config import ColumnsConfig, TaskConfig, dump_task
from medi3d.errors import ConfigError, InputError, WeightsError
from medi3d.export import export_run
from medi3d.infer import predictor as predictor_module
from medi3d.infer.batch import predict_files
from medi3d.infer.predictor import Predictor, load_model
from medi3d.infer.restore import restore_labels
from medi3d.infer.windows import predict_logits, predict_with_classes
from medi3d.models import create_model
from medi3d.preprocess import prepare_image
from medi3d.runs.folder import RunFolder
from medi3d.volume import Volume


@pytest.fixture
def volume(tiny: Path) -> Volume:
    return io.read_volume(tiny / "raw" / "tiny_segmentation" / "imagesTr" / "case_2.nii.gz")


def test_the_label_map_lies_on_the_native_grid(segmentation_runs: tuple[Path, Path], volume: Volume) -> None:
    found = Predictor(segmentation_runs[:1], device="cpu").predict_labels(volume)
    assert found.grid.is_close(volume.grid)
    assert set(np.unique(found.array)) <= {0, 1, 2}


def test_prediction_is_the_pipeline_by_hand(segmentation_runs: tuple[Path, Path], volume: Volume) -> None:
    folder = RunFolder(segmentation_runs[0])
    task = folder.load_config()
    prepared, record = prepare_image(volume, task)
    logits = predict_logits(load_model(task, folder.last), torch.tensor(prepared.array), task)
    expected = restore_labels(torch.softmax(logits, 0), record)
    found = Predictor(segmentation_runs[:1], checkpoint="last").predict_labels(volume)
    np.testing.assert_array_equal(found.array, expected.array)


def test_probabilities_of_chosen_labels_lie_on_the_native_grid(
    segmentation_runs: tuple[Path, Path], volume: Volume
) -> None:
    both = Predictor(segmentation_runs, device="cpu")
    plain, found = both.predict(volume), both.predict(volume, probabilities=(0, 2, 1))
    assert plain.probabilities is None
    assert plain.label is not None
    assert found.label is not None
    assert found.probabilities is not None
    np.testing.assert_array_equal(found.label.array, plain.label.array)
    assert found.probabilities.array.shape == (3, *volume.shape)
    np.testing.assert_array_equal(found.probabilities.affine, volume.affine)
    np.testing.assert_allclose(found.probabilities.array.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(np.array([0, 2, 1])[found.probabilities.array.argmax(0)], found.label.array[0])
    assert set(found.seconds) == {"prepare", "network", "restore"}
    assert min(found.seconds.values()) > 0
    with pytest.raises(
        ConfigError, match=r"no label 3 to give probabilities of; its labels are 1 \(bright\), 2 \(dark\)"
    ):
        both.predict(volume, probabilities=(3,))


def test_little_memory_changes_nothing_but_where_planes_lie(
    segmentation_runs: tuple[Path, Path], volume: Volume, tmp_path: Path
) -> None:
    plenty = Predictor(segmentation_runs, device="cpu").predict_labels(volume)
    little = Predictor(segmentation_runs, device="cpu", memory_bytes=1, scratch=tmp_path).predict_labels(volume)
    np.testing.assert_array_equal(little.array, plenty.array)


def test_how_windows_are_predicted_can_be_changed_and_nothing_else(
    segmentation_runs: tuple[Path, Path], volume: Volume
) -> None:
    changed = Predictor(segmentation_runs, device="cpu", overrides={"infer.mirror": True, "infer.precision": "bf16"})
    assert changed.task.infer.mirror
    assert changed.task.infer.precision == "bf16"
    assert changed.predict_labels(volume).shape == volume.shape
    with pytest.raises(ConfigError, match=r"train\.steps: a trained run keeps it; only keys of infer can be set"):
        Predictor(segmentation_runs, overrides={"train.steps": 3})
    with pytest.raises(ConfigError, match=r"infer\.overlap: .* less than 1"):
        Predictor(segmentation_runs, overrides={"infer.overlap": 1.5})


def test_a_model_file_that_is_none_is_named(segmentation_runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(segmentation_runs[0], run)
    best = run / "checkpoints" / "best.pt"
    best.write_bytes(b"no weights at all, " * 99)
    with pytest.raises(WeightsError, match=r"best\.pt: not a readable checkpoint"):
        Predictor([run])
    torch.save([1, 2], best)
    with pytest.raises(WeightsError, match=r"best\.pt: not a checkpoint of a medi3d run"):
        Predictor([run])
    exported = export_run(segmentation_runs[0], tmp_path / "shared")
    (exported / "model.safetensors").write_bytes(b"\x07 no tensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a readable weights file"):
        Predictor([exported])
    with pytest.raises(InputError, match=r"best\.pt: a file; give the folder of its run, the one with config\.yaml"):
        Predictor([best])


def test_probabilities_of_runs_are_averaged(classification_runs: tuple[Path, Path], tiny: Path) -> None:
    image = io.read_volume(tiny / "raw" / "tiny_classification" / "images" / "nodule_3.nii.gz")
    center = tuple(image.grid.index_to_world([4, 9, 6]))
    one, two = (Predictor([run]).predict_classes(image, center_mm=center) for run in classification_runs)
    both = Predictor(classification_runs).predict_classes(image, center_mm=center)
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-5)
    assert both.sum() == pytest.approx(1)
    assert not np.allclose(one, two)


def test_segmentation_averages_probabilities_and_not_labels(
    segmentation_runs: tuple[Path, Path], volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sure run outvotes an unsure one."""

    class Always(nn.Module):
        def __init__(self, *logits: float) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits[:, None, None, None].expand(len(x), 3, *x.shape[2:])

    networks = [Always(0.0, 0.2, 0.0), Always(0.0, 0.0, 9.0)]
    monkeypatch.setattr(predictor_module, "load_model", lambda task, checkpoint: networks.pop(0).eval())
    assert (Predictor(segmentation_runs, device="cpu").predict_labels(volume).array == 2).all()


class TwoHeads(nn.Module):
    """Stands for a network that tells labels and classes, each by one number."""

    def __init__(self, label: float, classes: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        self.label = nn.Parameter(torch.tensor(label))
        self.classes = nn.Parameter(torch.tensor(classes))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x * 0, x * 0 + self.label, x * 0 - 9], 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classes.expand(len(x), 2)


@pytest.fixture
def two_task_runs(
    segmentation_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """Runs of a segmentation task with classes; their networks are made up."""
    networks = [TwoHeads(0.2, (0.0, 1.0)), TwoHeads(-9.0, (3.0, 1.0))]
    columns = ColumnsConfig(label="mask", target="class")
    for run, name in zip(segmentation_runs, ("one", "two"), strict=True):
        shutil.copytree(run, tmp_path / name)
        task = RunFolder(run).load_config()
        data = replace(task.data, layout="csv", columns=columns, classes=("benign", "malignant"))
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(dump_task(replace(task, data=data))))
    monkeypatch.setattr(predictor_module, "load_model", lambda task, checkpoint: networks.pop(0).eval())
    return tmp_path / "one", tmp_path / "two"


def test_a_task_of_both_kinds_gives_labels_and_classes(two_task_runs: tuple[Path, Path], volume: Volume) -> None:
    both = Predictor(two_task_runs, device="cpu")
    label, classes, *_ = both.predict(volume)
    assert label is not None
    assert classes is not None
    assert not label.array.any()  # a sure no outvotes an unsure yes
    expected = (torch.softmax(torch.tensor([0.0, 1.0]), 0) + torch.softmax(torch.tensor([3.0, 1.0]), 0)) / 2
    np.testing.assert_allclose(classes, expected.numpy(), rtol=1e-5)
    first = Predictor.holding_out(both, min(RunFolder(two_task_runs[0]).load_split().validation))
    assert first is not None
    assert (first.predict_labels(volume).array == 1).all()
    np.testing.assert_allclose(first.predict_classes(volume), torch.softmax(torch.tensor([0.0, 1.0]), 0), rtol=1e-5)


def test_label_maps_and_the_table_of_classes_lie_side_by_side(
    two_task_runs: tuple[Path, Path], tiny: Path, tmp_path: Path
) -> None:
    source = tiny / "raw" / "tiny_segmentation" / "imagesTr"
    summary = predict_files(Predictor(two_task_runs, device="cpu"), source, tmp_path / "out")
    assert summary.output == tmp_path / "out"
    cases = [f"case_{number}" for number in range(6)]
    assert summary.predicted == cases
    assert sorted(path.name for path in summary.output.glob("[!.]*")) == [
        *(f"{case}.nii.gz" for case in cases), "predictions.csv",
    ]  # fmt: skip
    with (summary.output / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case_id"] for row in rows] == cases
    for row in rows:
        assert float(row["benign"]) + float(row["malignant"]) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == "benign"


def test_the_network_of_a_task_answers_with_both_heads(segmentation_task: TaskConfig) -> None:
    """One window over the volume: what prediction gives is what each head gives."""
    columns = ColumnsConfig(label="mask", target="class")
    data = replace(segmentation_task.data, layout="csv", columns=columns, classes=("a", "b", "c"))
    task = replace(segmentation_task, data=data)
    torch.manual_seed(0)
    model = create_model(task).eval()
    image = torch.randn(1, *task.patch_size)
    labels, classes = predict_with_classes(model, image, task)
    with torch.inference_mode():
        torch.testing.assert_close(labels, model(image[None])[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classes, model.classify(image[None])[0], rtol=1e-4, atol=1e-5)
    assert classes.shape == (3,)


def test_what_a_task_has_not_is_not_predicted(
    segmentation_runs: tuple[Path, Path], classification_runs: tuple[Path, Path], volume: Volume
) -> None:
    with pytest.raises(ConfigError, match=r"tiny_segmentation has no data\.classes to predict"):
        Predictor(segmentation_runs[:1]).predict_classes(volume)
    with pytest.raises(ConfigError, match="tiny_classification is a classification; it has classes to predict, and no"):
        Predictor(classification_runs[:1]).predict_labels(
            volume, center_mm=tuple(volume.grid.index_to_world([4, 9, 6]))
        )


def test_runs_that_tell_regions_give_labels(
    segmentation_runs: tuple[Path, Path], volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run is very sure of the inner region, two are not of it: their posteriors are averaged, not their logits."""
    run = tmp_path / "run"
    shutil.copytree(segmentation_runs[0], run)
    task = RunFolder(run).load_config()
    task = replace(task, data=replace(task.data, regions={"whole": (1, 2), "inner": (2,)}))
    (run / "config.yaml").write_text(yaml.safe_dump(dump_task(task), sort_keys=False))  # outputs go by their order

    class Regions(TwoHeads):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x * 0 + 6, x * 0 + self.label], 1)

    networks = [Regions(9.0), Regions(-3.0), Regions(-3.0)]
    monkeypatch.setattr(predictor_module, "load_model", lambda task, checkpoint: networks.pop(0).eval())
    both = Predictor([run, run, run], device="cpu")
    assert (both.predict_labels(volume).array == 1).all()
    labels, _ = both.predict_prepared(torch.zeros(1, 4, 5, 6))
    assert labels is not None
    logits = torch.tensor([[0.0, 6.0, 15.0], [0.0, 6.0, 3.0], [0.0, 6.0, 3.0]])
    torch.testing.assert_close(labels[:, 0, 0, 0], torch.softmax(logits, 1).mean(0))


def test_only_the_runs_that_held_a_case_out(segmentation_runs: tuple[Path, Path]) -> None:
    both = Predictor(segmentation_runs)
    splits = [set(RunFolder(run).load_split().validation) for run in segmentation_runs]
    assert splits[0]
    assert not splits[0] & splits[1]
    held = both.holding_out(min(splits[1]))
    assert held is not None
    assert [member.held_out for member in held.members] == [frozenset(splits[1])]
    assert len(both.members) == 2
    third = {f"case_{n}" for n in range(6)} - splits[0] - splits[1]
    assert both.holding_out(min(third)) is None


def test_a_wrong_number_of_channels_is_refused(segmentation_runs: tuple[Path, Path], volume: Volume) -> None:
    two = Volume(np.repeat(volume.array, 2, axis=0), volume.affine)
    with pytest.raises(InputError, match=r"the input has 2 channels; task tiny_segmentation expects 1 \(MR\)"):
        Predictor(segmentation_runs[:1]).predict_labels(two)


def test_runs_of_different_tasks_are_not_averaged(
    segmentation_runs: tuple[Path, Path], classification_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"another task or preprocessing than .*; average runs of one task only"):
        Predictor([segmentation_runs[0], classification_runs[0]])
    shutil.copytree(segmentation_runs[0], tmp_path / "run")
    task = RunFolder(tmp_path / "run").load_config()
    other = replace(task, preprocess=replace(task.preprocess, spacing_mm=(3.0, 2.0, 2.0)))
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(dump_task(other)))
    with pytest.raises(ConfigError, match="another task or preprocessing"):
        Predictor([segmentation_runs[0], tmp_path / "run"])


def test_a_folder_without_a_run_and_missing_or_wrong_weights_are_named(
    segmentation_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no run here \(config\.yaml is missing\)"):
        Predictor([tmp_path])
    run = tmp_path / "run"
    shutil.copytree(segmentation_runs[0], run)
    (run / "checkpoints" / "best.pt").unlink()
    with pytest.raises(WeightsError, match=r"best\.pt: no such checkpoint"):
        Predictor([run])
    assert Predictor([run], checkpoint="last").task.name == "tiny_segmentation"
    task = RunFolder(run).load_config()
    other = replace(task, model=replace(task.model, decoder_channels=(5, 7)))
    (run / "config.yaml").write_text(yaml.safe_dump(dump_task(other)))
    with pytest.raises(WeightsError, match=r"last\.pt: of another architecture than the run's"):
        Predictor([run], checkpoint="last")


def test_no_pretrained_weights_are_looked_for(
    segmentation_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(segmentation_runs[0], tmp_path / "run")
    task = RunFolder(tmp_path / "run").load_config()
    pretrained = replace(task, model=replace(task.model, init="imagenet-inflated", weights="gone.pth"))
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(dump_task(pretrained)))
    assert Predictor([tmp_path / "run"]).task.model.init == "imagenet-inflated"


def test_an_exported_run_predicts_like_the_run_itself(
    segmentation_runs: tuple[Path, Path], segmentation_task: TaskConfig, volume: Volume, tmp_path: Path
) -> None:
    exported = export_run(segmentation_runs[0], tmp_path / "shared")
    found = Predictor([exported]).predict_labels(volume)
    np.testing.assert_array_equal(found.array, Predictor(segmentation_runs[:1]).predict_labels(volume).array)
    assert Predictor([exported]).holding_out("case_0") is None
    init = replace(segmentation_task.model, init=str(exported / "model.safetensors"))
    encoder = create_model(replace(segmentation_task, model=init)).encoder
    best = load_model(segmentation_task, RunFolder(segmentation_runs[0]).best).encoder
    assert all(torch.equal(tensor, best.state_dict()[key]) for key, tensor in encoder.state_dict().items())
    with pytest.raises(InputError, match="shared: not empty; give a new folder"):
        export_run(segmentation_runs[0], tmp_path / "shared")


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(segmentation_runs: tuple[Path, Path], device: str) -> None:
    with pytest.raises(ConfigError, match=rf"--device {device}: not to be had here .*; give auto or cpu"):
        Predictor(segmentation_runs[:1], device=device)
