"""Segmentation networks: an encoder, a decoder of the table, one logit an output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medi3d.errors import ConfigError, InflationError
from medi3d.models.backbone import try_run
from medi3d.models.blocks import PointConv
from medi3d.models.classifier import create_class_head, pool_features
from medi3d.models.encoder import Encoder, resize_map
from medi3d.models.fpn import FPNDecoder
from medi3d.models.monai_decoders import BasicUNetDecoder, UnetrDecoder
from medi3d.models.outputs import Outputs
from medi3d.models.padding import crop_back, pad_to
from medi3d.models.pyramid import Pyramid, collect_maps, describe_pyramid
from medi3d.models.unet import UNetDecoder, UNetPlusPlusDecoder
from medi3d.registry import Registry


@dataclass(frozen=True)
class Decoder:
    """A row of :data:`DECODERS`.

    Args:
        create: makes the module that takes the encoder's maps by level and gives the decoder's by level.
        needs_multiples: whether volumes must be multiples of the coarsest stride, to which they are padded then.
    """

    create: Callable[[Pyramid], nn.Module]
    needs_multiples: bool = False


DECODERS: Registry[Decoder] = Registry("decoder")
"""``model.decoder`` → how it is made."""

DECODERS.add("unet", Decoder(UNetDecoder))
DECODERS.add("unetpp", Decoder(UNetPlusPlusDecoder))
DECODERS.add("fpn", Decoder(FPNDecoder))
DECODERS.add("monai/basic_unet", Decoder(BasicUNetDecoder, needs_multiples=True))
DECODERS.add("monai/unetr", Decoder(UnetrDecoder, needs_multiples=True))


class SegmentationNetwork(nn.Module):
    """Encoder, decoder, one logit an output; volumes of any size, padded where a part needs that.

    Args:
        encoder: gives the skips; the volume itself, scaled, is the skip at full resolution where the stem is strided.
        num_classes: number of outputs: labels with the background, or regions.
        decoder: a row of :data:`DECODERS`.
        decoder_channels: channels of the decoder at stride 1, 2, 4, …; the last entry serves coarser ones.
        dropout: probability of dropping a channel before a head.
        deep_supervision: number of coarser levels that give logits of their own in training (Lee et al. 2015,
            arXiv:1409.5185).
        num_target_classes: number of classes of a second head, on the encoder's pooled features; 0 has none.

    Raises:
        ConfigError: an unknown decoder, more supervised levels than it has, or no entry of ``decoder_channels``.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_classes: int,
        decoder_channels: tuple[int, ...],
        decoder: str = "unet",
        dropout: float = 0.0,
        deep_supervision: int = 0,
        num_target_classes: int = 0,
    ) -> None:
        super().__init__()
        row = DECODERS[decoder]
        pyramid = describe_pyramid(encoder, decoder_channels)
        self.encoder = encoder
        self.blocks = row.create(pyramid)
        self.head = _create_head(pyramid.widths[1], num_classes, dropout)
        if deep_supervision > len(pyramid.coarser):
            raise ConfigError(
                f"model.deep_supervision: the decoder has {len(pyramid.coarser)} levels that are coarser than its "
                f"output; got {deep_supervision}"
            )
        supervised = pyramid.coarser[:deep_supervision]
        self.coarse_heads = nn.ModuleDict(
            {str(level): _create_head(pyramid.widths[level], num_classes, dropout) for level in supervised}
        )
        # Norms over the batch make nothing of the two or so volumes that segmentation has in one.
        norm = nn.LayerNorm(sum(encoder.channels))
        self.class_head = (
            create_class_head(norm, sum(encoder.channels), num_target_classes, dropout) if num_target_classes else None
        )
        self._small_planes: dict[tuple[int, int], bool] = {}
        self._needs_multiples = row.needs_multiples
        self._multiples = encoder.strides[-1] if row.needs_multiples else (1, 1, 1)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Volume ``(B, C, D, H, W)`` → logits ``(B, num_classes, D, H, W)``, and all that is supervised in training."""
        size = x.shape[2:]
        padded = self._pad(x)
        features = self.encoder(padded)
        if self._needs_multiples:  # some networks cut off the border, as Inception does
            strides = self.encoder.strides
            features = [resize_map(m, padded.shape[2:], s) for m, s in zip(features, strides, strict=True)]
        maps = self.blocks(collect_maps(self.encoder, padded, features))
        logits = crop_back(self.head(maps[1]), size, padded.shape[2:])
        if not self.training or (not self.coarse_heads and self.class_head is None):
            return logits
        coarse = [
            crop_back(head(maps[int(level)]), size, padded.shape[2:]) for level, head in self.coarse_heads.items()
        ]
        return Outputs((logits, *coarse), self._classify(features) if self.class_head is not None else None)

    def classify(self, x: Tensor) -> Tensor:
        """Volume ``(B, C, D, H, W)`` → logits ``(B, num_target_classes)`` of the second head."""
        return self._classify(self.encoder(self._pad(x)))

    def _classify(self, features: Sequence[Tensor]) -> Tensor:
        assert self.class_head is not None, "a network without num_target_classes has no second head"
        logits: Tensor = self.class_head(pool_features(features))
        return logits

    def _pad(self, x: Tensor) -> Tensor:
        """Pad a volume to what encoder and decoder take; slices that the encoder cannot take it refuses itself."""
        if x.ndim != 5:
            return x
        rule, plane = self.encoder.slices, x.shape[3:]
        if rule.step is None:
            wanted = [max(n, own) for n, own in zip(plane, rule.size, strict=True)]
        else:
            steps = [math.lcm(rule.step, own) for own in self._multiples[1:]]
            wanted = [_round_up(n, step) for n, step in zip(plane, steps, strict=True)]
            coarsest = self.encoder.strides[-1][1:]
            if min(n // own for n, own in zip(wanted, coarsest, strict=True)) < 1 and not self._takes(wanted):
                wanted = [max(n, math.lcm(own, step)) for n, own, step in zip(wanted, coarsest, steps, strict=True)]
        return pad_to(x, (_round_up(x.shape[2], self._multiples[0]), *wanted))

    def _takes(self, plane: Sequence[int]) -> bool:
        """Whether the encoder takes slices that are smaller than its coarsest stride; some layers cannot."""
        key = (plane[0], plane[1])
        if key not in self._small_planes:
            try:
                self._small_planes[key] = try_run(self.encoder, (1, self.encoder.in_channels, 2, *plane)) is not None
            except InflationError:
                self._small_planes[key] = False
        return self._small_planes[key]


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _create_head(channels: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout3d(dropout), PointConv(channels, outputs))
