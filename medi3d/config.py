"""The configuration schema: frozen dataclasses, the only home of defaults.

A task is one YAML file. Flags and ``--set section.key=value`` are merged into its mapping before validation, so an
unknown key, a wrong type or a bad range fails at load, naming the file and the dotted key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from medi3d.errors import ConfigError
from medi3d.registry import unknown_name_message
from medi3d.types import PathLike

_STRICT_KEYS = ConfigDict(extra="forbid")

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Percentage = Annotated[float, Field(ge=0, le=100)]


def _as_triple(value: object) -> object:
    """Let a scalar stand for three equal entries, as in ``--spacing 1.0``."""
    return (value, value, value) if isinstance(value, int | float) else value


SpacingTriple = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(_as_triple)]
Spacing = SpacingTriple | Literal["median", "native"]
"""Millimetres along (D, H, W); or the data set's median, or each case's own spacing."""
SizeTriple = Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], BeforeValidator(_as_triple)]


@dataclass(frozen=True)
class ColumnsConfig:
    """Which columns of a CSV table hold what; paths are relative to the table's folder."""

    __pydantic_config__ = _STRICT_KEYS
    case: str = "case_id"
    patient: str | None = "patient_id"
    images: tuple[str, ...] = ("image",)
    label: str | None = None
    target: str | None = None
    center: str | None = None
    """A mask whose centre of mass is where the cube is cut (``preprocess.crop: cube``)."""


@dataclass(frozen=True)
class PatternsConfig:
    """Glob patterns under the raw folder; ``{case}`` stands for the case id, one or more whole folder levels."""

    __pydantic_config__ = _STRICT_KEYS
    images: tuple[str, ...] = ()
    label: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """What the raw data is and how it lies on disk."""

    __pydantic_config__ = _STRICT_KEYS
    layout: Literal["msd", "csv", "patterns"] = "msd"
    channels: tuple[str, ...] = ("image",)
    labels: dict[int, str] = field(default_factory=dict)
    """Foreground label values of segmentation, consecutive from 1; 0 is background."""
    classes: tuple[str, ...] = ()
    """Class names of classification, in the order of the model's outputs; the last one is the positive class."""
    fourth_axis: Literal["channels", "time"] = "channels"
    """What a fourth axis of a file is: the channels of one case, or time, where each frame is a case by itself."""
    quantities: tuple[Literal["stored", "suv"], ...] = ("stored",)
    """One entry a channel, or one for all: the values as stored, or PET activity as body-weight SUV (DICOM only)."""
    allow_empty_labels: bool = False
    """Whether a label map may be all background, as that of a healthy patient is; else the case is left out."""
    hash_case_ids: bool = False
    """Whether cases are called by a hash in place of their files' names, where those name patients."""
    table: str = "cases.csv"
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    patterns: PatternsConfig = field(default_factory=PatternsConfig)
    source: str = ""
    """Where the public data set is found; shown when the raw data is missing."""


@dataclass(frozen=True)
class PreprocessConfig:
    """From the scanner's grid to the prepared one."""

    __pydantic_config__ = _STRICT_KEYS
    spacing_mm: Spacing = (1.0, 1.0, 1.0)
    interpolation: Literal["linear", "bspline"] = "linear"
    normalize: tuple[Literal["ct", "mr", "percentile", "dataset", "none"], ...] = ("mr",)
    """One entry a channel, or one for all: ``ct`` maps ``window_hu`` to [0, 1], ``mr`` is a z-score of the image's
    foreground, ``percentile`` maps its ``clip_percentiles`` to [0, 1], ``dataset`` clips and z-scores by the labelled
    voxels of the whole data set, ``none`` trusts the raw values."""
    window_hu: tuple[float, float] = (-1000.0, 400.0)
    clip_percentiles: tuple[Percentage, Percentage] = (0.5, 99.5)
    bias_correction: Literal["none", "n4"] = "none"
    """``n4`` removes the bias field (Tustison 2010) of channels whose normalisation is ``mr`` or ``percentile``."""
    dataset_intensities: tuple[tuple[float, float, float, float], ...] = ()
    """Low, high, mean and standard deviation of each channel for ``dataset``; measured by ``medi3d preprocess``."""
    crop: Literal["none", "foreground", "cube"] = "none"
    cube_mm: Positive = 48.0
    padding: Literal["reflect", "edge"] = "reflect"
    """How a cube that reaches outside the volume is filled; label maps are filled with background."""


