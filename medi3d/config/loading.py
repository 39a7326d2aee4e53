"""Loading tasks: YAML files and flags, merged and validated, and written back.

An unknown key, a wrong type or a bad range fails at load, naming the file and the dotted key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from medi3d.config.checks import check_consistency
from medi3d.config.schema import TaskConfig
from medi3d.errors import ConfigError
from medi3d.registry import unknown_name_message
from medi3d.types import PathLike


def list_tasks() -> dict[str, str]:
    """Return the built-in tasks: name → description."""
    return {name: task.description for name, task in _builtin_tasks().items()}


def load_task(
    name_or_path: PathLike, *, overrides: Mapping[str, object] | None = None, values: Mapping[str, object] | None = None
) -> TaskConfig:
    """Load a task by name or from a YAML file.

    Args:
        name_or_path: a built-in task's name, or the path of a ``.yaml`` file.
        overrides: dotted key → value, for example ``{"train.steps": 100}``; strings are read as YAML.
        values: a whole mapping (a run's resolved configuration) in place of the file's contents.

    Raises:
        ConfigError: no such task or file; an unknown key, a wrong type or a value out of range.

    Examples:
        >>> load_task("hippocampus", overrides={"train.steps": 7}).train.steps
        7
    """
    mapping = dict(values) if values is not None else read_yaml(task_path(name_or_path))
    for key, value in (overrides or {}).items():
        _set_dotted(mapping, key, value)
    return parse_task(mapping, where=str(name_or_path))


def parse_task(mapping: Mapping[str, object], *, where: str) -> TaskConfig:
    """Validate a mapping against the schema; ``where`` names it in messages."""
    try:
        task = _schema().validate_python(mapping)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        hint = (
            f" {_nearest_key(key)}" if first["type"] == "unexpected_keyword_argument" else f" Got: {first['input']!r}."
        )
        raise ConfigError(f"{where}: {key}: {first['msg']}.{hint}") from None
    check_consistency(task, where)
    return task


def dump_task(task: TaskConfig) -> dict[str, Any]:
    """Return the configuration as plain YAML types; :func:`parse_task` takes it back."""
    plain: dict[str, Any] = _schema().dump_python(task, mode="json")
    plain["data"]["labels"] = {int(value): name for value, name in task.data.labels.items()}
    return plain


@lru_cache(maxsize=1)
def _schema() -> TypeAdapter[TaskConfig]:
    """Return the validator, made once: making it takes 10 ms, more than preparing a small case."""
    return TypeAdapter(TaskConfig)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a YAML mapping of configuration keys, got {type(content).__name__}")
    return content


def task_path(name_or_path: PathLike) -> Path:
    """Return the YAML file of a task's name, or the path itself where a path is given."""
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        path = Path(text)
        if not path.is_file():
            raise ConfigError(f"{path}: no such task file; `medi3d tasks` lists the built-in tasks")
        return path
    path = Path(str(resources.files("medi3d.configs"))) / f"{text}.yaml"
    if not path.is_file():
        raise ConfigError(unknown_name_message("task", text, _builtin_names()) + " (or the path of a .yaml file)")
    return path


def _builtin_names() -> list[str]:
    folder = Path(str(resources.files("medi3d.configs")))
    return sorted(path.stem for path in folder.glob("*.yaml"))


@lru_cache(maxsize=1)
def _builtin_tasks() -> dict[str, TaskConfig]:
    return {name: load_task(name) for name in _builtin_names()}


def _set_dotted(mapping: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    node = mapping
    for parent in parents:
        child = node.get(parent)
        node[parent] = dict(child) if isinstance(child, dict) else {}
        node = node[parent]
    try:
        node[last] = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise ConfigError(f"{dotted}: {value!r} is not a YAML value") from None


def flatten_keys(mapping: Mapping[str, object], *, where: str) -> dict[str, object]:
    """Turn nested sections into dotted keys, as ``overrides`` of :func:`load_task` takes them.

    Args:
        mapping: sections of a task, such as ``{"train": {"steps": 100}}``.
        where: names it in messages.

    Raises:
        ConfigError: a key that the schema does not know, or a section that is no mapping.

    Examples:
        >>> flatten_keys({"train": {"steps": 100, "augment": {"gamma": 0.2}}}, where="plan")
        {'train.steps': 100, 'train.augment.gamma': 0.2}
    """
    return dict(_walk_keys(mapping, where=where))


def _walk_keys(mapping: Mapping[str, object], *, where: str, prefix: str = "") -> Iterator[tuple[str, object]]:
    known = _all_keys()
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if key not in known:
            raise ConfigError(f"{where}: {key}: no such key. {_nearest_key(key)}")
        if not any(other.startswith(f"{key}.") for other in known):
            yield key, value
        elif isinstance(value, Mapping):
            yield from _walk_keys(value, where=where, prefix=f"{key}.")
        else:
            raise ConfigError(f"{where}: {key}: expected a mapping of keys, got {value!r}")


def _all_keys(schema: type = TaskConfig, prefix: str = "") -> list[str]:
    keys = []
    for entry in dataclasses.fields(schema):
        default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else None
        key = f"{prefix}{entry.name}"
        keys += [key, *(_all_keys(type(default), f"{key}.") if dataclasses.is_dataclass(default) else [])]
    return keys


def _nearest_key(key: str) -> str:
    section = key.rpartition(".")[0]
    siblings = [known for known in _all_keys() if known.rpartition(".")[0] == section]
    return unknown_name_message("key", key, siblings).partition("; ")[2] or f"Known: {', '.join(siblings)}"
