"""From a prepared store and the machine to the keys that a task leaves open."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from medi3d.config import PLANNED_KEYS, TaskConfig
from medi3d.io.prepared import PreparedStore

_FIXED: dict[str, Any] = {
    "train.patch_size": (48, 64, 48),
    "train.batch_size": 2,
    "train.steps": 1000,
    "train.learning_rate": 3e-3,
    "model.stages": 5,
    "model.depth_plan": "symmetric",
}


@dataclass(frozen=True)
class Plan:
    """What was chosen for a task.

    Attributes:
        task: the task with every key of :data:`medi3d.config.PLANNED_KEYS` set.
        chosen: dotted key → chosen value; keys that the task had set are not among them.
        reasons: dotted key → why, one sentence.
        made_for: task, data and machine, as the plan file's header has them.
    """

    task: TaskConfig
    chosen: dict[str, Any]
    reasons: dict[str, str]
    made_for: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """Dotted key → value of every key of :data:`medi3d.config.PLANNED_KEYS`, chosen or set by the task."""
        return {key: _get(self.task, key) for key in PLANNED_KEYS}


def _get(task: TaskConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(task, section), name)


def plan_task(
    task: TaskConfig, store: PreparedStore, *, device: str = "auto", memory_bytes: int | None = None
) -> Plan:
    """Choose what a task leaves open."""
    chosen = {
        key: _FIXED[key] for key in PLANNED_KEYS if getattr(getattr(task, key.split(".")[0]), key.split(".")[1]) is None
    }
    sections = {
        name: replace(
            getattr(task, name), **{key.split(".")[1]: value for key, value in chosen.items() if key.startswith(name)}
        )
        for name in ("model", "train")
    }
    reasons = {key: "fixed" if key in chosen else "set by the task" for key in PLANNED_KEYS}
    made_for = {"task": task.name, "data_fingerprint": store.fingerprint_hash}
    return Plan(replace(task, **sections), chosen, reasons, made_for)
