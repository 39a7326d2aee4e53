"""How an encoder is created by name, apart from its weights: what it takes to create it once more."""

from __future__ import annotations

from dataclasses import dataclass, field

from medi3d.inflation import DepthPadding, DepthPlan
from medi3d.models.backbone import SliceSize


@dataclass(frozen=True)
class EncoderRecipe:
    """The architecture of an encoder; `medi3d.models.create_encoder` says what each is.

    Args:
        name: of the backbone or 3D network.
        input_scale: of each channel.
        stages: ``None`` for all.
        stem_stride: ``None`` for the network's own.
        image_size: ``None`` for what the weights were trained at.
        depth_padding: of inflated convolutions.
        plan: of inflated networks.
        drop_path: of the last block.
    """

    name: str
    input_scale: tuple[str, ...] = ("unit",)
    stages: int | None = None
    stem_stride: int | None = None
    image_size: SliceSize | None = None
    depth_padding: DepthPadding = "replicate"
    plan: DepthPlan = field(default_factory=DepthPlan)
    drop_path: float = 0.0
