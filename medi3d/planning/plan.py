"""From a prepared store and the machine to the keys that a task leaves open, each with its reason.

The order of the choices and most of their rules are nnU-Net's (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z):
the median shape gives the patch, memory limits it, the patch gives the depth of the network, and what memory is left
the batch. The numbers are in :mod:`medi3d.planning.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from medi3d.config import PLANNED_KEYS, TaskConfig
from medi3d.io.prepared import PreparedStore
from medi3d.planning.choices import CHOICES, Situation
from medi3d.planning.machine import find_machine
from medi3d.planning.shapes import measure_shapes


@dataclass(frozen=True)
class Plan:
    """What was chosen for a task.

    Attributes:
        task: the task with every key of :data:`medi3d.config.PLANNED_KEYS` set.
        chosen: dotted key → chosen value; keys that the task had set are not among them.
        reasons: dotted key of each planned key → why, one sentence.
        made_for: task, data and machine, as the plan file's header has them.
    """

    task: TaskConfig
    chosen: dict[str, Any]
    reasons: dict[str, str]
    made_for: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """Dotted key → value of every key of :data:`medi3d.config.PLANNED_KEYS`, chosen or set by the task."""
        return {key: get_key(self.task, key) for key in PLANNED_KEYS}


def plan_task(task: TaskConfig, store: PreparedStore, *, device: str = "auto", memory_bytes: int | None = None) -> Plan:
    """Choose what a task leaves open.

    Args:
        task: keys that it has set stay as they are, and the others are chosen to fit them.
        store: the prepared cases.
        device: ``auto`` takes a GPU where there is one; ``cpu`` stays on the processor.
        memory_bytes: what training may use; ``None`` takes 80 % of what is free on the training device.

    Raises:
        ConfigError: an unknown device, or not enough memory for the smallest plan.
        InputError: a store without cases.
    """
    machine = find_machine(device, memory_bytes)
    open_keys = [key for key in PLANNED_KEYS if get_key(task, key) is None]
    reasons = dict.fromkeys(PLANNED_KEYS, "set by the task or a flag")
    if open_keys:
        situation = Situation(task, measure_shapes(store, task), machine)
        for key, choose in CHOICES.items():
            if key in open_keys:
                value, reasons[key] = choose(situation)
                situation.task = set_key(situation.task, key, value)
        task = situation.task
    made_for = {
        "task": task.name,
        "data_fingerprint": store.fingerprint_hash,
        "device": machine.device,
        "memory_gb": float(f"{machine.memory_bytes / 1e9:.3g}"),
    }
    return Plan(task, {key: get_key(task, key) for key in open_keys}, reasons, made_for)


def get_key(task: TaskConfig, key: str) -> Any:
    """Return the value at a dotted key such as ``train.steps``."""
    section, _, name = key.partition(".")
    return getattr(getattr(task, section), name)


def set_key(task: TaskConfig, key: str, value: object) -> TaskConfig:
    """Return a task with another value at a dotted key."""
    section, _, name = key.partition(".")
    return replace(task, **{section: replace(getattr(task, section), **{name: value})})
