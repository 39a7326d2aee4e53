"""torchvision's classification networks as 2D backbones: the only module that imports torchvision.

Stages are found, not listed: the network is traced, and the last layer at each stride that everything passes through
ends a stage.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.models.vision_transformer import interpolate_embeddings

from medi3d.errors import ConfigError, WeightsError
from medi3d.models.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    ChannelsFirst,
    SliceRule,
    SliceSize,
    StateDict,
    check_stages,
    find_size_step,
    run_for_shapes,
    spread_evenly,
    try_run,
)

_OPTIONS: dict[str, dict[str, Any]] = {
    # Auxiliary heads serve the training of the classifier alone; without init_weights=False both warn.
    name: {"aux_logits": False, "init_weights": False}
    for name in ("googlenet", "inception_v3")
}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_HEADS = ("classifier", "fc", "head", "heads")
_SIZE_PROBE = 224
"""By how many pixels two trial inputs differ: a multiple of every stride, so that it tells them without rounding."""


def list_names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    return list(torchvision.models.list_models(module=torchvision.models))


def create_network(name: str, *, num_classes: int | None = None, image_size: SliceSize | None = None) -> nn.Module:
    """Create the whole classification network with random weights, without auxiliary heads."""
    options = {**_OPTIONS.get(name, {}), **_size_options(name, image_size or _own_size(name))}
    if num_classes is not None:
        options["num_classes"] = num_classes
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
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
    if drop_path:
        raise ConfigError(
            f"model.drop_path: only timm's networks take stochastic depth here, not torchvision/{name}; set it to 0"
        )
    plan = _plan(name, image_size)
    check_stages(f"torchvision/{name}", [tap.stride for tap in plan.taps], stages)
    if pretrained and state is None:
        state = _load_pretrained(name)
    classes = None if state is None else _count_classes(name, state)
    network = create_network(name, num_classes=classes, image_size=plan.slices.size)
    if state is not None:
        try:
            network.load_state_dict(dict(_fit_state(name, state, plan.slices.size)), strict=True)
        except RuntimeError as error:
            raise WeightsError(
                f"the weights do not fit torchvision/{name}: {' '.join(str(error).split())[:300]}"
            ) from None
    mean, std = _statistics(name)
    taps = plan.taps[:stages]
    return Backbone(
        _extract(network, taps),
        channels=tuple(tap.channels for tap in taps),
        strides=tuple(tap.stride for tap in taps),
        mean=mean,
        std=std,
        slices=plan.slices,
    )


# --- weights


def _count_classes(name: str, state: StateDict) -> int | None:
    """Return the number of classes of the network that a state dict comes from."""
    biases = [key for key in state if key.split(".")[0] in _HEADS and key.endswith(".bias")]
    return int(state[biases[-1]].shape[0]) if biases else None


def _fit_state(name: str, state: StateDict, size: SliceSize) -> StateDict:
    """Return the weights without those of auxiliary heads, a ViT's position table resampled to the size."""
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(_AUXILIARY)}
    if not name.startswith("vit_"):
        return kept
    patch = kept["conv_proj.weight"].shape[-1]
    fitted: StateDict = interpolate_embeddings(size[0], patch, dict(kept))
    return fitted


