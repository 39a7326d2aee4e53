"""Encoders in MONAI's networks; importing this module makes them known there.

``FlexibleUNet`` takes every backbone as ``backbone="medi3d/NAME"``; `EncoderWithFPN` is a feature extractor for
``RetinaNet``, `create_trunk` a model for ``NetAdapter``. Decoders of BasicUNet's and SwinUNETR's blocks are those of
`medi3d.create_model`: ``decoder="monai/basic_unet"`` and ``"monai/unetr"``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from monai.networks.blocks import BaseEncoder
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import Tensor, nn

from medi3d.errors import ConfigError
from medi3d.models.backbone import is_pyramid
from medi3d.models.creation import create_encoder
from medi3d.models.encoder import PYRAMID_STRIDES, Encoder, resize_map
from medi3d.models.pyramid import collect_maps
from medi3d.models.volumetric.networks import NETWORKS_3D
from medi3d.models.zoo import create_backbone, list_backbones
from medi3d.types import IntTriple

PREFIX = "medi3d/"
"""What the encoders' names in MONAI's register begin with."""

_LEVELS = (2, 4, 8, 16, 32)
"""The strides that FlexibleUNet's five maps may have."""


class FlexibleUNetEncoder(nn.Module, BaseEncoder):  # type: ignore[misc]  # MONAI is untyped
    """An encoder as ``FlexibleUNet`` wants it: one map at each of the strides 2, 4, 8, …, along all axes.

    A level that the backbone has no map for, as ConvNeXt at stride 2, is the volume itself, averaged over channels and
    voxels; a map that is finer along an axis is averaged along it.

    Args:
        name: what `medi3d.create_encoder` takes.
        in_channels: channels of the volumes, in [0, 1].
        spatial_dims: 3.
        pretrained: take the weights that go with the name, else random ones.

    Raises:
        ConfigError: other ``spatial_dims``, or a backbone that is unknown.
        WeightsError: weights that cannot be had.
    """

    def __init__(self, name: str, in_channels: int = 1, spatial_dims: int = 3, pretrained: bool = False) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise ConfigError(f"{PREFIX}{name} is an encoder of volumes: give spatial_dims=3; got {spatial_dims}")
        self.encoder = create_encoder(name, in_channels=in_channels, init=None if pretrained else "random")
        coarsest = max(self.encoder.strides[-1])
        self.levels = tuple(level for level in _LEVELS if level <= coarsest)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(B, C, D, H, W)`` of multiples of the coarsest stride → one map a level, finest first."""
        maps = collect_maps(self.encoder, x, self.encoder(x))
        strides = {max(stride): stride for stride in self.encoder.strides}
        volume = self.encoder.scaling.scale(x).mean(1, keepdim=True)
        coarse = [_coarsen(maps.get(level, volume), strides.get(level, (1, 1, 1)), level) for level in self.levels]
        # Some networks cut off the border, as Inception does.
        return [resize_map(m, x.shape[2:], (level,) * 3) for m, level in zip(coarse, self.levels, strict=True)]

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """Return the names of all backbones, with the prefix."""
        return [f"{PREFIX}{name}" for name in [*NETWORKS_3D, *list_backbones()]]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """Return the channels of each backbone's maps; each backbone is made for it, which takes minutes in all."""
        return [_Row(name)["feature_channel"] for name in cls.get_encoder_names()]

    @classmethod
    def num_outputs(cls) -> list[int]:
        """Return the number of each backbone's maps; likewise."""
        return [_Row(name)["feature_number"] for name in cls.get_encoder_names()]

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, Any]]:
        """Return the arguments that create each encoder."""
        return [_Row(name)["parameter"] for name in cls.get_encoder_names()]


class _Row(Mapping[str, Any]):
    """A row of MONAI's register whose channels are found when they are asked for."""

    _KEYS = ("type", "feature_number", "feature_channel", "parameter")

    def __init__(self, name: str) -> None:
        self.name = name.removeprefix(PREFIX)

    @cached_property
    def _channels(self) -> tuple[int, ...]:
        """Channels of the maps; a level that the backbone lacks has one."""
        own, coarsest = _describe(self.name)
        return tuple(own.get(level, 1) for level in _LEVELS if level <= coarsest)

    def __getitem__(self, key: str) -> Any:
        values: dict[str, Any] = {
            "type": FlexibleUNetEncoder,
            "parameter": {"name": self.name, "in_channels": 1, "spatial_dims": 3, "pretrained": False},
        }
        if key == "feature_channel":
            return self._channels
        return len(self._channels) if key == "feature_number" else values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._KEYS)

    def __len__(self) -> int:
        return len(self._KEYS)


