"""timm's networks as 2D backbones: the only module that imports timm."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from medi3d.errors import ConfigError, WeightsError
from medi3d.models.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    SliceRule,
    SliceSize,
    StateDict,
    check_stages,
    find_size_step,
    is_pyramid,
    spread_evenly,
    try_run,
)

_ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True, "strict_img_size": False}
"""Options by which timm's networks take slices of other sizes than the one they are made for."""

_REFUSALS = (RuntimeError, AttributeError, AssertionError, NotImplementedError, TypeError, ValueError)
"""What timm raises for options that a network cannot be made with."""


def list_names() -> list[str]:
    """Return the names of timm's networks."""
    return list(timm.list_models())


def create_network(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Create the whole classification network with random weights."""
    options = {} if num_classes is None else {"num_classes": num_classes}
    network: nn.Module = timm.create_model(name, **options)
    return network


def create_features(
    name: str,
    *,
    stages: int | None,
    image_size: SliceSize | None,
    state: StateDict | None,
    pretrained: bool,
    drop_path: float,
) -> Backbone:
    """Create the network that returns its stages' feature maps; see `medi3d.models.zoo.create_backbone`."""
    plan = _plan(name, image_size)
    check_stages(name, plan.strides, stages)
    if state is not None:
        _check_fits(name, state)
    indices = plan.indices[:stages]
    options: dict[str, Any] = {**plan.options, "out_indices": indices}
    if drop_path:
        _check_drops(name, drop_path)
        options["drop_path_rate"] = drop_path
    if state is not None:
        options["pretrained_cfg_overlay"] = {"state_dict": dict(state)}
    try:
        with _quiet_builder():
            module = timm.create_model(name, features_only=True, pretrained=pretrained or state is not None, **options)
    except (OSError, *_REFUSALS) as error:
        raise _weights_error(name, error, state) from error
    _drop_unused_blocks(module)
    config = timm.get_pretrained_cfg(name)
    return Backbone(
        module,
        channels=plan.channels[:stages],
        strides=plan.strides[:stages],
        mean=tuple(config.mean) if config else IMAGENET_MEAN,
        std=tuple(config.std) if config else IMAGENET_STD,
        slices=plan.slices,
    )


@dataclass(frozen=True)
class _Plan:
    """How a network is made so that it gives feature maps, learned from one without values."""

    options: Mapping[str, Any]
    indices: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    slices: SliceRule


@functools.cache
def _plan(name: str, image_size: SliceSize | None) -> _Plan:
    with torch.device("meta"):
        network = timm.create_model(name)
    settings = _settings(type(network))
    options: dict[str, Any] = {key: value for key, value in _ANY_SIZE.items() if key in settings}
    if image_size is None:
        config = network.pretrained_cfg
        return _describe(_create_hollow(name, options), options, tuple(config.get("input_size", (3, 224, 224))[1:]))
    own = _plan(name, None)
    if own.slices.allows(image_size):
        return own
    options["img_size"] = image_size
    try:
        module = _create_hollow(name, options) if "img_size" in settings else None
    except _REFUSALS:
        module = None
    if module is None or try_run(module, (1, 3, *image_size)) is None:
        raise ConfigError(
            f"{name} cannot be made for slices of {image_size[0]} × {image_size[1]} pixels; it takes {own.slices}: set "
            "the patch size"
        )
    return _describe(module, options, image_size)


def _settings(network: type[nn.Module]) -> set[str]:
    """Return the names of the options that a network's class and its base classes take."""
    inits = [vars(cls)["__init__"] for cls in network.__mro__ if "__init__" in vars(cls) and cls is not object]
    return {name for init in inits for name in inspect.signature(init).parameters}


def _create_hollow(name: str, options: dict[str, Any]) -> Any:
    """Create the feature extractor without values, and add to ``options`` what it takes to give usable maps."""
    with torch.device("meta"):
        try:
            module = timm.create_model(name, features_only=True, **options)
        except _REFUSALS as error:
            raise ConfigError(f"{name} gives no stage features ({error}); choose another backbone") from None
        if str(getattr(module, "output_fmt", "NCHW")).endswith("NHWC"):
            options["feature_cls"] = "getter"  # brings maps that are channels-last inside to (B, C, H, W)
            module = timm.create_model(name, features_only=True, **options)
        if not is_pyramid(module.feature_info.reduction()):
            options["out_indices"] = tuple(spread_evenly(len(module.feature_info.info)))
            module = timm.create_model(name, features_only=True, **options)
    return module


def _describe(module: Any, options: dict[str, Any], size: SliceSize) -> _Plan:
    info = module.feature_info
    strides = tuple(int(stride) for stride in info.reduction())
    step = find_size_step(
        lambda near: try_run(module, (1, 3, *near)) is not None,
        size,
        sorted({1, min(strides), max(strides), 2 * max(strides), 8 * max(strides)}),
    )
    return _Plan(options, tuple(info.out_indices), tuple(info.channels()), strides, SliceRule(size, step))


def _check_drops(name: str, drop_path: float) -> None:
    """Refuse stochastic depth where a network does not take it, or takes it and has no path to drop."""
    try:
        with torch.device("meta"):
            network = timm.create_model(name, drop_path_rate=drop_path)
    except TypeError:
        network = None
    if network is None or not any(getattr(part, "drop_prob", 0) for part in network.modules()):
        raise ConfigError(f"model.drop_path: {name} has no stochastic depth; set it to 0, or choose another backbone")


def _check_fits(name: str, state: StateDict) -> None:
    """Load the weights strictly into the whole network, so that nothing is left out in silence."""
    try:
        create_network(name, num_classes=_count_classes(name, state)).load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"the weights do not fit {name}: {' '.join(str(error).split())[:300]}") from None


def _count_classes(name: str, state: StateDict) -> int | None:
    """Return the number of classes of the network that a state dict comes from; ``None`` where no bias tells."""
    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if config else None
    bias = state.get(f"{classifier}.bias") if isinstance(classifier, str) else None
    return None if bias is None else int(bias.shape[0])


@contextmanager
def _quiet_builder() -> Iterator[None]:
    """Hide timm's note that the classifier's weights are unexpected in a network without one; they were checked."""
    log = logging.getLogger("timm.models._builder")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _weights_error(name: str, error: Exception, state: StateDict | None) -> WeightsError:
    if state is not None:
        return WeightsError(f"the weights do not fit {name} as it is made here: {' '.join(str(error).split())[:300]}")
    reason = "timm knows of none" if "No pretrained weights exist" in str(error) else type(error).__name__
    return WeightsError(
        f"no pretrained weights of {name} could be had from the hub or its cache ({reason}): "
        f"connect once to fill the cache, name a file with --weights, or train from scratch with --init random"
    )


def _drop_unused_blocks(module: Any) -> None:
    """Cut off the blocks after the last stage, which timm's EfficientNet and MobileNet would still run through."""
    root, _, last = module.feature_info.module_name()[-1].partition(".")
    if root == "blocks" and last.isdigit() and hasattr(module, "blocks"):
        module.blocks = module.blocks[: int(last) + 1]
