"""Decoders of U-Nets.

After Ronneberger et al. 2015, arXiv:1505.04597, in 3D Çiçek et al. 2016, arXiv:1606.06650; nested ones after Zhou et
al. 2018 (U-Net++, arXiv:1807.10165).

Feature maps are enlarged to the size of the next finer one, whatever that is, so sizes need not be
multiples of the strides.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medi3d.models.blocks import ConvBlock, PointConv
from medi3d.models.pyramid import Pyramid, size_at


class UpBlock(nn.Module):
    """Enlarge the coarse map to ``size``, join the skip if there is one, and convolve twice."""

    def __init__(self, coarse_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        # The 1×1×1 projection comes before the enlargement, where it costs an eighth.
        self.project = PointConv(coarse_channels, channels)
        self.convs = nn.ModuleList([ConvBlock(channels + skip_channels, channels), ConvBlock(channels, channels)])

    def forward(self, coarse: Tensor, skip: Tensor | None, size: torch.Size) -> Tensor:
        """``(B, coarse_channels, d, h, w)`` and a skip ``(B, skip_channels, *size)`` → ``(B, channels, *size)``."""
        up = interpolate(self.project(coarse), size=size, mode="trilinear", align_corners=False)
        joined: Tensor = self.convs[1](self.convs[0](up) if skip is None else self.convs[0](up, skip))
        return joined


class UNetDecoder(nn.ModuleDict):
    """One block a level, from coarse to fine.

    Args:
        pyramid: what it is built for.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        width, skips = pyramid.widths, pyramid.skips
        super().__init__(
            {
                str(fine): UpBlock(width[coarse], skips.get(fine, 0), width[fine])
                for coarse, fine in pairwise(pyramid.levels)
            }
        )
        self.pyramid = pyramid

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Maps of the encoder by level → ``(B, widths[level], …)`` of the decoder by level."""
        current = maps[self.pyramid.levels[0]]
        decoded = {self.pyramid.levels[0]: current}
        for level, block in self.items():
            fine = int(level)
            current = decoded[fine] = block(current, maps.get(fine), size_at(fine, maps, current))
        return decoded


class UNetPlusPlusDecoder(nn.ModuleDict):
    """A U-Net on each of the first levels, nested: every block also sees all earlier ones of its level.

    Block ``LEVEL_J`` is X^{i,j} of the paper, with LEVEL = 2^i.

    Args:
        pyramid: what it is built for.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid
        levels, skips, widths = pyramid.levels[::-1], pyramid.skips, pyramid.widths  # fine → coarse
        for column in range(1, len(levels)):
            for fine, coarse in pairwise(levels[: len(levels) - column + 1]):
                below = skips.get(coarse, 0)
                if column > 1:
                    below = widths[coarse] if f"{coarse}_{column - 1}" in self else 0
                if below:  # a level without a map of the encoder begins with what comes from below it
                    before = skips.get(fine, 0) + widths[fine] * self._count(fine, column)
                    self[f"{fine}_{column}"] = UpBlock(below, before, widths[fine])

    def _count(self, level: int, column: int) -> int:
        return sum(f"{level}_{earlier}" in self for earlier in range(1, column))

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Maps of the encoder by level → the last ``(B, widths[level], …)`` of the decoder by level."""
        nodes = {level: [feature] for level, feature in maps.items()}
        for name, block in self.items():
            fine = int(name.partition("_")[0])
            before = nodes.setdefault(fine, [])
            # The columns are computed from left to right, so the last map below is the one of the column before.
            below = nodes[2 * fine][-1]
            skip = torch.cat(before, dim=1) if before else None
            before.append(block(below, skip, size_at(fine, maps, below)))
        return {level: features[-1] for level, features in nodes.items()}
