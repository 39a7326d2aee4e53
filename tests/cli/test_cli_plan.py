"""``medi3d plan``: the table, the file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from medi3d.cli.plan import plan
from medi3d.config import PLANNED_KEYS
from medi3d.errors import ConfigError, InputError
from medi3d.planning import read_plan

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(plan)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture
def open_task(tiny: Path, tmp_path: Path) -> Path:
    """The tiny task with its patch, batch, steps and stages left to the plan."""
    values = yaml.safe_load((tiny / "tiny_segmentation.yaml").read_text())
    values["train"] = {"folds": 3}
    del values["model"]["stages"]
    path = tmp_path / "tiny_segmentation.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def rows_of(output: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def test_the_plan_is_shown_written_and_read_back(open_task: Path, tiny: Path, tmp_path: Path) -> None:
    store, file = tiny / "prepared" / "tiny_segmentation", tmp_path / "plan.yaml"
    flags = ["--budget", "3m", "--set", "train.augment.gamma=0.1", "--set", "train.batch_size=3"]
    result = run(
        "--task", open_task, "--prepared", store, "--device", "cpu", "--memory", "2G", "--output", file, *flags
    )
    assert result.exit_code == 0
    rows = rows_of(result.output)
    assert list(rows) == list(PLANNED_KEYS)
    # 10 × 16 × 14 voxels of 2.5 × 1.6 × 1.2 mm, resampled to 2 mm: 13 × 13 × 8 or so
    assert rows["train.patch_size"][0] == "16 × 16 × 16"
    assert rows["train.batch_size"] == ["3", "set by the task or a flag"]
    assert rows["train.steps"][1].startswith("not used: train.budget 3m ends the run")
    assert " of the 2 GB that training may use on this CPU" in result.output
    keys = read_plan(file, task="tiny_segmentation")
    assert set(keys) == {*PLANNED_KEYS, "train.budget", "train.augment.gamma"}
    assert (keys["train.patch_size"], keys["train.batch_size"]) == ([16, 16, 16], 3)
    assert yaml.safe_load(file.read_text())["memory_gb"] == 2.0


def test_what_is_wrong_is_named(open_task: Path, tiny: Path, tmp_path: Path) -> None:
    store = tiny / "prepared" / "tiny_segmentation"
    with pytest.raises(InputError, match="no finished prepared data here"):
        run("--task", open_task, "--prepared", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--memory much: give an amount such as 8G"):
        run("--task", open_task, "--prepared", store, "--memory", "much")
    with pytest.raises(ConfigError, match="'soon' is no duration"):
        run("--task", open_task, "--prepared", store, "--budget", "soon")
    with pytest.raises(ConfigError, match=r"training may use 0\.0001 GB"):
        run("--task", open_task, "--prepared", store, "--memory", "100K")
    with pytest.raises(ConfigError, match="unknown device 'tpu'"):
        run("--task", open_task, "--prepared", store, "--device", "tpu")
