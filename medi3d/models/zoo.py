"""2D backbones: the only module that imports timm.

A backbone is a module that maps ``(B, 3, H, W)`` to a list of feature maps, and what its weights were trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from medi3d.errors import ConfigError, WeightsError
from medi3d.registry import unknown_name_message

logger = logging.getLogger(__name__)

StateDict = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Backbone:
    """A 2D network that gives one feature map a stage.

    Attributes:
        module: ``(B, C, H, W)`` → list of ``(B, channels[i], H / strides[i], W / strides[i])``.
        channels: channels of each stage, finest first.
        strides: in-plane stride of each stage.
        mean: per RGB channel, what the weights' training subtracted from pixels in [0, 1].
        std: per RGB channel, what it divided by.
    """

    module: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names of timm's networks that match a shell pattern, sorted."""
    return sorted(timm.list_models(pattern))


def create_network(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Create timm's whole classification network with random weights.

    Raises:
        ConfigError: timm has no network of that name.
    """
    _check_name(name)
    options = {} if num_classes is None else {"num_classes": num_classes}
    network: nn.Module = timm.create_model(name, **options)
    return network


def create_backbone(
    name: str,
    *,
    stages: int | None = None,
    state: StateDict | None = None,
    pretrained: bool = False,
) -> Backbone:
    """Create a 2D network that returns its stages' feature maps.

    Args:
        name: timm's name of the network, for example ``"resnet50"``.
        stages: keep this many stages, finest first; ``None`` keeps all.
        state: the weights of the whole classification network, by timm's names; every tensor must fit.
        pretrained: without ``state``, take timm's own pretrained weights from the hub or its cache.

    Raises:
        ConfigError: unknown name, a network that gives no stage features, or more stages than it has.
        WeightsError: the weights cannot be had or do not fit.
    """
    _check_name(name)
    overlay: dict[str, object] = {}
    if state is not None:
        _check_fits(name, state)
        overlay = {"pretrained_cfg_overlay": {"state_dict": dict(state)}}
    module, channels, strides = _create_features(name, pretrained or state is not None, overlay)
    if stages is not None and stages > len(channels):
        raise ConfigError(
            f"{name} has {len(channels)} stages (strides {strides}); {stages} were asked for: set model.stages"
        )
    if stages is not None and stages < len(channels):
        indices = tuple(range(stages))
        overlay["out_indices"] = indices
        module, channels, strides = _create_features(name, pretrained or state is not None, overlay)
    _drop_unused_blocks(module)
    trained_on = timm.get_pretrained_cfg(name)
    mean, std = (trained_on.mean, trained_on.std) if trained_on else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Backbone(module, tuple(channels), tuple(strides), tuple(mean), tuple(std))


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise ConfigError(
            unknown_name_message("backbone", name, timm.list_models()).partition(" Known: ")[0]
            + " `medi3d models` lists them."
        )


def _check_fits(name: str, state: StateDict) -> None:
    """Load the weights strictly into the whole network, so that nothing is left out in silence."""
    try:
        create_network(name, num_classes=_num_classes(name, state)).load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"the weights do not fit {name}: {' '.join(str(error).split())[:300]}") from None


def _num_classes(name: str, state: StateDict) -> int | None:
    classifier = timm.get_pretrained_cfg(name).classifier if timm.get_pretrained_cfg(name) else None
    bias = state.get(f"{classifier}.bias") if isinstance(classifier, str) else None
    return None if bias is None else int(bias.shape[0])


def _create_features(
    name: str, pretrained: bool, options: Mapping[str, object]
) -> tuple[nn.Module, list[int], list[int]]:
    # timm reports the classifier's weights as unexpected in a network without one; _check_fits has checked them all.
    timm_log = logging.getLogger("timm.models._builder")
    level = timm_log.level
    timm_log.setLevel(logging.ERROR)
    try:
        module = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except (OSError, ValueError) as error:
        if pretrained and "pretrained_cfg_overlay" not in options:
            raise _no_weights(name, type(error).__name__) from None
        raise
    except (RuntimeError, AttributeError, AssertionError, NotImplementedError) as error:
        if "No pretrained weights exist" in str(error):
            raise _no_weights(name, "timm knows of none") from None
        raise ConfigError(f"{name} gives no stage features ({error}); choose another backbone") from None
    finally:
        timm_log.setLevel(level)
    return module, module.feature_info.channels(), module.feature_info.reduction()


def _no_weights(name: str, reason: str) -> WeightsError:
    return WeightsError(
        f"no pretrained weights of {name} could be had from the hub or its cache ({reason}): "
        f"connect once to fill the cache, name a file with --weights, or train from scratch with --init random"
    )


def _drop_unused_blocks(module: Any) -> None:
    """Cut off the blocks after the last stage, which timm's EfficientNet and MobileNet would still run through."""
    root, _, last = module.feature_info.module_name()[-1].partition(".")
    if root == "blocks" and last.isdigit():
        module.blocks = module.blocks[: int(last) + 1]
