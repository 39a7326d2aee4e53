"""A U-Net whose encoder is an inflated backbone.

After Ronneberger et al. 2015, arXiv:1505.04597, and in 3D Çiçek et al. 2016, arXiv:1606.06650.

Feature maps are enlarged to the size of the next finer one, whatever that is, so sizes need not be
multiples of the strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medi3d.errors import ConfigError
from medi3d.models.blocks import ConvBlock, PointConv
from medi3d.models.classifier import create_class_head, pool_features
from medi3d.models.encoder import Encoder
from medi3d.models.outputs import Outputs


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
    """Segmentation network: encoder, decoder, one logit an output.

    Args:
        encoder: gives the skips; the volume itself, scaled, is the skip at full resolution where the stem is strided.
        num_classes: number of outputs: labels with the background, or regions.
        decoder_channels: channels of the decoder at stride 1, 2, 4, …; the last entry serves coarser ones.
        dropout: probability of dropping a channel before a head.
        deep_supervision: number of coarser levels that give logits of their own in training (Lee et al. 2015,
            arXiv:1409.5185).
        num_target_classes: number of classes of a second head, on the encoder's pooled features; 0 has none.

    Raises:
        ConfigError: more supervised levels than the decoder has, or no entry of ``decoder_channels``.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_classes: int,
        decoder_channels: tuple[int, ...],
        dropout: float = 0.0,
        deep_supervision: int = 0,
        num_target_classes: int = 0,
    ) -> None:
        super().__init__()
        if not decoder_channels:
            raise ConfigError("model.decoder_channels: give at least one entry")
        self.encoder = encoder
        skips = dict(zip((max(stride) for stride in encoder.strides), encoder.channels, strict=True))
        skips.setdefault(1, encoder.in_channels)
        levels = [2**power for power in range(max(skips).bit_length())][::-1]  # coarse → fine
        width = {level: decoder_channels[min(i, len(decoder_channels) - 1)] for i, level in enumerate(reversed(levels))}
        width[levels[0]] = encoder.channels[-1]
        self.blocks = nn.ModuleDict(
            {str(fine): UpBlock(width[coarse], skips.get(fine, 0), width[fine]) for coarse, fine in pairwise(levels)}
        )
        self.head = _create_head(width[1], num_classes, dropout)
        coarser = levels[-2:0:-1]  # fine → coarse, without the finest and the encoder's last
        if deep_supervision > len(coarser):
            raise ConfigError(
                f"model.deep_supervision: the decoder has {len(coarser)} levels that are coarser than its output; got "
                f"{deep_supervision}"
            )
        supervised = coarser[:deep_supervision]
        self.coarse_heads = nn.ModuleDict(
            {str(level): _create_head(width[level], num_classes, dropout) for level in supervised}
        )
        # Norms over the batch make nothing of the two or so volumes that segmentation has in one.
        norm = nn.LayerNorm(sum(encoder.channels))
        self.class_head = (
            create_class_head(norm, sum(encoder.channels), num_target_classes, dropout) if num_target_classes else None
        )

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Volume ``(B, C, D, H, W)`` → logits ``(B, num_classes, D, H, W)``, and all that is supervised in training."""
        features = self.encoder(x)
        maps = self._decode(x, features)
        logits: Tensor = self.head(maps["1"])
        if not self.training or (not self.coarse_heads and self.class_head is None):
            return logits
        coarse = [head(maps[level]) for level, head in self.coarse_heads.items()]
        return Outputs((logits, *coarse), self._classify(features) if self.class_head is not None else None)

    def classify(self, x: Tensor) -> Tensor:
        """Volume ``(B, C, D, H, W)`` → logits ``(B, num_target_classes)`` of the second head."""
        return self._classify(self.encoder(x))

    def _classify(self, features: Sequence[Tensor]) -> Tensor:
        assert self.class_head is not None, "a network without num_target_classes has no second head"
        logits: Tensor = self.class_head(pool_features(features))
        return logits

    def _decode(self, x: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the decoder's map at each stride."""
        skips = {str(max(stride)): feature for stride, feature in zip(self.encoder.strides, features, strict=True)}
        skips.setdefault("1", self.encoder.scaling.scale(x))
        current = features[-1]
        maps = {str(max(self.encoder.strides[-1])): current}
        for level, block in self.blocks.items():
            skip = skips.get(level)
            size = skip.shape[2:] if skip is not None else _size_at(int(level), x, current)
            current = maps[level] = block(current, skip, size)
        return maps


def _create_head(channels: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout3d(dropout), PointConv(channels, outputs))


def _size_at(level: int, volume: Tensor, coarser: Tensor) -> torch.Size:
    """Return the size of a level without a skip; an axis that the coarser map kept finer stays so."""
    return torch.Size(max(-(-n // level), own) for n, own in zip(volume.shape[2:], coarser.shape[2:], strict=True))
