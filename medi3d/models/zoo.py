"""2D networks by name, whichever library they come from: timm's by timm's names, torchvision's behind a prefix."""

from __future__ import annotations

import fnmatch
from types import ModuleType

from torch import nn

from medi3d.errors import ConfigError
from medi3d.models import timm_backbones, torchvision_backbones
from medi3d.models.backbone import Backbone, SliceSize, StateDict
from medi3d.registry import unknown_name_message

TORCHVISION = "torchvision/"
"""Prefix of torchvision's networks: ``torchvision/resnet18`` is another network than timm's ``resnet18``."""


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names of the networks that match a shell pattern, sorted.

    Examples:
        >>> list_backbones("*resnet18")[-1]
        'torchvision/resnet18'
    """
    names = [*timm_backbones.list_names(), *(TORCHVISION + name for name in torchvision_backbones.list_names())]
    return sorted(fnmatch.filter(names, pattern))


def create_network(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Create the whole 2D classification network with random weights.

    Args:
        name: as :func:`list_backbones` gives it.
        num_classes: number of classes; ``None`` takes the library's own, mostly ImageNet's 1000.

    Raises:
        ConfigError: there is no network of that name.
    """
    library, own_name = _find_library(name)
    network: nn.Module = library.create_network(own_name, num_classes=num_classes)
    return network


def create_backbone(
    name: str,
    *,
    stages: int | None = None,
    image_size: SliceSize | None = None,
    state: StateDict | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """Create a 2D network that returns its stages' feature maps.

    Args:
        name: as :func:`list_backbones` gives it, for example ``"resnet50"`` or ``"torchvision/vit_b_16"``.
        stages: keep this many stages, finest first; ``None`` keeps all.
        image_size: (H, W) of the slices, for networks that are made for one size; ``None`` takes the size that the
            weights were trained at. Networks that take any size are made as always.
        state: the weights of the whole classification network, by the library's names; every tensor must fit.
        pretrained: without ``state``, take the library's own pretrained weights from its hub or the hub's cache.
        drop_path: stochastic depth of the last block, as timm's ``drop_path_rate``.

    Raises:
        ConfigError: unknown name, a network that gives no stage features, more stages than it has, a size that it
            cannot take, or stochastic depth of a network without.
        WeightsError: the weights cannot be had or do not fit.
    """
    library, own_name = _find_library(name)
    backbone: Backbone = library.create_features(
        own_name, stages=stages, image_size=image_size, state=state, pretrained=pretrained, drop_path=drop_path
    )
    return backbone


def _find_library(name: str) -> tuple[ModuleType, str]:
    """Return the module of the library that has a network, and the network's name there."""
    prefixed = name.startswith(TORCHVISION)
    library = torchvision_backbones if prefixed else timm_backbones
    own_name = name.removeprefix(TORCHVISION)
    if own_name not in library.list_names():
        raise ConfigError(
            unknown_name_message("backbone", name, list_backbones()).partition(" Known: ")[0]
            + " `medi3d models` lists them."
        )
    return library, own_name
