"""The configuration schema: frozen dataclasses, the only home of defaults. Training's part has a file of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from medi3d.config.postprocess import PostprocessStep
from medi3d.config.training import TrainConfig
from medi3d.config.values import STRICT_KEYS, Fraction, Percentage, Positive, PositiveInt, Precision, Spacing
from medi3d.errors import ConfigError
from medi3d.types import IntTriple

T = TypeVar("T")


@dataclass(frozen=True)
class ColumnsConfig:
    """Which columns of a CSV table hold what; paths are relative to the table's folder."""

    __pydantic_config__ = STRICT_KEYS
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

    __pydantic_config__ = STRICT_KEYS
    images: tuple[str, ...] = ()
    label: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """What the raw data is and how it lies on disk."""

    __pydantic_config__ = STRICT_KEYS
    layout: Literal["msd", "csv", "patterns"] = "msd"
    channels: tuple[str, ...] = ("image",)
    labels: dict[int, str] = field(default_factory=dict)
    """Foreground label values of segmentation, consecutive from 1; 0 is background."""
    regions: dict[str, tuple[PositiveInt, ...]] = field(default_factory=dict)
    """Overlapping regions of segmentation, each the union of some labels (as BraTS scores them); given, the network
    learns one yes or no a region in place of one label a voxel, and label maps are put together from the regions."""
    ignore_label: Annotated[int, Field(ge=1, le=255)] | None = None
    """Label value of voxels that nobody has annotated: no loss, patch centre or metric looks at them."""
    classes: tuple[str, ...] = ()
    """Class names of classification, in the order of the model's outputs; the last one is the positive class. A
    segmentation task that names classes trains a second head on them."""
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

    __pydantic_config__ = STRICT_KEYS
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


FAMILIES_3D = ("astra", "merlin", "medicalnet", "hassony2", "i3d")
"""Families of published 3D networks: what their names begin with."""

_DEFAULT_BACKBONE = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class ModelConfig:
    """The inflated encoder and what is built on it."""

    __pydantic_config__ = STRICT_KEYS
    network: str = "inflated"
    """``inflated`` (the backbone with a U-Net decoder, or with a classifier's head), or one of MONAI's networks,
    ``monai/basic_unet`` or ``monai/dynunet``, from scratch, for comparison."""
    backbone: str = _DEFAULT_BACKBONE
    init: str = "imagenet-center"
    """``imagenet-center``, ``imagenet-inflated``, ``imagenet-overshoot``, ``random``, the path of a checkpoint, or a
    published 3D network with the file of its weights, ``medicalnet:resnet50@FILE``, which is then the backbone too."""
    allow_partial_init: bool = False
    """Take what fits of a 3D checkpoint that does not fit as a whole."""
    weights: str | None = None
    """A file with 2D weights, where they shall not come from a package or the hub's cache."""
    stem_stride: Literal[1, 2] | None = None
    """Stride of the backbone's first convolution; ``None`` keeps the network's own."""
    depth_plan: Literal["symmetric", "anisotropic", "i3d", "slicewise"] | None = None
    """What layers do along depth; ``anisotropic`` keeps it until the voxels of the prepared spacing are isotropic.
    ``None``: planned."""
    stages: PositiveInt | None = None
    """Number of encoder stages used, finest first. ``None``: planned."""
    decoder: str = "unet"
    """``unet``, ``unetpp``, ``fpn``, or one of MONAI's blocks, ``monai/basic_unet`` or ``monai/unetr``."""
    decoder_channels: tuple[PositiveInt, ...] = (16, 32, 48, 64, 96)
    """Channels of the decoder from fine to coarse; one entry a level is used."""
    dropout: Fraction = 0.0
    drop_path: Fraction = 0.0
    """Stochastic depth of the backbone (Huang et al. 2016), where timm's network has it."""
    deep_supervision: Annotated[int, Field(ge=0)] = 0
    """Number of coarser decoder levels that get a head and a loss of their own, each half the weight of the finer."""

    def __post_init__(self) -> None:
        """Let an init that names a published 3D network name the backbone."""
        network = self.init.partition("@")[0]
        if network.partition(":")[0] not in FAMILIES_3D or network == self.backbone:
            return
        if self.backbone != _DEFAULT_BACKBONE:
            raise ValueError(
                f"init {self.init} is of the network {network}, and backbone is {self.backbone}: leave backbone out"
            )
        object.__setattr__(self, "backbone", network)


@dataclass(frozen=True)
class InferConfig:
    """Sliding-window prediction."""

    __pydantic_config__ = STRICT_KEYS
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    window_batch: PositiveInt = 1
    mirror: bool = False
    """Average the predictions of all mirrored copies along ``train.augment.mirror_axes``."""
    rotate_degrees: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Average also over copies turned by this angle to and fro about each axis, seven with the one that is not."""
    postprocess: tuple[PostprocessStep, ...] = ()
    """What is done to a label map on the scanner's grid, step after step; `medi3d postprocess` chooses it."""
    precision: Precision = "no"
    """Number format of the forward pass; what windows say is summed in float32 whatever it is."""
    skip_air: bool = False
    """Leave out windows that hold nothing but the constant or dark background around the body; there, it is background
    that is predicted."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics."""

    __pydantic_config__ = STRICT_KEYS
    tolerance_mm: Positive = 1.0
    """Tolerance of the surface Dice."""
    surface: Literal["elements", "voxels"] = "elements"
    """What the surface metrics measure: surface elements weighted by area (Nikolov et al. 2018), or the mask's outer
    voxels, each alike, as MONAI's do."""
    lesion_iou: Fraction = 0.1
    """Least IoU by which a lesion counts as found; 0: any overlap."""
    bootstrap: PositiveInt = 2000


@dataclass(frozen=True)
class TaskConfig:
    """Everything about a task; ``configs/*.yaml`` hold one each."""

    __pydantic_config__ = STRICT_KEYS
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
    def patch_size(self) -> IntTriple:
        """Patch and window ``(D, H, W)`` in voxels; like the next four, :class:`ConfigError` before it is planned."""
        return self._planned("patch_size", self.train.patch_size)

    @property
    def batch_size(self) -> int:
        """Patches a step and process."""
        return self._planned("batch_size", self.train.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the optimiser over a run."""
        return self._planned("steps", self.train.steps)

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        return self._planned("learning_rate", self.train.learning_rate)

    @property
    def precision(self) -> Precision:
        """Number format of the network's forward pass in training."""
        return self._planned("precision", self.train.precision)

    def _planned(self, key: str, value: T | None) -> T:
        if value is None:
            raise ConfigError(f"{self.name}: train.{key} is not planned yet; run `medi3d plan`, or set it")
        return value

    @property
    def in_channels(self) -> int:
        """Number of image channels."""
        return len(self.data.channels)

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels with the background: what a prediction tells apart."""
        return len(self.data.classes) if self.kind == "classification" else len(self.data.labels) + 1

    @property
    def out_channels(self) -> int:
        """Number of the network's outputs: one a region where the task has regions, else one a class or label."""
        return len(self.data.regions) or self.num_classes

    @property
    def region_matrix(self) -> tuple[tuple[int, ...], ...]:
        """``(num_classes, regions)``: 1 where a region holds the label; the background, row 0, is in none.

        A row is the pattern of yes and no that stands for the label.
        """
        return tuple(
            tuple(int(label in region) for region in self.data.regions.values()) for label in range(self.num_classes)
        )

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
