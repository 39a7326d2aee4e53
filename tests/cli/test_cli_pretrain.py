"""``medi3d pretrain`` as a user types it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from medi3d.cli import main as main_module
from medi3d.runs.pretraining import PretrainingFolder

SEGMENTATION, CLASSIFICATION = "tiny_segmentation", "tiny_classification"

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def medi3d(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path) -> Command:
    """Run ``medi3d pretrain`` on the tiny tasks in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    tasks = ",".join(str(tiny / f"{name}.yaml") for name in (SEGMENTATION, CLASSIFICATION))

    def run(*arguments: object, command: str = "pretrain", tasks: str | None = tasks) -> tuple[int, str, str]:
        capsys.readouterr()
        given = ["--tasks", tasks, "--device", "cpu"] if tasks else []
        monkeypatch.setattr(sys, "argv", ["medi3d", command, *given, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main_module.run()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_a_pretraining_from_its_plan_to_a_run_that_starts_from_it(medi3d: Command, tiny: Path) -> None:
    stores = ("--prepared", tiny / "prepared")
    flags = (
        *stores,
        "--steps",
        2,
        "--set",
        "train.validations=1",
        "--sampling",
        f"{SEGMENTATION}=1,{CLASSIFICATION}=1",
    )
    code, out, _ = medi3d(*flags, "--dry-run")
    assert code == 0
    assert "segmentation" in out
    assert "50%" in out
    assert "set by the task or a flag" in out
    assert not Path("runs").exists()
    code, out, err = medi3d(*flags, "--name", "first", "--licence", "CC0-1.0")
    assert code == 0, err
    run = Path("runs/pretraining/first")
    assert f"1 channel: medi3d train --task TASK --init {run}/encoder/" in out
    assert f"{SEGMENTATION} mean Dice 0." in out
    assert f"{CLASSIFICATION} AUC" in out

    train = ("--task", tiny / f"{SEGMENTATION}.yaml", "--prepared", tiny / "prepared" / SEGMENTATION, "--device", "cpu")
    code, _, err = medi3d(*train, "--init", f"{run}/encoder/", "--steps", 1, "--name", "x", command="train", tasks=None)
    assert code == 0, err
    code, _, err = medi3d("--resume", run, tasks=None)
    assert code == 0, err
    code, _, err = medi3d("--resume", run, "--tasks", SEGMENTATION, "--steps", 9, tasks=None)
    assert code == 2
    assert "leave other flags out: steps, tasks" in err
    code, _, err = medi3d(run, "--input", tiny, "--output", "o", command="predict", tasks=None)
    assert code == 1
    assert f"a pretraining, which predicts nothing; start a run with --init {run}/encoder/" in err
    code, out, _ = medi3d(run, "--encoder", "--output", "exported", command="export", tasks=None)
    assert (code, Path("exported/card.json").is_file()) == (0, True)


def test_keys_go_for_all_tasks_or_for_one(medi3d: Command, tiny: Path) -> None:
    stores = [f"{name}={tiny / 'prepared' / name}" for name in (SEGMENTATION, CLASSIFICATION)]
    code, out, _ = medi3d(
        *(word for store in stores for word in ("--prepared", store)),
        *("--set", "train.batch_size=3", "--set", f"{CLASSIFICATION}.train.batch_size=5", "--seed", 4),
        *("--loss-weights", f"{CLASSIFICATION}=0.5", "--print-config"),
    )
    assert code == 0
    values = yaml.safe_load(out)
    sizes = [values["tasks"][name]["train"]["batch_size"] for name in (SEGMENTATION, CLASSIFICATION)]
    assert sizes == [3, 5]
    assert {task["train"]["seed"] for task in values["tasks"].values()} == {4}
    assert (values["sampling"], values["loss_weights"]) == ("balanced", {CLASSIFICATION: 0.5})
    assert {tuple(task["preprocess"]["spacing_mm"]) for task in values["tasks"].values()} == {(2.0, 2.0, 2.0)}


@pytest.mark.parametrize(
    ("tasks", "flags", "match"),
    [
        (None, (), "give --tasks NAME,NAME"),
        ("hippocampus,hipocampus", (), "unknown task 'hipocampus'; did you mean 'hippocampus'"),
        ("hippocampus,hippocampus", (), "--tasks hippocampus,hippocampus: a task is named twice"),
        ("hippocampus", ("--prepared", "a", "--prepared", "b"), "one folder of stores"),
        ("hippocampus", ("--prepared", "liver=a"), "liver is none of --tasks (hippocampus)"),
        ("hippocampus", ("--sampling", "hippocampus=much"), "write TASK=NUMBER"),
        ("hippocampus,demo", ("--sampling", "hippocampus=1"), "sampling: no weight for demo"),
        ("hippocampus", ("--sampling", "fair"), "sampling: expected balanced, proportional"),
    ],
)
def test_mistakes_are_one_line(tasks: str | None, flags: tuple[str, ...], match: str, medi3d: Command) -> None:
    code, _, err = medi3d(*flags, tasks=tasks)
    assert code == 2
    assert match in err
    assert len(err.strip().splitlines()) == 1


def test_the_record_is_read_back(medi3d: Command, tiny: Path) -> None:
    code, _, err = medi3d("--prepared", tiny / "prepared", "--steps", 1, "--set", "train.validations=1", "--name", "r")
    assert code == 0, err
    folder = PretrainingFolder(Path("runs/pretraining/r"))
    assert [task.name for task in folder.load_pretraining().tasks] == [SEGMENTATION, CLASSIFICATION]
    assert folder.record(SEGMENTATION).load_prepared() == tiny / "prepared" / SEGMENTATION
    folder.config_file.write_text(folder.config_file.read_text().replace("sampling", "smapling"))
    code, _, err = medi3d("--resume", folder.path, tasks=None)
    assert code == 2
    assert "unknown key 'smapling'; did you mean 'sampling'" in err
