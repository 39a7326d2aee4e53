"""A pretrained 3D encoder: a 2D backbone whose stem fits the volume's channels, inflated.

The first convolution sees what it was trained on: pixels normalised by the backbone's own mean and standard deviation.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medi3d.errors import ConfigError, WeightsError
from medi3d.inflation import PROFILES, DepthPadding, DepthPlan, inflate
from medi3d.inflation.parameters import compare_parameters, name_modules
from medi3d.models.backbone import Backbone, SliceRule, SliceSize, is_pyramid, run_for_shapes
from medi3d.models.stem import InputScale, InputScaling, fit_input, set_stem_stride
from medi3d.models.weights import WEIGHTS_PACKAGES, find_imagenet_weights, read_weights_file
from medi3d.models.zoo import create_backbone, create_network
from medi3d.registry import unknown_name_message
from medi3d.types import IntTriple, PathLike

logger = logging.getLogger(__name__)

INITS: dict[str, str | None] = {
    "imagenet-inflated": "mean",
    "imagenet-center": "center",
    "imagenet-overshoot": "overshoot",
    "random": None,
}
"""Initialisation → depth profile of the ImageNet weights; ``None`` draws random ones."""


PYRAMID_STRIDES = (4, 8, 16, 32)
"""In-plane strides of the maps made from a network whose own have one stride, or strides that are no powers of two."""


class Encoder(nn.Module):
    """An inflated backbone that gives one feature map a stage.

    Attributes:
        in_channels: channels of the input volume.
        channels: channels of each feature map, finest first.
        strides: ``(D, H, W)`` stride of each feature map.
        slices: which (H, W) the backbone takes.
        is_resized: whether the backbone's maps are resized to ``strides``, as a plain ViT's are.
    """

    def __init__(
        self,
        scaling: InputScaling,
        body: nn.Module,
        *,
        in_channels: int,
        channels: tuple[int, ...],
        strides: tuple[IntTriple, ...],
        slices: SliceRule,
        is_resized: bool = False,
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.body = body
        self.in_channels = in_channels
        self.channels = channels
        self.strides = strides
        self.slices = slices
        self.is_resized = is_resized

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the stages' feature maps.

        Args:
            x: ``(B, in_channels, D, H, W)``, on the scale that ``input_scale`` says; any D, and any H and W that
                ``slices`` allows.

        Returns:
            One ``(B, channels[i], ~D / strides[i][0], ~H / strides[i][1], ~W / strides[i][2])`` a stage.

        Raises:
            ConfigError: the volume has another number of channels, or slices of a size that the backbone cannot take.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ConfigError(f"expected a volume (B, {self.in_channels}, D, H, W); got shape {tuple(x.shape)}")
        if not self.slices.allows(x.shape[3:]):
            raise ConfigError(
                f"this backbone takes slices of {self.slices}; got H × W of {x.shape[3]} × {x.shape[4]}: crop or pad "
                "them, or create the encoder with image_size=(H, W)"
            )
        maps = list(self.body(self.scaling(x)))
        return (
            [_resize(m, x.shape[2:], s) for m, s in zip(maps, self.strides, strict=True)] if self.is_resized else maps
        )


def _resize(feature: Tensor, volume: torch.Size, strides: IntTriple) -> Tensor:
    """Bring a map to ⌈D / s⌉ × ⌈H / s⌉ × ⌈W / s⌉.

    ViTDet's simple feature pyramid (Li et al. 2022, arXiv:2203.16527) without its learned deconvolutions: it comes
    after the inflated network, where the volume's depth is known, and the decoder's convolutions learn the rest.
    """
    size = [-(-n // stride) for n, stride in zip(volume, strides, strict=True)]
    if list(feature.shape[2:]) == size:
        return feature
    return interpolate(feature, size=size, mode="trilinear", align_corners=False)


def create_encoder(
    name: str,
    *,
    in_channels: int = 1,
    init: str = "imagenet-inflated",
    weights: PathLike | None = None,
    input_scale: InputScale | tuple[str, ...] = "unit",
    stages: int | None = None,
    stem_stride: int | None = None,
    image_size: SliceSize | None = None,
    depth_padding: DepthPadding = "replicate",
    plan: DepthPlan | str = "symmetric",
    drop_path: float = 0.0,
) -> Encoder:
    """Create a 3D encoder from a 2D backbone by inflation.

    Args:
        name: of the backbone, as ``medi3d models`` lists it: ``"tf_efficientnet_lite0"`` of timm's,
            ``"torchvision/resnet18"`` of torchvision's.
        in_channels: channels of the volumes. Three are taken as RGB; of any other number each gets an equal share of
            the grey response, so that equal channels answer as the 2D network on the RGB copy.
        init: ``imagenet-inflated`` (I3D's mean), ``imagenet-center``, ``imagenet-overshoot``, ``random``, or the path
            of a medi3d checkpoint whose encoder is taken.
        weights: a file with the backbone's 2D weights; else an installed weights package, else the library's hub or
            its cache.
        input_scale: ``"unit"`` for intensities in [0, 1] (CT windows), ``"zscore"`` for zero mean, unit deviation
            (MR); one for all channels or one each.
        stages: number of stages, finest first; ``None`` takes all.
        stem_stride: 1 or 2 overrides the first convolution's stride (1 doubles every feature map's resolution).
        image_size: (H, W) of the volumes, for backbones that are made for one size (many ViTs); ``None`` takes the size
            that their weights were trained at.
        depth_padding: how convolutions see past the first and last slice; ``"zeros"`` is not exact.
        plan: what each stage does along depth: ``"symmetric"``, ``"i3d"``, ``"slicewise"``, or a
            :class:`medi3d.inflation.DepthPlan`, such as ``anisotropic(spacing_mm)`` makes.
        drop_path: probability of dropping the last block of a volume in training, which grows from 0 at the first
            (stochastic depth, Huang et al. 2016, arXiv:1603.09382).

    Raises:
        ConfigError: unknown backbone or init, a stem whose stride cannot be changed, a size that the backbone cannot
            take, or ``drop_path`` of a backbone without.
        InflationError: the backbone has no exact 3D form.
        WeightsError: weights that cannot be had or do not fit.

    Examples:
        >>> encoder = create_encoder("tf_efficientnet_lite0", init="random", stages=2)
        >>> [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 32, 32))]
        [(1, 16, 8, 16, 16), (1, 24, 4, 8, 8)]
    """
    profile, checkpoint = _resolve_init(init)
    scales = (input_scale,) * in_channels if isinstance(input_scale, str) else tuple(input_scale)
    backbone = _load_backbone(
        name, weights, stages=stages, image_size=image_size, pretrained=profile is not None, drop_path=drop_path
    )
    encoder = inflate_backbone(
        backbone,
        name,
        scales=scales,
        profile=profile,
        stem_stride=stem_stride,
        depth_padding=depth_padding,
        plan=plan,
    )
    if checkpoint is not None:
        load_encoder_state(encoder, checkpoint)
    elif profile is not None:
        _log_dropped(name, encoder.body)
    return encoder


def inflate_backbone(
    backbone: Backbone,
    name: str,
    *,
    scales: tuple[str, ...],
    profile: str | None = "mean",
    stem_stride: int | None = None,
    depth_padding: DepthPadding = "replicate",
    plan: DepthPlan | str = "symmetric",
) -> Encoder:
    """Make an encoder of a 2D backbone, whose stem is changed for it.

    Args:
        backbone: with the weights to inflate.
        name: what messages call it.
        scales: input scale of each channel of the volumes.
        profile: depth profile of the kernels; ``None`` draws them at random.
        stem_stride: as :func:`create_encoder` takes it.
        depth_padding: likewise.
        plan: likewise.
    """
    divisor = set_stem_stride(backbone, name, stem_stride)
    scaling = fit_input(backbone, scales)
    image = torch.zeros(1, scaling.out_channels, *backbone.input_size)
    body = inflate(backbone.module, init=profile or "mean", depth_padding=depth_padding, plan=plan, image=image)
    if profile is None:
        _redraw_inflated(body, backbone.module)
    return Encoder(
        scaling,
        body,
        in_channels=len(scales),
        channels=backbone.channels,
        strides=_find_strides(backbone, body, scaling.out_channels, divisor),
        slices=backbone.slices,
        is_resized=not is_pyramid(backbone.strides),
    )


def _log_dropped(name: str, features: nn.Module) -> None:
    """Say which pretrained tensors the encoder has no use for, as a classifier's head."""
    if logger.isEnabledFor(logging.INFO):  # the whole network is made to know its tensors
        fates = compare_parameters(create_network(name).state_dict(), features.state_dict())
        dropped = name_modules(fates, "dropped")
        if dropped:
            logger.info("%s: the encoder has no use for the tensors of %s", name, dropped)


