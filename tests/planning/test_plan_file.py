"""The plan as a file: read back equal, readable, and refused where it does not belong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medi3d.config import PLANNED_KEYS, TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.planning import Plan, read_plan, write_plan


@pytest.fixture
def made() -> Plan:
    values = {
        "train.patch_size": (40, 56, 48),
        "train.batch_size": 2,
        "train.steps": 70,
        "train.learning_rate": 0.003,
        "model.stages": 3,
        "model.depth_plan": "symmetric",
        "train.precision": "no",
        "train.augment.gamma": 0.25,
        "train.budget": "10m",
    }
    task: TaskConfig = load_task("hippocampus", overrides=values)
    reasons = {key: f"because of {key}: " + "numbers, " * 20 for key in PLANNED_KEYS}
    return Plan(
        task, {"train.steps": 70}, reasons, {"task": "hippocampus", "data_fingerprint": "0e1", "memory_gb": 8.0}
    )


def test_a_plan_is_read_back_equal(made: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(made, path, flags=["train.augment.gamma", "train.budget", "train.steps"])
    keys = read_plan(path, task="hippocampus")
    assert set(keys) == {*PLANNED_KEYS, "train.augment.gamma", "train.budget"}
    assert load_task("hippocampus", overrides=keys) == made.task
    assert read_plan(path) == keys


def test_each_key_stands_under_its_reason(made: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(made, path, flags=["train.augment.gamma"])
    lines = path.read_text().splitlines()
    assert max(map(len, lines)) <= 120
    for key in PLANNED_KEYS:
        at = next(n for n, line in enumerate(lines) if line.strip().startswith(f"{key.split('.')[1]}:"))
        above = []
        while lines[at - 1].strip().startswith("#"):
            at -= 1
            above.insert(0, lines[at].strip(" #"))
        assert " ".join(above) == made.reasons[key].strip()
    assert "  patch_size: [40, 56, 48]" in lines
    content = yaml.safe_load(path.read_text())
    assert (content["task"], content["data_fingerprint"], content["memory_gb"]) == ("hippocampus", "0e1", 8.0)
    assert content["train"]["augment"] == {"gamma": 0.25}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 5}", "no plan \\(it names no task\\)"),
        ("task: lung_nodule\ntrain: {steps: 5}", "a plan for the task 'lung_nodule', not for 'hippocampus'"),
        ("task: hippocampus\ntrain: {stepz: 5}", "train.stepz: no such key.*did you mean 'train.steps'"),
        ("task: hippocampus\ntarin: {steps: 5}", "tarin: no such key"),
        ("task: hippocampus\ntrain: 5", "train: expected a mapping of keys, got 5"),
        ("task: hippocampus\ntrain: {augment: {gama: 1}}", "train.augment.gama: no such key"),
        ("- 5", "expected a YAML mapping"),
    ],
)
def test_what_is_no_plan_of_the_task_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"plan.yaml: {message}"):
        read_plan(path, task="hippocampus")
