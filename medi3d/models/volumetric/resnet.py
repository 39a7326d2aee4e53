"""3D residual networks (He et al. 2016, arXiv:1512.03385) as MedicalNet, Merlin, Astra and hassony2 lay them out.

Chen et al. 2019 (Med3D, arXiv:1904.00625) keep the stride of the last two layers at 1 and dilate their kernels;
inflated ones (hassony2/inflated_convnets_pytorch) begin with a 3×7×7 kernel that keeps the depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from medi3d.models.volumetric.stages import Stages, draw_weights
from medi3d.types import IntTriple

_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class ResNetLayout:
    """What distinguishes one 3D residual network from another.

    Args:
        blocks: number of blocks in each of the four layers.
        bottleneck: blocks of 1, 3, 1 taps and four times the width, else of 3, 3.
        in_channels: of the volume.
        stem_size: taps of the first convolution along D, H, W.
        stem_stride: its stride.
        strides: of the layers.
        dilations: of the kernels in each layer.
        projects: shortcuts that change shape are convolutions; else they skip voxels and pad channels with zeros.
        taps: steps that end a stage.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    in_channels: int = 3
    stem_size: IntTriple = (3, 7, 7)
    stem_stride: IntTriple = (1, 2, 2)
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1)
    projects: bool = True
    taps: tuple[str, ...] = ("relu", "layer1", "layer2", "layer3", "layer4")


class PadShortcut(nn.Module):
    """Skip voxels by the stride, and add channels of zeros (He et al. 2016, option A)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` → ``(B, channels, ⌈D/s⌉, ⌈H/s⌉, ⌈W/s⌉)``."""
        kept = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]))


class ResidualBlock(nn.Module):
    """Convolutions with batch norm, and a shortcut past them.

    Args:
        in_channels: of its input.
        sizes: taps of each convolution.
        widths: output channels of each.
        stride: of the first convolution with more than one tap.
        dilation: of all convolutions with more than one tap.
        shortcut: ``None`` passes the input on.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        sizes: Sequence[int],
        widths: Sequence[int],
        stride: int,
        dilation: int,
        shortcut: nn.Module | None,
    ) -> None:
        super().__init__()
        self.depth = len(sizes)
        strided = next(place for place, size in enumerate(sizes) if size > 1)
        for place, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            reach = dilation if size > 1 else 1
            conv = nn.Conv3d(
                in_channels,
                width,
                kernel_size=size,
                stride=stride if place == strided else 1,
                padding=(size // 2) * reach,
                dilation=reach,
                bias=False,
            )
            self.add_module(f"conv{place + 1}", conv)
            self.add_module(f"bn{place + 1}", nn.BatchNorm3d(width))
            in_channels = width
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` → ``(B, widths[-1], ⌈D/s⌉, ⌈H/s⌉, ⌈W/s⌉)``."""
        out = x
        for place in range(1, self.depth + 1):
            out = self.get_submodule(f"bn{place}")(self.get_submodule(f"conv{place}")(out))
            if place < self.depth:
                out = F.relu(out, inplace=True)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


def create_resnet(layout: ResNetLayout) -> Stages:
    """Create a residual network with random weights; its tensors are named as published."""
    depth, height, width = (size // 2 for size in layout.stem_size)
    steps: dict[str, nn.Module] = {
        "conv1": nn.Conv3d(
            layout.in_channels,
            64,
            layout.stem_size,
            layout.stem_stride,
            padding=(depth, height, width),
            bias=False,
        ),
        "bn1": nn.BatchNorm3d(64),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool3d(kernel_size=3, stride=2, padding=1),
    }
    channels = 64
    for place in range(4):
        steps[f"layer{place + 1}"], channels = _create_layer(layout, place, channels)
    network = Stages(steps, layout.taps)
    draw_weights(network)
    return network


def _create_layer(layout: ResNetLayout, place: int, in_channels: int) -> tuple[nn.Sequential, int]:
    width, dilation = _WIDTHS[place], layout.dilations[place]
    sizes, widths = ((1, 3, 1), (width, width, 4 * width)) if layout.bottleneck else ((3, 3), (width, width))
    blocks = []
    for number in range(layout.blocks[place]):
        stride = layout.strides[place] if number == 0 else 1
        shortcut = _create_shortcut(in_channels, widths[-1], stride, projects=layout.projects)
        block = ResidualBlock(
            in_channels, sizes=sizes, widths=widths, stride=stride, dilation=dilation, shortcut=shortcut
        )
        blocks.append(block)
        in_channels = widths[-1]
    return nn.Sequential(*blocks), in_channels


def _create_shortcut(in_channels: int, channels: int, stride: int, *, projects: bool) -> nn.Module | None:
    if in_channels == channels and stride == 1:
        return None
    if not projects:
        return PadShortcut(channels, stride)
    return nn.Sequential(nn.Conv3d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm3d(channels))
