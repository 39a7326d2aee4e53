"""Plans of several tasks that are trained together: what concerns all of them becomes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from medi3d.config import PLANNED_KEYS, SHARED_KEYS, find_disagreements
from medi3d.errors import ConfigError
from medi3d.planning.plan import Plan, get_key, set_key

_ONE_OF: dict[str, tuple[Callable[[Sequence[Any]], Any], str]] = {
    "train.steps": (sum, "the sum"),
    "train.learning_rate": (min, "the smallest"),
    "model.depth_plan": (lambda _: "symmetric", "that of voxels of any shape, as the tasks'"),
    "train.precision": (lambda _: "no", "float32, as the tasks'"),
}
"""Planned key that all tasks share → the one value for all of theirs, and what it is called."""


def combine_plans(plans: Sequence[Plan]) -> list[Plan]:
    """Give tasks that are trained together one value for each key that they must share.

    A value that all tasks have stays. Where planned keys differ, as steps do, :data:`_ONE_OF` says what they become.

    Args:
        plans: one a task.

    Returns:
        The plans, with the tasks that are trained.

    Raises:
        ConfigError: tasks differ in a key that is not planned.
    """
    differing = next(find_disagreements([plan.task for plan in plans], open_keys=PLANNED_KEYS), None)
    if differing is not None:
        key = differing.partition(":")[0]
        raise ConfigError(f"tasks that are trained together need one {differing}; give --set {key}=VALUE")
    combined = list(plans)
    for key in (key for key in PLANNED_KEYS if key in SHARED_KEYS):
        values = [get_key(plan.task, key) for plan in plans]
        if all(value == values[0] for value in values):
            continue
        choose, name = _ONE_OF[key]
        value = choose(values)
        told = ", ".join(f"{own} ({plan.task.name})" for own, plan in zip(values, plans, strict=True))
        reason = f"one for all tasks: {name} of {told}"
        combined = [
            replace(
                plan,
                task=set_key(plan.task, key, value),
                chosen=plan.chosen | {key: value},
                reasons=plan.reasons | {key: reason},
            )
            for plan in combined
        ]
    return combined
