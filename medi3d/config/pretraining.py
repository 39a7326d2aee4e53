"""A pretraining: several tasks, and how they are mixed. What concerns the encoder or the run is one for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from medi3d.config.loading import dump_task
from medi3d.config.schema import ModelConfig, TaskConfig
from medi3d.config.training import TrainConfig
from medi3d.config.values import Positive
from medi3d.errors import ConfigError
from medi3d.registry import unknown_name_message

_OF_A_TASK = {
    "model": ("stages", "decoder", "decoder_channels", "dropout", "deep_supervision"),
    "train": (
        *("patch_size", "batch_size", "foreground_fraction", "case_sampling", "augment", "folds", "cases"),
        *("loss", "class_weights", "label_smoothing", "focal_gamma", "tversky_beta", "boundary_weight"),
        "classes_weight",
    ),
}
"""Section → keys that each task has for itself."""

SHARED_KEYS = tuple(
    f"{section}.{entry.name}"
    for section, schema in (("model", ModelConfig), ("train", TrainConfig))
    for entry in fields(schema)
    if entry.name not in _OF_A_TASK[section]
)
"""Dotted keys that must be the same in all tasks once they are planned: the encoder, the optimiser, the schedule."""

Sampling = Literal["balanced", "proportional"] | dict[str, Positive]


@dataclass(frozen=True)
class PretrainConfig:
    """Tasks that are trained together on one encoder.

    Raises:
        ConfigError: no task, one twice, or a name of none of them.
    """

    tasks: tuple[TaskConfig, ...]
    sampling: Sampling = "balanced"
    """How often a batch is of a task: each as often, as its number of training cases says, or by weights of one's own,
    one for each task."""
    loss_weights: dict[str, Positive] = field(default_factory=dict)
    """Factor of a task's loss; 1 for those that are not named."""

    def __post_init__(self) -> None:
        """Check what no schema can know, and what it can, as this is made from flags and files alike."""
        for key, schema in _SCHEMA.items():
            value = getattr(self, key)
            try:
                schema.validate_python(value)
            except ValidationError:
                raise ConfigError(f"{key}: expected {_EXPECTED[key]}; got {value!r}") from None
        names = [task.name for task in self.tasks]
        if not names:
            raise ConfigError("tasks: name one at least")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"tasks: {twice} is named twice; two tasks on the same data need names of their own")
        for key, weights in (("sampling", self.sampling), ("loss_weights", self.loss_weights)):
            if isinstance(weights, str):
                continue
            unknown = next((name for name in weights if name not in names), None)
            if unknown is not None:
                raise ConfigError(f"{key}: {unknown_name_message('task', unknown, names)}")
        if not isinstance(self.sampling, str):
            missing = [name for name in names if name not in self.sampling]
            if missing:
                raise ConfigError(f"sampling: no weight for {', '.join(missing)}; give one for each task")

    def order_channels(self) -> list[int]:
        """Return the numbers of channels that tasks have: first that of most tasks, of equals the smaller one."""
        counts = Counter(task.in_channels for task in self.tasks)
        return sorted(counts, key=lambda number: (-counts[number], number))

    def measure_shares(self, cases: Mapping[str, int]) -> dict[str, float]:
        """Return each task's share of the batches; only the proportions of the numbers count.

        Args:
            cases: number of training cases of each task.
        """
        if isinstance(self.sampling, dict):
            return {task.name: float(self.sampling[task.name]) for task in self.tasks}
        return {task.name: float(cases[task.name]) if self.sampling == "proportional" else 1.0 for task in self.tasks}


_SCHEMA: dict[str, TypeAdapter[Any]] = {
    "sampling": TypeAdapter(Sampling),
    "loss_weights": TypeAdapter(dict[str, Positive]),
}
_EXPECTED = {
    "sampling": "balanced, proportional, or a number above 0 for each task",
    "loss_weights": "a number above 0 a task",
}


def parse_pretraining(values: Mapping[str, Any], tasks: Sequence[TaskConfig], *, where: str) -> PretrainConfig:
    """Put tasks together as a mapping says.

    Args:
        values: ``sampling`` and ``loss_weights``, or neither.
        tasks: the tasks.
        where: names the mapping in messages.

    Raises:
        ConfigError: an unknown key, a wrong type, a bad range, or what :class:`PretrainConfig` refuses.
    """
    unknown = next((key for key in values if key not in _SCHEMA), None)
    if unknown is not None:
        raise ConfigError(f"{where}: {unknown_name_message('key', unknown, list(_SCHEMA))}")
    try:
        return PretrainConfig(tuple(tasks), **values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def dump_mixture(config: PretrainConfig) -> dict[str, Any]:
    """Return the tasks' names and how they are mixed, as plain YAML types."""
    return {
        "tasks": [task.name for task in config.tasks],
        "sampling": config.sampling,
        "loss_weights": dict(config.loss_weights),
    }


def find_disagreements(tasks: Sequence[TaskConfig], *, open_keys: Sequence[str] = ()) -> Iterator[str]:
    """Yield the shared keys in which tasks differ, with what each one has.

    Args:
        tasks: the tasks.
        open_keys: keys that are not looked at.
    """
    values = [dump_task(task) for task in tasks]
    for key in SHARED_KEYS:
        section, _, name = key.partition(".")
        found = [one[section][name] for one in values]
        if key not in open_keys and any(value != found[0] for value in found):
            yield f"{key}: " + ", ".join(f"{value} in {task.name}" for value, task in zip(found, tasks, strict=True))
