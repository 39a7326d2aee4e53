"""A pretrained 3D encoder: a 2D backbone whose stem fits the volume's channels, inflated.

The first convolution sees what it was trained on: pixels normalised by the backbone's own mean and standard deviation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medi3d.errors import ConfigError
from medi3d.inflation import DepthPadding, DepthPlan, inflate
from medi3d.models.backbone import Backbone, SliceRule, is_pyramid, run_for_shapes
from medi3d.models.matching import MatchReport
from medi3d.models.orientation import Orientation
from medi3d.models.recipe import EncoderRecipe
from medi3d.models.stem import InputScaling, fit_input, set_stem_stride
from medi3d.types import IntTriple

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
        orientation: how the network saw its volumes turned; ``None`` as they are here.
        report: what became of the tensors of the file that the weights came from; ``None`` for a 2D network's.
        recipe: how it was created by name; ``None`` for one that was made of a backbone at hand.
    """

    report: MatchReport | None = None
    recipe: EncoderRecipe | None = None

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
        orientation: Orientation | None = None,
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.body = body
        self.in_channels = in_channels
        self.channels = channels
        self.strides = strides
        self.slices = slices
        self.is_resized = is_resized
        self.orientation = orientation

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
        maps = self._run(self.scaling(x))
        return (
            [resize_map(m, x.shape[2:], s) for m, s in zip(maps, self.strides, strict=True)]
            if self.is_resized
            else maps
        )

    def _run(self, scaled: Tensor) -> list[Tensor]:
        if self.orientation is None:
            return list(self.body(scaled))
        return [self.orientation.turn_back(m) for m in self.body(self.orientation.turn(scaled))]


def resize_map(feature: Tensor, volume: torch.Size, strides: IntTriple) -> Tensor:
    """Bring a map of a volume (D, H, W) to ⌈D / s⌉ × ⌈H / s⌉ × ⌈W / s⌉.

    ViTDet's simple feature pyramid (Li et al. 2022, arXiv:2203.16527) without its learned deconvolutions: it comes
    after the inflated network, where the volume's depth is known, and the decoder's convolutions learn the rest.
    """
    size = [-(-n // stride) for n, stride in zip(volume, strides, strict=True)]
    if list(feature.shape[2:]) == size:
        return feature
    return interpolate(feature, size=size, mode="trilinear", align_corners=False)


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