def _load_backbone(
    name: str,
    weights: PathLike | None,
    *,
    stages: int | None,
    image_size: SliceSize | None,
    pretrained: bool,
    drop_path: float,
) -> Backbone:
    state = find_imagenet_weights(name, Path(weights) if weights is not None else None) if pretrained else None
    return create_backbone(
        name,
        stages=stages,
        image_size=image_size,
        state=state,
        pretrained=pretrained and state is None,
        drop_path=drop_path,
    )


def _find_strides(backbone: Backbone, body: nn.Module, in_channels: int, divisor: int) -> tuple[IntTriple, ...]:
    """Return the (D, H, W) strides of the encoder's maps; those along depth are seen in a trial run."""
    depth = 4 * max(backbone.strides)
    step = backbone.slices.step or 1
    plane = backbone.input_size if step == 1 else (-(-64 // step) * step,) * 2  # small: some networks are computed
    maps = run_for_shapes(body, (1, in_channels, depth, *plane))
    own = [(round(depth / m.shape[2]), stride // divisor) for m, stride in zip(maps, backbone.strides, strict=True)]
    if is_pyramid(backbone.strides):
        return tuple((along, across, across) for along, across in own)
    # How much finer depth is than the plane stays, to a power of two; a depth that is kept whole stays whole.
    finer = [max(0, round(math.log2(across / along))) if along > 1 else 5 for along, across in own]
    return tuple(
        (max(1, target >> power), target, target) for power, target in zip(finer, PYRAMID_STRIDES, strict=False)
    )


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
