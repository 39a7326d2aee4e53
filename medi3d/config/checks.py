"""What one key cannot know of another: checked after each key by itself is right.

A check is a row: the key at fault, what is expected there, and when that is not so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from medi3d.config.schema import TaskConfig
from medi3d.errors import ConfigError

Check: TypeAlias = tuple[str, str, Callable[[TaskConfig], bool]]
"""Dotted key, what is expected of it, and whether a task breaks it."""

_OF_VOXELS = ("dice_ce", "dice_focal", "tversky", "boundary")
"""Losses that compare shapes, and that a single class of a volume cannot have."""


def check_consistency(task: TaskConfig, where: str) -> None:
    """Check what one field cannot know of another; ``where`` names the task in messages.

    Raises:
        ConfigError: the first row of the tables below that the task breaks.
    """
    for key, expected, is_broken in (*_DATA, *_PREPROCESS, *_MODEL, *_TRAIN):
        if is_broken(task):
            raise ConfigError(f"{where}: {key}: {expected}")


def _is_segmentation(task: TaskConfig) -> bool:
    return task.kind == "segmentation"


def _is_classification(task: TaskConfig) -> bool:
    return task.kind == "classification"


def _has_classes(task: TaskConfig) -> bool:
    return _is_classification(task) or bool(task.data.classes)


def _expected_labels(task: TaskConfig) -> list[int]:
    return list(range(1, max(len(task.data.labels), 1) + 1))


def _repeats(values: Sequence[object]) -> bool:
    return len(set(values)) < len(values)


def _patterns(task: TaskConfig) -> list[tuple[bool, ...]]:
    """Return, for each label, which regions hold it."""
    return [tuple(label in members for members in task.data.regions.values()) for label in sorted(task.data.labels)]


_DATA: tuple[Check, ...] = (
    (
        "data.labels",
        "give the foreground values 1, 2, … with a name each, one at least",
        lambda task: _is_segmentation(task) and sorted(task.data.labels) != _expected_labels(task),
    ),
    ("data.labels", "give each label a name of its own", lambda task: _repeats(list(task.data.labels.values()))),
    ("data.channels", "give each channel a name of its own", lambda task: _repeats(task.data.channels)),
    ("data.channels", "name one channel at least", lambda task: not task.data.channels),
    (
        "data.classes",
        "give at least two class names",
        lambda task: _has_classes(task) and len(task.data.classes) < 2,
    ),
    ("data.classes", "give each class a name of its own", lambda task: _repeats(task.data.classes)),
    (
        "data.columns.target",
        "name the column that holds the class, and set data.layout to csv",
        lambda task: _has_classes(task) and (task.data.layout != "csv" or task.data.columns.target is None),
    ),
    (
        "data.quantities",
        "give one entry, or one for each of data.channels",
        lambda task: len(task.data.quantities) not in (1, task.in_channels),
    ),
    (
        "data.regions",
        "regions are made of labels; a classification task has none",
        lambda task: _is_classification(task) and bool(task.data.regions),
    ),
    (
        "data.regions",
        "list values of data.labels, each once a region, and one at least",
        lambda task: any(
            not members or _repeats(members) or not set(members) <= set(task.data.labels)
            for members in task.data.regions.values()
        ),
    ),
    (
        "data.regions",
        "put each of data.labels into a region at least; one outside of all would be learned as background",
        lambda task: bool(task.data.regions) and not all(any(pattern) for pattern in _patterns(task)),
    ),
    (
        "data.regions",
        "no two of data.labels may lie in the same regions; the network could not tell them apart",
        lambda task: bool(task.data.regions) and _repeats(_patterns(task)),
    ),
    (
        "data.regions",
        "name no region like one of data.labels, unless it is that label alone: their scores would have one name",
        lambda task: any(
            name in task.data.regions and task.data.regions[name] != (value,)
            for value, name in task.data.labels.items()
        ),
    ),
    (
        "data.ignore_label",
        "take a value that is none of data.labels",
        lambda task: task.data.ignore_label in task.data.labels,
    ),
    (
        "data.ignore_label",
        "voxels are annotated in segmentation tasks only; leave it out",
        lambda task: _is_classification(task) and task.data.ignore_label is not None,
    ),
)

_PREPROCESS: tuple[Check, ...] = (
    (
        "preprocess.normalize",
        "give one entry, or one for each of data.channels",
        lambda task: len(task.preprocess.normalize) not in (1, task.in_channels),
    ),
    (
        "preprocess.clip_percentiles",
        "the lower end must be below the upper",
        lambda task: task.preprocess.clip_percentiles[0] >= task.preprocess.clip_percentiles[1],
    ),
    (
        "preprocess.window_hu",
        "the lower end must be below the upper",
        lambda task: task.preprocess.window_hu[0] >= task.preprocess.window_hu[1],
    ),
)

_NEEDS_ENCODER = "works on an inflated encoder; leave it out, or set model.network to inflated"


def _lacks_encoder(task: TaskConfig) -> bool:
    return task.model.network != "inflated"


_MODEL: tuple[Check, ...] = (
    (
        "model.decoder_channels",
        "give one entry at least; the last one serves coarser levels too",
        lambda task: _is_segmentation(task) and not task.model.decoder_channels,
    ),
    (
        "model.deep_supervision",
        "heads on the decoder are for segmentation tasks; leave it out",
        lambda task: _is_classification(task) and task.model.deep_supervision > 0,
    ),
    (
        "model.deep_supervision",
        "coarser levels with a head must be fewer than model.stages",
        lambda task: task.model.stages is not None and task.model.deep_supervision >= task.model.stages,
    ),
    (
        "model.depth_plan",
        "anisotropic needs one voxel size; prepare with --spacing median or with millimetres",
        lambda task: task.model.depth_plan == "anisotropic" and task.preprocess.spacing_mm == "native",
    ),
    ("model.drop_path", _NEEDS_ENCODER, lambda task: _lacks_encoder(task) and task.model.drop_path > 0),
    (
        "train.norm_statistics",
        _NEEDS_ENCODER,
        lambda task: _lacks_encoder(task) and task.train.norm_statistics != "update",
    ),
    ("train.layer_decay", _NEEDS_ENCODER, lambda task: _lacks_encoder(task) and task.train.layer_decay < 1),
    ("train.freeze", _NEEDS_ENCODER, lambda task: _lacks_encoder(task) and task.train.freeze > 0),
)

_TRAIN: tuple[Check, ...] = (
    (
        "train.loss",
        "it compares shapes, for segmentation; a classification task takes cross_entropy or focal",
        lambda task: _is_classification(task) and task.train.loss in _OF_VOXELS,
    ),
    (
        "train.class_weights",
        "give one weight for each output (regions; or labels, the background first; or classes)",
        lambda task: bool(task.train.class_weights) and len(task.train.class_weights) != task.out_channels,
    ),
    (
        "train.freeze",
        "with train.warmup it must leave some of the schedule: together less than 1",
        lambda task: task.train.freeze + task.train.warmup >= 1,
    ),
    (
        "train.augment.mixup",
        "it mixes the patches of a batch; give train.batch_size at least 2",
        lambda task: task.train.augment.mixup > 0 and task.train.batch_size == 1,
    ),
    (
        "train.case_sampling",
        "rare_labels is for segmentation tasks; leave it out",
        lambda task: _is_classification(task) and task.train.case_sampling == "rare_labels",
    ),
    (
        "infer.mirror",
        "name the axes to mirror in train.augment.mirror_axes",
        lambda task: task.infer.mirror and not task.train.augment.mirror_axes,
    ),
    (
        "infer.rotate_degrees",
        "it needs one voxel size; prepare with --spacing median or with millimetres",
        lambda task: task.infer.rotate_degrees > 0 and task.preprocess.spacing_mm == "native",
    ),
    (
        "infer.postprocess",
        "it acts on label maps, which a classification task has none of; leave it out",
        lambda task: _is_classification(task) and bool(task.infer.postprocess),
    ),
    (
        "infer.postprocess",
        "name values of data.labels",
        lambda task: any(not set(step.labels) <= set(task.data.labels) for step in task.infer.postprocess),
    ),
)
