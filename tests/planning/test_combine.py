"""Plans of several tasks become those of one run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medi3d.config import TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.planning.combine import combine_plans
from medi3d.planning.plan import Plan

PLANNED = {
    "train.steps": 400,
    "train.learning_rate": 3e-3,
    "train.precision": "no",
    "model.depth_plan": "symmetric",
    "train.batch_size": 2,
    "model.stages": 3,
}


def plan(name: str, **changed: object) -> Plan:
    values = PLANNED | {key.replace("__", "."): value for key, value in changed.items()}
    task = replace(load_task("hippocampus", overrides=values), name=name)
    return Plan(task, dict(values), dict.fromkeys(values, "because"), {})


def shared(task: TaskConfig) -> tuple[object, ...]:
    return task.steps, task.learning_rate, task.precision, task.model.depth_plan


def test_what_all_tasks_have_stays() -> None:
    plans = [plan("a"), plan("b", train__batch_size=7, model__stages=5)]
    assert combine_plans(plans) == plans


def test_what_differs_becomes_one_with_the_reason() -> None:
    other = {"train__steps": 1000, "train__learning_rate": 1e-3, "train__precision": "bf16"}
    combined = combine_plans([plan("a"), plan("b", **other, model__depth_plan="anisotropic", train__batch_size=7)])
    assert {shared(one.task) for one in combined} == {(1400, 1e-3, "no", "symmetric")}
    assert [one.task.batch_size for one in combined] == [2, 7]
    assert combined[1].reasons["train.steps"] == "one for all tasks: the sum of 400 (a), 1000 (b)"
    assert combined[0].chosen["train.learning_rate"] == 1e-3
    assert combined[0].reasons["train.batch_size"] == "because"


def test_what_is_not_planned_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"need one train\.schedule: cosine in a, poly in b; give --set train\.sch"):
        combine_plans([plan("a"), plan("b", train__schedule="poly")])
