"""What a backbone becomes in 3D, measured on the encoder itself: for ``medi3d inspect``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medi3d.inflation import DepthPlan, Exactness, measure_exactness
from medi3d.inflation.parameters import ParameterFate, compare_parameters, match_names
from medi3d.inflation.receptive import DepthField, measure_depth_fields
from medi3d.inflation.verify import randomize_statistics
from medi3d.models.backbone import Backbone, try_run
from medi3d.models.creation import create_encoder
from medi3d.models.encoder import Encoder, inflate_backbone
from medi3d.models.inits import DEFAULT_INIT, INITS
from medi3d.models.matching import MatchReport
from medi3d.models.shared import is_shared
from medi3d.models.volumetric.networks import NETWORKS_3D
from medi3d.models.weights import find_imagenet_weights
from medi3d.models.zoo import create_backbone, create_network
from medi3d.types import IntTriple, PathLike


@dataclass(frozen=True)
class Stage:
    """One feature map of an encoder.

    Args:
        channels: of the map.
        stride: ``(D, H, W)``.
        parameters: how many numbers this stage depends on and the stages before it do not.
        depth_field: the slices that its middle depends on.
    """

    channels: int
    stride: IntTriple
    parameters: int
    depth_field: DepthField


@dataclass(frozen=True)
class Inspection:
    """What `inspect_encoder` found.

    Args:
        stages: finest first.
        exactness: as measured; ``None`` where the kernels do not come from a 2D network.
        fates: what became of each tensor of the 2D network; empty where the kernels do not come from one.
        filters: kernel of the first layer, (O, C, T, kH, kW).
        report: what became of each tensor of the file of a 3D network or checkpoint; ``None`` for 2D networks.
    """

    stages: tuple[Stage, ...]
    exactness: Exactness | None
    fates: tuple[ParameterFate, ...]
    filters: Tensor
    report: MatchReport | None = None


def inspect_encoder(
    name: str,
    *,
    init: str = DEFAULT_INIT,
    in_channels: int = 1,
    weights: PathLike | None = None,
    random_weights: bool = False,
    plan: DepthPlan | str = "symmetric",
) -> Inspection:
    """Create an encoder and measure what it is.

    Args:
        name: of the backbone.
        init: as `create_encoder` takes it.
        in_channels: channels of the volumes.
        weights: a file with the backbone's 2D weights.
        random_weights: inflate random 2D weights in place of pretrained ones, so that any architecture can be
            inspected offline.
        plan: as `create_encoder` takes it.

    Raises:
        ConfigError: unknown backbone, init or plan.
        InflationError: the backbone has no exact 3D form.
        WeightsError: pretrained weights that cannot be had.

    Examples:
        >>> found = inspect_encoder("resnet18", init="imagenet-overshoot", random_weights=True)
        >>> [(stage.channels, stage.depth_field.slices) for stage in found.stages]
        [(64, 7), (64, 43), (128, 99), (256, 211), (512, 435)]
    """
    profile = INITS.get(init)
    if name.partition("@")[0] in NETWORKS_3D or is_shared(name):
        own = "random" if random_weights else None if profile is not None else init
        encoder = create_encoder(name, init=own, in_channels=in_channels, plan=plan).eval()
        return _inspect_without_source(encoder, (32, 32))
    if profile is None:  # random, or a checkpoint: no 2D network to compare with
        encoder = create_encoder(name, init=init, in_channels=in_channels, plan=plan).eval()
        return _inspect_without_source(encoder, _find_plane(create_backbone(name)))
    backbone = _load_backbone(name, weights, random_weights=random_weights)
    plane = _find_plane(backbone)
    source = {key: tensor.clone() for key, tensor in backbone.module.state_dict().items()}
    encoder = inflate_backbone(backbone, name, scales=("unit",) * in_channels, profile=profile, plan=plan).eval()
    fates = _trace_parameters(create_network(name), source, encoder.body)
    return Inspection(
        stages=tuple(_measure_stages(encoder, plane)),
        exactness=_measure_exactness(backbone, encoder),
        fates=tuple(fates),
        filters=_find_filters(encoder),
    )


def _inspect_without_source(encoder: Encoder, plane: tuple[int, int]) -> Inspection:
    stages = _measure_stages(encoder, plane)
    return Inspection(tuple(stages), None, (), _find_filters(encoder), encoder.report)


def _load_backbone(name: str, weights: PathLike | None, *, random_weights: bool) -> Backbone:
    if random_weights:
        images = torch.randn(2, 3, *create_backbone(name).input_size, generator=torch.Generator().manual_seed(0))
        # Fresh norms and layer scales would let a signal vanish, and errors with it.
        return create_backbone(name, state=randomize_statistics(create_network(name), images).state_dict())
    state = find_imagenet_weights(name, None if weights is None else Path(weights))
    return create_backbone(name, state=state, pretrained=state is None)


def _find_plane(backbone: Backbone) -> tuple[int, int]:
    """Return the smallest (H, W) that a backbone takes, or the size that it was made for."""
    sides = [side for side in (32, 64, 96, 128) if backbone.takes((side, side))]
    fitting = (side for side in sides if try_run(backbone.module, (1, 3, side, side)) is not None)
    side = next(fitting, None)
    return backbone.input_size if side is None else (side, side)


def _measure_stages(encoder: Encoder, plane: tuple[int, int]) -> Iterator[Stage]:
    fields = measure_depth_fields(encoder, in_channels=encoder.in_channels, plane=plane)
    maps = encoder(torch.zeros(1, encoder.in_channels, 32, *plane))
    counted: set[Tensor] = set()
    for channels, stride, feature, field in zip(encoder.channels, encoder.strides, maps, fields, strict=True):
        new = set(_find_parameters(feature)) - counted
        counted |= new
        yield Stage(channels, stride, sum(parameter.numel() for parameter in new), field)


def _find_parameters(output: Tensor) -> Iterator[Tensor]:
    """Yield the parameters that a tensor was computed from, by the graph that autograd would go back through."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
        if hasattr(node, "variable"):
            yield node.variable


def _measure_exactness(backbone: Backbone, encoder: Encoder) -> Exactness:
    """Compare an encoder with the 2D backbone that it was made of."""
    depth = 2 * max(18, *backbone.strides)  # the deepest patches are told apart
    plane = (64, 48) if backbone.takes((64, 48)) else backbone.input_size
    in_channels = encoder.scaling.out_channels
    return measure_exactness(backbone.module, encoder.body, in_channels=in_channels, shape=(depth, *plane))


def _trace_parameters(network: nn.Module, source: dict[str, Tensor], body: nn.Module) -> list[ParameterFate]:
    """Follow the tensors of the whole 2D classifier through its feature extractor's into 3D.

    Args:
        network: the classifier, with any weights: of what the extractor took, ``source`` has the values.
        source: state dict of the extractor.
        body: the inflated extractor.
    """
    whole = network.state_dict()
    names = match_names(whole, source)
    taken = {name: source[names[name]] if name in names else tensor for name, tensor in whole.items()}
    return compare_parameters(taken, body.state_dict())


def _find_filters(encoder: Encoder) -> Tensor:
    """Return the first kernel that has depth, without the channel of ones that may be appended; else the first one."""
    kernels = [p.detach() for name, p in encoder.named_parameters() if p.ndim >= 4 and name.endswith("weight")]
    with_depth = [kernel for kernel in kernels if kernel.ndim == 5]
    first = with_depth[0] if with_depth else kernels[0].unsqueeze(2)
    return first[:, : encoder.in_channels]
