"""A U-Net whose encoder is an inflated backbone.

After Ronneberger et al. 2015, arXiv:1505.04597, and in 3D Çiçek et al. 2016, arXiv:1606.06650.

Feature maps are enlarged to the size of the next finer one, whatever that is, so sizes need not be
multiples of the strides.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medi3d.models.blocks import ConvBlock, PointConv
from medi3d.models.encoder import Encoder


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


class UNet(nn.Module):
    """Segmentation network: encoder, decoder, one logit a label.

    Args:
        encoder: gives the skips; the volume itself, scaled, is the skip at full resolution where the stem is strided.
        num_classes: number of labels, the background included.
        decoder_channels: channels of the decoder at stride 1, 2, 4, …; the last entry serves coarser ones.
        dropout: probability of dropping a channel before the head.
    """

    def __init__(
        self, encoder: Encoder, *, num_classes: int, decoder_channels: tuple[int, ...], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        skips = dict(zip((max(stride) for stride in encoder.strides), encoder.channels, strict=True))
        skips.setdefault(1, encoder.in_channels)
        levels = [2**power for power in range(max(skips).bit_length())][::-1]  # coarse → fine
        width = {level: decoder_channels[min(i, len(decoder_channels) - 1)] for i, level in enumerate(reversed(levels))}
        width[levels[0]] = encoder.channels[-1]
        self.blocks = nn.ModuleDict(
            {str(fine): UpBlock(width[coarse], skips.get(fine, 0), width[fine]) for coarse, fine in pairwise(levels)}
        )
        self.head = nn.Sequential(nn.Dropout3d(dropout), PointConv(width[1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Volume ``(B, C, D, H, W)`` → logits ``(B, num_classes, D, H, W)``."""
        features = self.encoder(x)
        skips = {str(max(stride)): feature for stride, feature in zip(self.encoder.strides, features, strict=True)}
        skips.setdefault("1", self.encoder.scaling.scale(x))
        current = features[-1]
        for level, block in self.blocks.items():
            skip = skips.get(level)
            size = skip.shape[2:] if skip is not None else _size_at(int(level), x, current)
            current = block(current, skip, size)
        logits: Tensor = self.head(current)
        return logits


def _size_at(level: int, volume: Tensor, coarser: Tensor) -> torch.Size:
    """Return the size of a level without a skip; an axis that the coarser map kept finer stays so."""
    return torch.Size(max(-(-n // level), own) for n, own in zip(volume.shape[2:], coarser.shape[2:], strict=True))
