"""The numbers that plans follow, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rules:
    """What a plan reckons with; :data:`RULES` is the set in use."""

    anisotropy: float = 1.5
    """Slice distance over pixel size from which depth is kept until the voxels are as long as they are wide."""

    coarsest_voxels: dict[str, int] = field(default_factory=lambda: {"segmentation": 4, "classification": 1})
    """Voxels that the coarsest map keeps along the plane's axes. nnU-Net stops at 4 too (Isensee et al. 2021). The
    classifier pools every stage, so that nothing is lost in a coarse one."""

    grain: int = 8
    """Patch edges are multiples of this for an inflated network, whose decoder takes any size;"""
    other_grain: int = 16
    """and of this for any other network: four halvings divide it."""

    smallest_batch: int = 2
    """Batch norm and batch Dice want more than one patch, and nnU-Net (Isensee et al. 2021) takes 2 at least."""
    batch_share: float = 0.05
    """Share of the voxels of all cases that a batch covers at most (Isensee et al. 2021, online methods)."""

    cpu_step_voxels: int = 96**3
    """Voxels of the smallest batch on a CPU: about 3 s a step of the default network on one core of 2020 or later."""
    cpu_batch_voxels: int = 2**18
    """Voxels up to which a CPU gets a batch larger than the smallest: there, time grows with the batch, and in the same
    minutes many steps of small batches learn more than few of large ones."""

    learning_rate: dict[str, float] = field(default_factory=lambda: {"adamw": 3e-3, "sgd": 1e-2})
    """Peak of each optimiser at the smallest batch. AdamW's: best of the trials on hippocampus with the default
    backbone; SGD's: nnU-Net's (Isensee et al. 2021)."""
    most_learning_rate: dict[str, float] = field(default_factory=lambda: {"adamw": 6e-3, "sgd": 4e-2})
    """Where the growth with the root of the batch ends."""

    passes: dict[str, int] = field(default_factory=lambda: {"cpu": 25, "cuda": 200})
    """How often a run sees the voxels of the training cases."""
    fewest_steps: dict[str, int] = field(default_factory=lambda: {"cpu": 400, "cuda": 2000})
    most_steps: dict[str, int] = field(default_factory=lambda: {"cpu": 4000, "cuda": 100_000})

    smallest_edge: int = 16
    """Patches are not made smaller than this along an axis that has as many voxels."""

    half_precision: float = 0.6
    """Memory of a step in bf16 or fp16 against float32: norms, losses and some gradients stay in float32."""
    kernels: float = 1.15
    """Memory of a step against that of its tensors: what kernels need while they run, and what the allocator cannot
    use. On a CPU, the peak of a process was 1.14 to 1.19 times the tensors, for EfficientNet-Lite0 and ResNet-18."""


RULES = Rules()
