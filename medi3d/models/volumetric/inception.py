"""I3D (Carreira & Zisserman 2017, arXiv:1705.07750): Inception v1 inflated and trained on Kinetics.

Paddings are TensorFlow's ``SAME``, as in the original network; tensors are named as in piergiaj/pytorch-i3d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medi3d.inflation.window import DepthLayer
from medi3d.models.volumetric.stages import Stages, draw_weights
from medi3d.types import IntTriple

_MIXED: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "3b": (192, (64, 96, 128, 16, 32, 32)),
    "3c": (256, (128, 128, 192, 32, 96, 64)),
    "4b": (480, (192, 96, 208, 16, 48, 64)),
    "4c": (512, (160, 112, 224, 24, 64, 64)),
    "4d": (512, (128, 128, 256, 24, 64, 64)),
    "4e": (512, (112, 144, 288, 32, 64, 64)),
    "4f": (528, (256, 160, 320, 32, 128, 128)),
    "5b": (832, (256, 160, 320, 32, 128, 128)),
    "5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Block → channels of its input, and output channels of its six convolutions (Szegedy et al. 2015, table 1)."""

_POOLS: dict[str, tuple[IntTriple, IntTriple]] = {
    "2a": ((1, 3, 3), (1, 2, 2)),
    "3a": ((1, 3, 3), (1, 2, 2)),
    "4a": ((3, 3, 3), (2, 2, 2)),
    "5a": ((2, 2, 2), (2, 2, 2)),
}
"""Pool → its window and stride."""


def pad_same(x: Tensor, size: IntTriple, stride: IntTriple) -> Tensor:
    """Pad a volume with zeros so that a window gives ⌈n / stride⌉ voxels an axis."""
    margins = [DepthLayer(k, s).margins(n) for n, k, s in zip(x.shape[2:], size, stride, strict=True)]
    return F.pad(x, [margin for pair in reversed(margins) for margin in pair])


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, size, stride, bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` → ``(B, out_channels, ⌈D/s⌉, ⌈H/s⌉, ⌈W/s⌉)``."""
        depth, height, width = self.conv3d.kernel_size
        padded = pad_same(x, (depth, height, width), self.conv3d.stride)  # type: ignore[arg-type]  # three of them
        return F.relu(self.bn(self.conv3d(padded)), inplace=True)


class Pool(nn.Module):
    """A maximum over a window. What is pooled is a ReLU's output, so zeros around it win nothing."""

    def __init__(self, size: IntTriple, stride: IntTriple) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` → ``(B, C, ⌈D/s⌉, ⌈H/s⌉, ⌈W/s⌉)``."""
        return F.max_pool3d(pad_same(x, self.size, self.stride), self.size, self.stride)


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit(in_channels, widths[0])
        self.b1a, self.b1b = Unit(in_channels, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(in_channels, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(in_channels, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` → the branches' maps, one after the other."""
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


def create_i3d() -> Stages:
    """Create I3D for RGB frames with random weights."""
    pools = {place: Pool(*setting) for place, setting in _POOLS.items()}
    mixed = {place: Mixed(*setting) for place, setting in _MIXED.items()}
    steps: dict[str, nn.Module] = {
        "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
        "MaxPool3d_2a_3x3": pools["2a"],
        "Conv3d_2b_1x1": Unit(64, 64),
        "Conv3d_2c_3x3": Unit(64, 192, 3),
        "MaxPool3d_3a_3x3": pools["3a"],
        **{f"Mixed_{place}": mixed[place] for place in ("3b", "3c")},
        "MaxPool3d_4a_3x3": pools["4a"],
        **{f"Mixed_{place}": mixed[place] for place in ("4b", "4c", "4d", "4e", "4f")},
        "MaxPool3d_5a_2x2": pools["5a"],
        **{f"Mixed_{place}": mixed[place] for place in ("5b", "5c")},
    }
    network = Stages(steps, ("Conv3d_1a_7x7", "Conv3d_2c_3x3", "Mixed_3c", "Mixed_4f", "Mixed_5c"))
    draw_weights(network)
    return network
