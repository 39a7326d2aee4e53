"""What one key cannot know of another: checked after each key by itself is right."""

from __future__ import annotations

from medi3d.config.schema import TaskConfig
from medi3d.errors import ConfigError


def check_consistency(task: TaskConfig, where: str) -> None:
    """Check what one field cannot know of another."""
    labels = sorted(task.data.labels)
    problems = {
        "data.labels: give the foreground values 1, 2, … with a name each": task.kind == "segmentation"
        and (not labels or labels != list(range(1, len(labels) + 1))),
        "data.classes: give at least two class names": task.kind == "classification" and len(task.data.classes) < 2,
        "data.columns.target: name the column that holds the class": task.kind == "classification"
        and (task.data.layout != "csv" or task.data.columns.target is None),
        "preprocess.normalize: give one entry, or one for each of data.channels": len(task.preprocess.normalize)
        not in (1, task.in_channels),
        "data.quantities: give one entry, or one for each of data.channels": len(task.data.quantities)
        not in (1, task.in_channels),
        "preprocess.clip_percentiles: the lower end must be below the upper": task.preprocess.clip_percentiles[0]
        >= task.preprocess.clip_percentiles[1],
        "train.loss: dice_ce is for segmentation; use cross_entropy": task.kind == "classification"
        and task.train.loss == "dice_ce",
        "train.class_weights: give one weight for each output": bool(task.train.class_weights)
        and len(task.train.class_weights) != task.num_classes,
        "preprocess.window_hu: the lower end must be below the upper": task.preprocess.window_hu[0]
        >= task.preprocess.window_hu[1],
        "model.decoder_channels: give one entry for each of model.stages": task.kind == "segmentation"
        and len(task.model.decoder_channels) < (task.model.stages or 0),
    }
    for message, wrong in problems.items():
        if wrong:
            raise ConfigError(f"{where}: {message}")