def _load_pretrained(name: str) -> StateDict:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: StateDict = weights.get_state_dict(progress=False)
    except (OSError, RuntimeError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise WeightsError(
            f"no pretrained weights of torchvision/{name} could be had from {weights.url} or the cache {folder} "
            f"({type(error).__name__}): connect once or put the file there, name a file with --weights, or train from "
            f"scratch with --init random"
        ) from None
    return state


def _statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and deviation that the weights' training normalised RGB by."""
    if name in _OPTIONS:
        # Their weights are TensorFlow's; torchvision's transform_input, which is off here, brings ImageNet's
        # statistics back to these.
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return tuple(getattr(transforms, "mean", IMAGENET_MEAN)), tuple(getattr(transforms, "std", IMAGENET_STD))


# --- sizes


def _own_size(name: str) -> SliceSize:
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    side = int(transforms.crop_size[0])
    return side, side


def _size_options(name: str, size: SliceSize) -> dict[str, Any]:
    """Return the options that make a network of fixed size for slices of ``size``."""
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise ConfigError(f"torchvision/{name} takes square slices only, not {size[0]} × {size[1]}")
        return {"image_size": size[0]}
    return {"input_size": size} if name.startswith("maxvit_") else {}


# --- stages


@dataclass(frozen=True)
class _Tap:
    """Where a stage's feature map is taken from."""

    node: str
    channels: int
    stride: int
    layout: str
    prefix: int = 0


@dataclass(frozen=True)
class _Plan:
    taps: tuple[_Tap, ...]
    slices: SliceRule


@functools.cache
def _plan(name: str, image_size: SliceSize | None) -> _Plan:
    if image_size is None:
        return _describe(name, _own_size(name))
    own = _plan(name, None)
    if own.slices.allows(image_size):
        return own
    try:
        return _describe(name, image_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"torchvision/{name} cannot be made for slices of {image_size[0]} × {image_size[1]} pixels ({reason}); it "
            f"takes {own.slices}: set the patch size"
        ) from None


def _describe(name: str, size: SliceSize) -> _Plan:
    small, cuts = _observe(name, size)
    grown = (size[0] + _SIZE_PROBE, size[1] + _SIZE_PROBE)
    large, _ = _observe(name, grown)
    found = [_tap(node, small[node], large[node], size, grown) for node in cuts]
    taps = _choose([tap for tap in found if tap is not None])
    network = _hollow_network(name, size)
    steps = sorted({1, max(tap.stride for tap in taps), *size})
    step = find_size_step(lambda near: try_run(network, (1, 3, *near)) is not None, size, steps)
    return _Plan(taps, SliceRule(size, step))


def _hollow_network(name: str, size: SliceSize) -> nn.Module:
    # RegNet computes its widths with tensors while it is made, and cannot be made without values.
    with nullcontext() if name.startswith("regnet_") else torch.device("meta"):
        return create_network(name, image_size=size).eval()


def _observe(name: str, size: SliceSize) -> tuple[dict[str, torch.Size], list[str]]:
    """Return the shape of every tensor in the network for slices of ``size``, and the nodes that all data passes."""
    network = _hollow_network(name, size)
    names = [node for node in get_graph_node_names(network)[1] if node.split(".")[0] not in _HEADS]
    extractor = create_feature_extractor(network, return_nodes={node: node for node in names[1:]}).eval()
    values = run_for_shapes(extractor, (1, 3, *size))
    shapes = {node: value.shape for node, value in values.items() if isinstance(value, Tensor)}
    output = next(node for node in extractor.graph.nodes if node.op == "output")
    named = {node: name for name, node in output.args[0].items() if name in shapes}
    return shapes, list(_cut_points(extractor.graph, named))


def _cut_points(graph: fx.Graph, named: Mapping[fx.Node, str]) -> Iterator[str]:
    """Yield the nodes after which no earlier tensor is used: the ends of blocks, not of a block's branches."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    reach = 0
    for node in graph.nodes:
        if reach <= place[node] and node in named:
            yield named[node]
        if node in named or node.op == "placeholder":
            reach = max([reach, *(place[user] for user in node.users if user.op != "output")])


def _tap(node: str, small: torch.Size, large: torch.Size, size: SliceSize, grown: SliceSize) -> _Tap | None:
    """Describe a tensor by how its shape grows with the slice; ``None`` where it is no map of the slice's places."""
    growing = tuple(axis for axis, (one, other) in enumerate(zip(small, large, strict=True)) if one != other)
    if len(small) == 3 and growing == (1,):
        # Tokens: prefix + (H / stride) · (W / stride).
        area = (grown[0] * grown[1] - size[0] * size[1]) / (large[1] - small[1])
        stride = round(math.sqrt(area))
        prefix = small[1] - (size[0] // stride) * (size[1] // stride)
        return _Tap(node, small[2], stride, "tokens", prefix)
    layouts: dict[tuple[int, ...], str] = {(2, 3): "NCHW", (1, 2): "NHWC"}
    if len(small) != 4 or growing not in layouts:
        return None
    layout = layouts[growing]
    stride = round((grown[0] - size[0]) / (large[growing[0]] - small[growing[0]]))
    return _Tap(node, small[layout.index("C")], stride, layout)


def _choose(taps: Sequence[_Tap]) -> tuple[_Tap, ...]:
    """Return the last tap of each stride; where all have one stride, several, spread over the blocks."""
    last_of_stride = {tap.stride: tap for tap in taps}
    if len(last_of_stride) > 1:
        return tuple(last_of_stride.values())
    last_of_block = {tap.node.rpartition(".")[0]: tap for tap in taps if tap.layout == "tokens"}
    blocks = list(last_of_block.values())
    return tuple(blocks[place] for place in spread_evenly(len(blocks)))


def _extract(network: nn.Module, taps: Sequence[_Tap]) -> nn.Module:
    """Return the network up to its last tap, giving a list of maps (B, C, H, W)."""
    nodes = {tap.node: str(n) for n, tap in enumerate(taps)}
    extractor = create_feature_extractor(network, return_nodes=nodes).eval()
    # torchvision's extractor swaps a graph for training and one for evaluation, and its copies are in training mode
    # whatever the original was in. Here the layers themselves know their mode, so that one graph serves both.
    module = fx.GraphModule(extractor, extractor.graph).train(network.training)
    return ChannelsFirst(module, [tap.layout for tap in taps], prefix=taps[0].prefix, stride=taps[0].stride)