def _describe(name: str) -> tuple[dict[int, int], int]:
    """Return stride → channels of a backbone's maps, and the coarsest stride."""
    network = name.partition("@")[0]
    if network in NETWORKS_3D:
        encoder = create_encoder(network, init="random")
        strides: Sequence[int] = [max(stride) for stride in encoder.strides]
        channels = encoder.channels
    else:
        backbone = create_backbone(name)
        strides, channels = backbone.strides, backbone.channels
        if not is_pyramid(strides):
            strides = PYRAMID_STRIDES[: len(strides)]
    return dict(zip(strides, channels, strict=True)), max(strides)


def _coarsen(feature: Tensor, stride: IntTriple, level: int) -> Tensor:
    """Average a map of one stride to another that is the same along all axes."""
    window = [level // own for own in stride]
    return F.avg_pool3d(feature, window, window, ceil_mode=True) if max(window) > 1 else feature


class EncoderWithFPN(nn.Module):
    """A feature pyramid on an encoder, as MONAI's ``RetinaNet`` takes it: MONAI's ``BackboneWithFPN`` on any encoder.

    Args:
        encoder: gives the maps.
        out_channels: of each level.
        stages: which of its maps, finest first; ``None`` takes all but the finest one.

    Attributes:
        out_channels: as above.
        size_divisible: ``(D, H, W)`` that volumes must be multiples of.

    Example:
        >>> import torch
        >>> from medi3d.models import create_encoder
        >>> extractor = EncoderWithFPN(create_encoder("tf_efficientnet_lite0", init="random", stages=3), out_channels=8)
        >>> [tuple(m.shape[1:]) for m in extractor(torch.zeros(1, 1, 16, 32, 32)).values()]
        [(8, 4, 8, 8), (8, 2, 4, 4), (8, 1, 2, 2)]
    """

    def __init__(self, encoder: Encoder, *, out_channels: int = 256, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages = tuple(
            range(min(1, len(encoder.channels) - 1), len(encoder.channels)) if stages is None else stages
        )
        if not set(self.stages) <= set(range(len(encoder.channels))) or not self.stages:
            raise ConfigError(f"stages: the encoder's are 0 to {len(encoder.channels) - 1}; got {list(self.stages)}")
        self.fpn = FeaturePyramidNetwork(
            spatial_dims=3,
            in_channels_list=[encoder.channels[stage] for stage in self.stages],
            out_channels=out_channels,
            extra_blocks=LastLevelMaxPool(3),
        )
        self.out_channels = out_channels
        depth, height, width = encoder.strides[self.stages[-1]]
        self.size_divisible: IntTriple = (2 * depth, 2 * height, 2 * width)  # the last level halves once more

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``(B, C, D, H, W)`` → name → ``(B, out_channels, …)``, finest first, and one that is coarser still."""
        maps = self.encoder(x)
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(stage), maps[stage]) for stage in self.stages))
        return levels


class CoarsestMap(nn.Module):
    """An encoder that gives its last map alone.

    Args:
        encoder: gives the maps.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, D, H, W)`` → ``(B, channels[-1], …)``."""
        last: Tensor = self.encoder(x)[-1]
        return last


def create_trunk(encoder: Encoder, *, num_classes: int = 1) -> nn.Sequential:
    """Create a classifier in the form that MONAI's ``NetAdapter`` takes apart: features, average, linear layer.

    Args:
        encoder: gives the features.
        num_classes: number of outputs of the linear layer, which ``NetAdapter`` replaces.

    Example:
        >>> import torch
        >>> from medi3d.models import create_encoder
        >>> trunk = create_trunk(create_encoder("tf_efficientnet_lite0", init="random", stages=2), num_classes=4)
        >>> trunk(torch.zeros(2, 1, 8, 16, 16)).shape
        torch.Size([2, 4])
    """
    return nn.Sequential(
        OrderedDict(
            features=CoarsestMap(encoder),
            pool=nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()),
            fc=nn.Linear(encoder.channels[-1], num_classes),
        )
    )


def register_encoder(name: str) -> str:
    """Let ``FlexibleUNet`` know an encoder; all that `medi3d.models.zoo.list_backbones` lists are known already.

    Args:
        name: what `medi3d.create_encoder` takes, such as ``medicalnet:resnet50@resnet_50.pth``.

    Returns:
        Its name there.
    """
    FLEXUNET_BACKBONE.register_dict[f"{PREFIX}{name}"] = _Row(name)
    return f"{PREFIX}{name}"


for _name in FlexibleUNetEncoder.get_encoder_names():
    register_encoder(_name.removeprefix(PREFIX))
