"""What a decoder is built for: the encoder's maps by their stride, and the levels between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from medi3d.errors import ConfigError
from medi3d.models.encoder import Encoder
from medi3d.types import IntTriple


@dataclass(frozen=True)
class Pyramid:
    """Levels of a decoder, each known by the stride of its longest axis.

    Args:
        levels: 2ⁿ, …, 4, 2, 1: coarse → fine.
        skips: level → channels of the map that comes from the encoder; 1 is the volume itself, scaled, where the stem
            is strided.
        widths: level → channels of the decoder; the coarsest has the encoder's.
        strides: level → (D, H, W).
    """

    levels: tuple[int, ...]
    skips: Mapping[int, int]
    widths: Mapping[int, int]
    strides: Mapping[int, IntTriple]

    @property
    def coarser(self) -> tuple[int, ...]:
        """Levels that the decoder computes but for the finest, fine → coarse."""
        return self.levels[-2:0:-1]

    def ratio(self, fine: int) -> IntTriple:
        """Return by how much a level's next coarser one is enlarged to it along D, H, W."""
        coarse = self.levels[self.levels.index(fine) - 1]
        depth, height, width = (c // f for c, f in zip(self.strides[coarse], self.strides[fine], strict=True))
        return depth, height, width


def describe_pyramid(encoder: Encoder, decoder_channels: Sequence[int]) -> Pyramid:
    """Return the levels of a decoder on an encoder.

    Args:
        encoder: gives the skips.
        decoder_channels: channels at stride 1, 2, 4, …; the last entry serves coarser ones.

    Raises:
        ConfigError: no entry of ``decoder_channels``.
    """
    if not decoder_channels:
        raise ConfigError("model.decoder_channels: give at least one entry")
    own = dict(zip((max(stride) for stride in encoder.strides), encoder.strides, strict=True))
    skips = dict(zip(own, encoder.channels, strict=True))
    skips.setdefault(1, encoder.in_channels)
    levels = tuple(2**power for power in range(max(skips).bit_length()))[::-1]
    widths = {level: decoder_channels[min(n, len(decoder_channels) - 1)] for n, level in enumerate(reversed(levels))}
    widths[levels[0]] = encoder.channels[-1]
    strides = {levels[0]: own.get(levels[0], (1, 1, 1))}
    for coarse, fine in pairwise(levels):
        depth, height, width = own.get(fine) or (min(fine, stride) for stride in strides[coarse])
        strides[fine] = (depth, height, width)
    return Pyramid(levels, skips, widths, strides)


def collect_maps(encoder: Encoder, volume: Tensor, features: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return the encoder's maps by their level, and the scaled volume as that of level 1 if there is no other."""
    maps = {max(stride): feature for stride, feature in zip(encoder.strides, features, strict=True)}
    maps.setdefault(1, encoder.scaling.scale(volume))
    return maps


def size_at(level: int, maps: Mapping[int, Tensor], coarser: Tensor) -> torch.Size:
    """Return the size of a level; where it has no map, an axis that the coarser map kept finer stays so."""
    if level in maps:
        return maps[level].shape[2:]
    volume = maps[1].shape[2:]
    return torch.Size(max(-(-n // level), own) for n, own in zip(volume, coarser.shape[2:], strict=True))
