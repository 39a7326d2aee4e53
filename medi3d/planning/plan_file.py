"""The plan as a file: YAML that a person reads, each chosen key under the reason for it, and that ``--plan`` takes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from medi3d.config import dump_task, flatten_keys, read_yaml
from medi3d.errors import ConfigError
from medi3d.io import atomic
from medi3d.planning.plan import Plan
from medi3d.types import PathLike

_HEADER = ("task", "data_fingerprint", "device", "memory_gb")
"""What a plan was made for; the rest of the file is sections of a task."""

_GIVEN = "given by a flag"
_WIDTH = 110


def write_plan(plan: Plan, path: PathLike, *, flags: Iterable[str] = ()) -> None:
    """Write a plan to a YAML file; :func:`read_plan` takes it back.

    Args:
        plan: of :func:`plan_task`.
        path: the file; one that is there is replaced.
        flags: dotted keys that the user has set beside the task, and that belong to the plan.
    """
    name, task = plan.task.name, dump_task(plan.task)
    lines = [
        f"# Plan of medi3d for the task {name}; `medi3d train --task {name} --plan FILE` trains by it.",
        "# Any key of a task may be added or changed here; flags of `medi3d train` go over it.",
        *yaml.safe_dump(plan.made_for, sort_keys=False).splitlines(),
    ]
    reasons = {key: _GIVEN for key in flags} | plan.reasons
    open_sections: list[str] = []
    for key, reason in sorted(reasons.items(), key=lambda row: row[0].split(".")[:-1]):
        *sections, last = key.split(".")
        shared = _count_shared(sections, open_sections)
        lines += ["  " * depth + f"{sections[depth]}:" for depth in range(shared, len(sections))]
        open_sections, indent = sections, "  " * len(sections)
        lines += textwrap.wrap(reason, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        value = reduce(getitem, key.split("."), task)
        lines.append(f"{indent}{last}: {_to_yaml(value)}")
    atomic.write_bytes(Path(path), ("\n".join(lines) + "\n").encode())


def read_plan(path: PathLike, *, task: str | None = None) -> dict[str, Any]:
    """Read a plan's keys, as ``overrides`` of :func:`medi3d.config.load_task` takes them.

    Args:
        path: a file that :func:`write_plan` wrote, edited or not.
        task: name of the task that it must have been made for; ``None`` takes any.

    Returns:
        Dotted key → value.

    Raises:
        ConfigError: no plan, a plan for another task, or a key that tasks do not have.
    """
    content = read_yaml(Path(path))
    if "task" not in content:
        raise ConfigError(f"{path}: no plan (it names no task); `medi3d plan --task NAME --output FILE` writes one")
    if task is not None and content["task"] != task:
        raise ConfigError(
            f"{path}: a plan for the task {content['task']!r}, not for {task!r}; make one with `medi3d plan`"
        )
    return flatten_keys({key: value for key, value in content.items() if key not in _HEADER}, where=str(path))


def _count_shared(first: list[str], second: list[str]) -> int:
    """Return how many entries two lists have in common from their beginning."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _to_yaml(value: object) -> str:
    """Write a value on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("...").rstrip()
