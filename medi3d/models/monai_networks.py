"""MONAI's segmentation networks under the same loop, from scratch: what an inflated network is compared with.

MONAI is imported when one of its networks is made: that takes as long as torch itself, and predictions wait for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.models.padding import Padded
from medi3d.types import FloatTriple, IntTriple

if TYPE_CHECKING:
    from monai.networks.nets.dynunet import DynUNet

_SMALLEST_EDGE = 4
_WIDEST = 320


class SupervisedDynUNet(nn.Module):
    """DynUNet that in training gives its coarse logits as they are, without enlarging them.

    Args:
        network: with deep supervision.
    """

    def __init__(self, network: DynUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Volume → logits; in training, of all supervised levels, finest first."""
        finest: Tensor = self.network.output_block(self.network.skip_layers(x))
        heads = self.network.heads  # where DynUNet's levels leave their logits
        coarse = list(heads)
        heads[:] = [torch.zeros(1)] * len(heads)  # a graph that is kept cannot be copied, as averaging weights does
        return [finest, *coarse] if self.training else finest


def create_basic_unet(task: TaskConfig) -> nn.Module:
    """Create BasicUNet with MONAI's own widths: 5.8 million parameters."""
    from monai.networks.nets.basic_unet import BasicUNet

    _refuse(task, deep_supervision=True)
    network = BasicUNet(
        spatial_dims=3, in_channels=task.in_channels, out_channels=task.out_channels, dropout=task.model.dropout
    )
    return Padded(network, (16, 16, 16))


def create_dynunet(task: TaskConfig) -> nn.Module:
    """Create DynUNet with kernels, strides and widths by nnU-Net's rules (Isensee et al. 2021).

    For the hippocampus' patch of 40×56×40: four levels of 32 to 256 channels, 5.6 million parameters.
    """
    from monai.networks.nets.dynunet import DynUNet

    _refuse(task)
    spacing = task.preprocess.spacing_mm
    kernels, strides = plan_levels(task.patch_size, (1.0, 1.0, 1.0) if isinstance(spacing, str) else spacing)
    supervised = task.model.deep_supervision
    if supervised > len(strides) - 2:
        raise ConfigError(
            f"model.deep_supervision: DynUNet for patches of {task.patch_size} has {len(strides) - 2} levels that are "
            f"coarser than its output; got {supervised}"
        )
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=task.in_channels,
        out_channels=task.out_channels,
        kernel_size=kernels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(32 * 2**level, _WIDEST) for level in range(len(strides))],
        dropout=task.model.dropout or None,
        deep_supervision=supervised > 0,
        deep_supr_num=max(supervised, 1),
    )
    depth, height, width = (math.prod(steps) for steps in zip(*strides, strict=True))
    return Padded(SupervisedDynUNet(network) if supervised else network, (depth, height, width))


def plan_levels(patch_size: IntTriple, spacing_mm: FloatTriple) -> tuple[list[IntTriple], list[IntTriple]]:
    """Choose kernels and strides of each level by nnU-Net's rules.

    An axis is halved while its voxels are less than twice as long as the shortest ones of those that can be halved,
    and at least 4 voxels are left; its kernels have 3 taps as soon as its voxels are less than twice as long as the
    shortest.

    Args:
        patch_size: voxels.
        spacing_mm: of the input.

    Returns:
        Kernels and strides of the levels, finest first; the first stride is 1.

    Examples:
        >>> plan_levels((40, 56, 40), (1.0, 1.0, 1.0))[1]
        [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
        >>> plan_levels((16, 128, 128), (4.0, 1.0, 1.0))[1][1:3]
        [(1, 2, 2), (1, 2, 2)]
    """
    size, spacing = list(patch_size), list(spacing_mm)
    kernels: list[IntTriple] = []
    strides: list[IntTriple] = [(1, 1, 1)]
    while True:
        near = [own < 2 * min(spacing) for own in spacing]
        depth, height, width = (3 if (kernels and kernels[-1][axis] == 3) or near[axis] else 1 for axis in range(3))
        kernels.append((depth, height, width))
        can = [n // 2 >= _SMALLEST_EDGE for n in size]
        if not any(can):
            return kernels, strides
        shortest = min(own for own, halves in zip(spacing, can, strict=True) if halves)
        d, h, w = (2 if halves and own < 2 * shortest else 1 for own, halves in zip(spacing, can, strict=True))
        strides.append((d, h, w))
        size = [-(-n // step) for n, step in zip(size, (d, h, w), strict=True)]
        spacing = [own * step for own, step in zip(spacing, (d, h, w), strict=True)]


def _refuse(task: TaskConfig, *, deep_supervision: bool = False) -> None:
    """Refuse what MONAI's networks do not have."""
    model, name = task.model, task.model.network
    problems = {
        "they segment; classification takes model.network inflated": task.kind == "classification",
        "they have no second head for data.classes; take model.network inflated": task.kind == "segmentation"
        and bool(task.data.classes),
        "model.drop_path is stochastic depth of an inflated backbone; set it to 0": model.drop_path > 0,
        "model.deep_supervision: it has none; set it to 0, or take monai/dynunet": deep_supervision
        and model.deep_supervision > 0,
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ConfigError(f"model.network {name}: {problem}")
