"""Configuration: a task is one YAML file, validated against frozen dataclasses, which are the only home of defaults."""

from medi3d.config.loading import dump_task, flatten_keys, list_tasks, load_task, parse_task, read_yaml, task_path
from medi3d.config.pretraining import (
    SHARED_KEYS,
    PretrainConfig,
    dump_mixture,
    find_disagreements,
    parse_pretraining,
)
from medi3d.config.schema import (
    ColumnsConfig,
    DataConfig,
    EvaluateConfig,
    InferConfig,
    ModelConfig,
    PatternsConfig,
    PreprocessConfig,
    TaskConfig,
)
from medi3d.config.training import PLANNED_KEYS, AugmentConfig, TrainConfig
from medi3d.config.values import Spacing, parse_duration

__all__ = [
    "PLANNED_KEYS",
    "SHARED_KEYS",
    "AugmentConfig",
    "ColumnsConfig",
    "DataConfig",
    "EvaluateConfig",
    "InferConfig",
    "ModelConfig",
    "PatternsConfig",
    "PreprocessConfig",
    "PretrainConfig",
    "Spacing",
    "TaskConfig",
    "TrainConfig",
    "dump_mixture",
    "dump_task",
    "find_disagreements",
    "flatten_keys",
    "list_tasks",
    "load_task",
    "parse_duration",
    "parse_pretraining",
    "parse_task",
    "read_yaml",
    "task_path",
]
