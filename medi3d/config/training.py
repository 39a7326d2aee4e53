"""Training's part of the schema. ``None`` at a key of :data:`PLANNED_KEYS` means: chosen by the plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from medi3d.config.values import STRICT_KEYS, Duration, Fraction, Positive, PositiveInt, Precision, SizeTriple

PLANNED_KEYS = (
    "train.patch_size",
    "train.batch_size",
    "train.steps",
    "train.learning_rate",
    "model.stages",
    "model.depth_plan",
    "train.precision",
)
"""What :mod:`medi3d.planning` chooses from the fingerprint and the memory at hand, unless a task or a flag says it."""


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges that random augmentations are drawn from; zero or empty switches one off."""

    __pydantic_config__ = STRICT_KEYS
    mirror_axes: tuple[Literal["D", "H", "W"], ...] = ("W",)
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest angle about each axis."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest relative change of size, the same along all axes but for a third of it."""
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest shift as a share of the patch, beyond where the patch was cut."""
    elastic: Annotated[float, Field(ge=0)] = 0.0
    """Largest displacement of a smooth random deformation, in voxels."""
    spatial_probability: Fraction = 0.5
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    """Largest noise, in standard deviations of the patch."""
    blur: Annotated[float, Field(ge=0)] = 0.0
    """Largest standard deviation of a Gaussian blur, in voxels."""
    brightness: Fraction = 0.1
    contrast: Fraction = 0.25
    gamma: Fraction = 0.3
    low_resolution: Annotated[float, Field(ge=1)] = 1.0
    """Largest factor by which a patch is coarsened and enlarged again."""
    intensity_probability: Fraction = 0.3
    """Probability of each of the changes of intensity, drawn one by one."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Parameter of the beta distribution that pairs of patches are mixed by (Zhang et al. 2018)."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    __pydantic_config__ = STRICT_KEYS
    patch_size: SizeTriple | None = None
    """``(D, H, W)`` in voxels; planned."""
    batch_size: PositiveInt | None = None
    """Patches a step and process; planned."""
    accumulate: PositiveInt = 1
    """Steps of the network before one of the optimiser, for a batch that does not fit in memory at once."""
    steps: PositiveInt | None = None
    """Steps of the optimiser; planned."""
    budget: Duration | None = None
    """Wall-clock budget, such as ``10m`` or ``1h30m``; the schedule is fitted to it and ``steps`` is not used."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive | None = None
    """Peak, of the decoder and head; planned."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: Fraction = 0.03
    """Share of the schedule over which the learning rate rises linearly from zero."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from one encoder stage to the one before it, counted from the decoder."""
    freeze: Fraction = 0.0
    """Share of the schedule over which the encoder stays as it is; then it is trained with the rest."""
    norm_statistics: Literal["update", "frozen", "reestimate"] = "update"
    """What the encoder's batch norms normalise by: each batch while running means follow; the pretrained running
    means, for good; or running means measured on training patches before the first step, and kept."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Decay of the moving average of the weights that is validated and predicts; 0 uses the weights themselves. The
    average was ahead of the weights at each of nine checks of a hippocampus run (benchmarks/README.md, Training)."""
    grad_clip: Positive = 12.0

    loss: Literal["dice_ce", "dice_focal", "tversky", "boundary", "cross_entropy", "focal"] = "dice_ce"
    class_weights: tuple[Positive, ...] = ()
    """One weight for each output of cross-entropy and focal loss."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    tversky_beta: Fraction = 0.7
    """Weight of missed voxels; that of false ones is the rest to 1."""
    boundary_weight: Annotated[float, Field(ge=0)] = 0.5
    """Share that the boundary term has in ``boundary`` at the end of the schedule; it grows from zero."""
    classes_weight: Positive = 1.0
    """Weight of the loss on ``data.classes`` in a segmentation task that has a second head for them."""

    foreground_fraction: Fraction = 0.67
    """Share of the patches that are centred on a foreground voxel, of a label drawn evenly."""
    case_sampling: Literal["even", "rare_labels"] = "even"
    """Each case once in a pass; or cases drawn so that each label is met equally often."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read patches; 0 reads in the training process, ``None`` decides by the machine."""

    precision: Precision | None = None
    """Number format of the forward pass; planned."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass in place of keeping them: less memory, a third more time."""
    compile: bool = False
    """Compile the network with ``torch.compile``."""
    threads: PositiveInt | None = None
    """Threads of the tensor library on a CPU; ``None`` takes the cores that this process may use and that are idle."""

    validations: PositiveInt = 4
    """How many times the held-out cases are predicted over a run."""
    save_every: Duration = "5m"
    """Longest time between two checkpoints."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    folds: Annotated[int, Field(ge=2)] = 5
    cases: PositiveInt | None = None
    """Train on this many cases only (for learning curves); ``None`` takes all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Draws patches, their order, augmentation and random weights, and what ``split_seed`` leaves to it."""
    split_seed: Annotated[int, Field(ge=0)] | None = None
    """Draws the folds, and which cases ``cases`` takes; ``None`` is ``seed``. Runs that share it and a fold hold out
    the same cases whatever their seeds, so their averaged predictions can be scored."""

    @property
    def fold_seed(self) -> int:
        """What the folds are drawn with."""
        return self.seed if self.split_seed is None else self.split_seed
