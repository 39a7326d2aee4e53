from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medi3d.cli.main import app
from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.runs.folder import RunFolder

SHORT = ("--set", "train.threads=1", "--set", "train.validations=1", "--device", "cpu")


def benchmark(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["benchmark", "init", *map(str, arguments)])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.exit_code, result.output


def test_classifiers_are_compared_and_a_second_call_adds_a_seed(
    tiny: Path, classification_task: TaskConfig, tmp_path: Path
) -> None:
    task = tiny / f"{classification_task.name}.yaml"
    flags = ("--task", task, "--prepared", tiny / "prepared" / classification_task.name, "--output", tmp_path, *SHORT)
    arms = ("--inits", "random,imagenet-overshoot", "--fractions", "all", "--steps", 2)
    folder = tmp_path / classification_task.name / "inits"
    code, output = benchmark(*flags, *arms, "--seeds", 1)
    assert code == 0
    assert "imagenet-overshoot" in output
    assert (folder / "inits.png").stat().st_size > 10_000
    first = (folder / "scores.csv").read_text().splitlines()
    assert len(first) == 3

    code, _ = benchmark(*flags, *arms, "--seeds", 2)
    assert code == 0
    second = (folder / "scores.csv").read_text().splitlines()
    assert len(second) == 5
    assert second[:3] == first  # those that were there are not run again
    with (folder / "contrasts.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["seeds"] for row in rows] == ["2", "2"]
    with (folder / "cases.csv").open(newline="") as stream:
        cases = list(csv.DictReader(stream))
    assert {case["target"] for case in cases} == {"0", "1"}
    config = RunFolder(folder / "cells" / "imagenet-overshoot-all-1" / "run").load_config()
    assert (config.model.init, config.train.seed, config.steps) == ("imagenet-overshoot", 1, 2)
    assert not list(folder.glob("cells/*/run/checkpoints"))


@pytest.mark.parametrize("fractions", ["0", "8,some", "-3"])
def test_fractions_are_numbers_of_cases(
    tiny: Path, classification_task: TaskConfig, tmp_path: Path, fractions: str
) -> None:
    flags = ("--prepared", tiny / "prepared" / classification_task.name, "--output", tmp_path)
    with pytest.raises(ConfigError, match="numbers of training cases and all"):
        benchmark("--task", tiny / f"{classification_task.name}.yaml", *flags, "--fractions", fractions, "--steps", 1)
