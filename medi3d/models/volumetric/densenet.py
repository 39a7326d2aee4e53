"""3D DenseNets (Huang et al. 2017, arXiv:1608.06993) as hassony2/inflated_convnets_pytorch inflates torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medi3d.models.volumetric.stages import Stages, draw_weights


@dataclass(frozen=True)
class DenseNetLayout:
    """What distinguishes one 3D DenseNet from another.

    Args:
        layers: number of layers in each of the four blocks.
        growth: channels that a layer adds.
        stem_channels: of the first convolution.
        depth_taps: taps along depth of the layers' 3×3 kernels: 3, with the end slices repeated, or 1.
    """

    layers: tuple[int, int, int, int]
    growth: int = 32
    stem_channels: int = 64
    depth_taps: int = 3


class DenseLayer(nn.Sequential):
    """Norm, 1×1×1 convolution, norm, k×3×3 convolution; what it gives is appended to what it gets."""

    def __init__(self, in_channels: int, growth: int, depth_taps: int) -> None:
        super().__init__(
            OrderedDict(
                norm1=nn.BatchNorm3d(in_channels),
                relu1=nn.ReLU(inplace=True),
                conv1=nn.Conv3d(in_channels, 4 * growth, 1, bias=False),
                norm2=nn.BatchNorm3d(4 * growth),
                relu2=nn.ReLU(inplace=True),
                padding=nn.ReplicationPad3d((0, 0, 0, 0, depth_taps // 2, depth_taps // 2)),
                conv2=nn.Conv3d(4 * growth, growth, (depth_taps, 3, 3), padding=(0, 1, 1), bias=False),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` → ``(B, C + growth, D, H, W)``."""
        new = x
        for layer in self:
            new = layer(new)
        return torch.cat([x, new], dim=1)


class HalvingPool(nn.Module):
    """An average over 2×2×2 voxels; an axis of one voxel is kept."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` → ``(B, C, ⌊D/2⌋, ⌊H/2⌋, ⌊W/2⌋)``, but no axis below 1."""
        return F.avg_pool3d(x, kernel_size=[min(2, n) for n in x.shape[2:]], stride=2)


def create_densenet(layout: DenseNetLayout) -> Stages:
    """Create a DenseNet with random weights; its tensors are named as published, without ``features.``."""
    channels = layout.stem_channels
    steps: dict[str, nn.Module] = {
        "conv0": nn.Conv3d(3, channels, (1, 7, 7), (1, 2, 2), padding=(0, 3, 3), bias=False),
        "norm0": nn.BatchNorm3d(channels),
        "relu0": nn.ReLU(inplace=True),
        "pool0": nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
    }
    for place, count in enumerate(layout.layers, start=1):
        block: OrderedDict[str, nn.Module] = OrderedDict(
            (f"denselayer{n + 1}", DenseLayer(channels + n * layout.growth, layout.growth, layout.depth_taps))
            for n in range(count)
        )
        steps[f"denseblock{place}"] = nn.Sequential(block)
        channels += count * layout.growth
        if place < len(layout.layers):
            steps[f"transition{place}"] = _create_transition(channels)
            channels //= 2
    steps |= {"norm5": nn.BatchNorm3d(channels), "relu5": nn.ReLU(inplace=True)}
    network = Stages(steps, ("relu0", "denseblock1", "denseblock2", "denseblock3", "relu5"))
    draw_weights(network)
    return network


def _create_transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm3d(channels),
            relu=nn.ReLU(),  # not in place: the block's map is a stage's feature, and norm gives a new one
            conv=nn.Conv3d(channels, channels // 2, 1, bias=False),
            pool=HalvingPool(),
        )
    )