@dataclass(frozen=True)
class ModelConfig:
    """The inflated encoder and what is built on it."""

    __pydantic_config__ = _STRICT_KEYS
    backbone: str = "tf_efficientnet_lite0"
    init: str = "imagenet-inflated"
    weights: str | None = None
    """A file with 2D weights, where they shall not come from a package or the hub's cache."""
    stem_stride: Literal[1, 2] | None = None
    """Stride of the backbone's first convolution; ``None`` keeps the network's own."""
    depth_plan: Literal["symmetric", "anisotropic", "i3d", "slicewise"] = "symmetric"
    """What layers do along depth; ``anisotropic`` keeps it until the voxels of the prepared spacing are isotropic."""
    stages: PositiveInt = 5
    """Number of encoder stages used, finest first."""
    decoder_channels: tuple[PositiveInt, ...] = (16, 32, 48, 64, 96)
    """Channels of the U-Net's decoder from fine to coarse; one entry a level is used."""
    dropout: Fraction = 0.0


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges that random augmentations are drawn from; zero or empty switches one off."""

    __pydantic_config__ = _STRICT_KEYS
    mirror_axes: tuple[Literal["D", "H", "W"], ...] = ("W",)
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    scale: Fraction = 0.15
    spatial_probability: Fraction = 0.5
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    brightness: Fraction = 0.1
    contrast: Fraction = 0.25
    gamma: Fraction = 0.3
    intensity_probability: Fraction = 0.3


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    __pydantic_config__ = _STRICT_KEYS
    patch_size: SizeTriple = (48, 64, 48)
    batch_size: PositiveInt = 2
    steps: PositiveInt = 1000
    budget: str | None = None
    """Wall-clock budget, such as ``10m`` or ``1h30m``; the schedule is fitted to it and ``steps`` is not used."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: Fraction = 0.03
    """Share of the schedule over which the learning rate rises linearly from zero."""
    loss: Literal["dice_ce", "cross_entropy"] = "dice_ce"
    class_weights: tuple[Positive, ...] = ()
    foreground_fraction: Fraction = 0.67
    """Share of the patches that are centred on a foreground voxel."""
    grad_clip: Positive = 12.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    validations: PositiveInt = 4
    """How many times the held-out cases are predicted over a run."""
    folds: Annotated[int, Field(ge=2)] = 5
    cases: PositiveInt | None = None
    """Train on this many cases only (for learning curves); ``None`` takes all."""
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read and crop patches; 0 reads in the training process."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class InferConfig:
    """Sliding-window prediction."""

    __pydantic_config__ = _STRICT_KEYS
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    window_batch: PositiveInt = 1
    mirror: bool = False
    """Average the predictions of all mirrored copies along ``train.augment.mirror_axes``."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics."""

    __pydantic_config__ = _STRICT_KEYS
    tolerance_mm: Positive = 1.0
    """Tolerance of the surface Dice."""
    bootstrap: PositiveInt = 2000


@dataclass(frozen=True)
class TaskConfig:
    """Everything about a task; ``configs/*.yaml`` hold one each."""

    __pydantic_config__ = _STRICT_KEYS
    name: str
    kind: Literal["segmentation", "classification"]
    description: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    infer: InferConfig = field(default_factory=InferConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def in_channels(self) -> int:
        """Number of image channels."""
        return len(self.data.channels)

    @property
    def num_classes(self) -> int:
        """Number of the model's outputs: classes, or labels with the background."""
        return len(self.data.classes) if self.kind == "classification" else len(self.data.labels) + 1

    @property
    def normalizations(self) -> tuple[str, ...]:
        """Normalisation of each channel."""
        return _for_each_channel(self.preprocess.normalize, self.in_channels)

    @property
    def quantities(self) -> tuple[str, ...]:
        """What the values of each channel are."""
        return _for_each_channel(self.data.quantities, self.in_channels)


def _for_each_channel(given: tuple[str, ...], channels: int) -> tuple[str, ...]:
    return given * channels if len(given) == 1 else given


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
    _check_consistency(task, where)
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


def _check_consistency(task: TaskConfig, where: str) -> None:
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
        and len(task.model.decoder_channels) < task.model.stages,
    }
    for message, wrong in problems.items():
        if wrong:
            raise ConfigError(f"{where}: {message}")
