"""A pretrained 3D encoder: a 2D backbone whose stem fits the volume's channels, inflated.

The first convolution sees what it was trained on: pixels normalised by the backbone's own mean and standard deviation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from medi3d.errors import ConfigError, WeightsError
from medi3d.inflation import PROFILES, Exactness, inflate, measure_exactness
from medi3d.models.stem import InputScale, InputScaling, find_stem, fit_input, set_stem_stride
from medi3d.models.weights import WEIGHTS_PACKAGES, find_imagenet_weights, read_weights_file
from medi3d.models.zoo import Backbone, create_backbone
from medi3d.registry import unknown_name_message
from medi3d.types import IntTriple, PathLike

INITS: dict[str, str | None] = {
    "imagenet-inflated": "mean",
    "imagenet-center": "center",
    "imagenet-overshoot": "overshoot",
    "random": None,
}
"""Initialisation → depth profile of the ImageNet weights; ``None`` draws random ones."""


class Encoder(nn.Module):
    """An inflated backbone that gives one feature map a stage.

    Attributes:
        in_channels: channels of the input volume.
        channels: channels of each feature map, finest first.
        strides: ``(D, H, W)`` stride of each feature map.
    """

    def __init__(
        self,
        scaling: InputScaling,
        body: nn.Module,
        *,
        in_channels: int,
        channels: tuple[int, ...],
        strides: tuple[IntTriple, ...],
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.body = body
        self.in_channels = in_channels
        self.channels = channels
        self.strides = strides

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the stages' feature maps.

        Args:
            x: ``(B, in_channels, D, H, W)``, on the scale that ``input_scale`` says; any D, H, W.

        Returns:
            One ``(B, channels[i], ~D / strides[i][0], ~H / strides[i][1], ~W / strides[i][2])`` a stage.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ConfigError(f"expected a volume (B, {self.in_channels}, D, H, W); got shape {tuple(x.shape)}")
        return list(self.body(self.scaling(x)))


def create_encoder(
    name: str,
    *,
    in_channels: int = 1,
    init: str = "imagenet-inflated",
    weights: PathLike | None = None,
    input_scale: InputScale | tuple[str, ...] = "unit",
    stages: int | None = None,
    stem_stride: int | None = None,
    depth_padding: Literal["replicate", "zeros"] = "replicate",
) -> Encoder:
    """Create a 3D encoder from a 2D backbone by inflation.

    Args:
        name: timm's name of the backbone, for example ``"tf_efficientnet_lite0"``.
        in_channels: channels of the volumes. Three are taken as RGB; of any other number each gets an equal share of
            the grey response, so that equal channels answer as the 2D network on the RGB copy.
        init: ``imagenet-inflated`` (I3D's mean), ``imagenet-center``, ``imagenet-overshoot``, ``random``, or the path
            of a medi3d checkpoint whose encoder is taken.
        weights: a file with the backbone's 2D weights; else an installed weights package, else timm's hub cache.
        input_scale: ``"unit"`` for intensities in [0, 1] (CT windows), ``"zscore"`` for zero mean, unit deviation
            (MR); one for all channels or one each.
        stages: number of stages, finest first; ``None`` takes all.
        stem_stride: 1 or 2 overrides the first convolution's stride (1 doubles every feature map's resolution).
        depth_padding: how convolutions see past the first and last slice; ``"zeros"`` is not exact.

    Raises:
        ConfigError: unknown backbone or init, or a stem whose stride cannot be changed.
        WeightsError: weights that cannot be had or do not fit.

    Examples:
        >>> encoder = create_encoder("tf_efficientnet_lite0", init="random", stages=2)
        >>> [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 32, 32))]
        [(1, 16, 8, 16, 16), (1, 24, 4, 8, 8)]
    """
    profile, checkpoint = _resolve_init(init)
    scales = (input_scale,) * in_channels if isinstance(input_scale, str) else tuple(input_scale)
    backbone = _load_backbone(name, weights, stages=stages, pretrained=profile is not None)
    scaling = fit_input(backbone, scales)
    divisor = set_stem_stride(backbone.module, name, stem_stride)
    strides = tuple((s, s, s) for s in (stride // divisor for stride in backbone.strides))
    body = inflate(backbone.module, init=profile or "mean", depth_padding=depth_padding)
    if profile is None:
        _redraw_inflated(body, backbone.module)
    encoder = Encoder(scaling, body, in_channels=in_channels, channels=backbone.channels, strides=strides)
    if checkpoint is not None:
        load_encoder_state(encoder, checkpoint)
    return encoder


def measure_inflation(encoder: Encoder, name: str, *, weights: PathLike | None = None) -> Exactness:
    """Measure how exactly an encoder answers as its 2D backbone, and whether it mixes depth.

    Args:
        encoder: as :func:`create_encoder` made it from the ImageNet weights, with one input scale for all channels.
        name: its backbone.
        weights: the file that its weights came from, if one was named.
    """
    backbone = _load_backbone(name, weights, stages=len(encoder.channels), pretrained=True)
    fit_input(backbone, ("unit",) * encoder.in_channels)
    return measure_exactness(backbone.module, encoder.body, in_channels=find_stem(backbone.module).in_channels)


def _load_backbone(name: str, weights: PathLike | None, *, stages: int | None, pretrained: bool) -> Backbone:
    state = find_imagenet_weights(name, Path(weights) if weights is not None else None) if pretrained else None
    return create_backbone(name, stages=stages, state=state, pretrained=pretrained and state is None)


def load_encoder_state(encoder: Encoder, path: Path) -> None:
    """Load the encoder's part of a medi3d checkpoint, all of it or nothing.

    Raises:
        WeightsError: the file holds no encoder, or one of another architecture.
    """
    tensors = read_weights_file(path)
    state = {key.removeprefix("encoder."): tensor for key, tensor in tensors.items() if key.startswith("encoder.")}
    if not state:
        raise WeightsError(f"{path}: holds no tensors named encoder.*; --init takes a checkpoint of a medi3d run")
    try:
        encoder.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: its encoder is of another architecture: {' '.join(str(error).split())[:300]}"
        ) from None


def _resolve_init(init: str) -> tuple[str | None, Path | None]:
    """Return the depth profile (``None``: random weights) and the checkpoint that an ``--init`` names."""
    if init in INITS:
        profile = INITS[init]
        assert profile is None or profile in PROFILES
        return profile, None
    if re.search(r"[/.]", init):
        return None, Path(init)
    raise ConfigError(unknown_name_message("init", init, INITS) + ", or the path of a checkpoint")


def _redraw_inflated(body: nn.Module, source: nn.Module) -> None:
    """Draw the kernels that gained a depth afresh: a repeated random filter is no random 3D filter.

    Each keeps the standard deviation that its 2D initialisation gives per unit of fan-in: σ₃ = σ₂ / √T.
    """
    flat = dict(source.named_parameters())
    for name, parameter in body.named_parameters():
        origin = flat.get(name.removeprefix("body."))
        if origin is not None and parameter.ndim == 5 and origin.ndim == 4:
            depth = parameter.shape[2]
            with torch.no_grad():
                parameter.normal_(0.0, float(origin.std()) / depth**0.5)


def known_weights_packages() -> dict[str, str]:
    """Return backbone → the package on the index that carries its ImageNet weights."""
    return {backbone: package for backbone, (_, package) in WEIGHTS_PACKAGES.items()}
