"""From a task's configuration, or from names, to a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

from torch import nn

from medi3d.config import ModelConfig, TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.inflation import DepthPlan, anisotropic
from medi3d.models.classifier import Classifier
from medi3d.models.creation import create_encoder
from medi3d.models.encoder import Encoder
from medi3d.models.monai_networks import create_basic_unet, create_dynunet
from medi3d.models.segmentation import SegmentationNetwork
from medi3d.registry import Registry
from medi3d.types import PathLike

INPUT_SCALES = {"ct": "unit", "mr": "zscore", "percentile": "unit", "dataset": "zscore", "none": "zscore"}
"""Normalisation of the prepared channel → the scale that the encoder expects it on."""


NETWORKS: Registry[Callable[[TaskConfig], nn.Module]] = Registry("network")
"""``model.network`` → how it is made of a task's configuration."""

NETWORKS.add("monai/basic_unet", create_basic_unet)
NETWORKS.add("monai/dynunet", create_dynunet)


@overload
def create_model(task: TaskConfig | PathLike) -> nn.Module: ...
@overload
def create_model(
    *,
    kind: str,
    encoder: str | Encoder,
    num_classes: int,
    decoder: str | None = None,
    in_channels: int = 1,
    plan: DepthPlan | str = "symmetric",
    deep_supervision: int = 0,
    dropout: float = 0.0,
) -> nn.Module: ...


def create_model(
    task: TaskConfig | PathLike | None = None,
    *,
    kind: str | None = None,
    encoder: str | Encoder | None = None,
    num_classes: int | None = None,
    decoder: str | None = None,
    in_channels: int = 1,
    plan: DepthPlan | str = "symmetric",
    deep_supervision: int = 0,
    dropout: float = 0.0,
) -> nn.Module:
    """Create the network that a task trains, or one of an encoder and a decoder by name.

    Args:
        task: a configuration, a built-in task's name, or the path of a task's YAML file; nothing else goes with it.
        kind: ``segmentation`` or ``classification``.
        encoder: what `medi3d.models.create_encoder` takes as name, or an encoder that it made.
        num_classes: number of outputs.
        decoder: a row of `medi3d.models.segmentation.DECODERS`: ``unet`` (the default), ``unetpp``, ``fpn``,
            ``monai/basic_unet``, ``monai/unetr``.
        in_channels: channels of the volumes, where ``encoder`` is a name.
        plan: depth plan, likewise; ``medi3d.inflation.anisotropic(spacing_mm)`` keeps depth where slices lie far apart.
        deep_supervision: number of coarser levels that give logits of their own in training.
        dropout: probability of dropping a channel before the head.

    Returns:
        A module that maps volumes ``(B, C, D, H, W)`` of any size to logits: ``(B, out_channels, D, H, W)`` for
        segmentation, ``(B, out_channels)`` for classification; in training, to :class:`medi3d.models.outputs.Outputs`
        where there are more. The ``encoder`` of an inflated network is a :class:`medi3d.models.Encoder`.

    Raises:
        ConfigError: an unknown network, encoder, decoder or initialisation, or options that the network does not have.
        WeightsError: pretrained weights that cannot be had.

    Examples:
        >>> import torch
        >>> model = create_model("hippocampus")
        >>> model.encoder.in_channels
        1
        >>> model = create_model(kind="segmentation", encoder="tf_efficientnet_lite0", decoder="fpn", num_classes=3)
        >>> model.eval()(torch.zeros(1, 1, 9, 33, 20)).shape
        torch.Size([1, 3, 9, 33, 20])
    """
    if task is not None:
        if (kind, encoder, num_classes, decoder) != (None,) * 4 or (in_channels, plan) != (1, "symmetric"):
            raise ConfigError("create_model takes a task, or kind, encoder and num_classes; not both")
        config = task if isinstance(task, TaskConfig) else load_task(task)
        return NETWORKS[config.model.network](config)
    if kind is None or encoder is None or num_classes is None:
        raise ConfigError("create_model takes a task, or kind, encoder and num_classes; some of these are missing")
    if isinstance(encoder, str):
        encoder = create_encoder(encoder, in_channels=in_channels, plan=plan)
    elif (in_channels, plan) != (1, "symmetric"):
        raise ConfigError("in_channels and plan are for an encoder by name; this one is made already")
    return KINDS[kind](encoder, num_classes, decoder, deep_supervision, dropout)


KINDS: Registry[Callable[[Encoder, int, str | None, int, float], nn.Module]] = Registry("kind")
"""``kind`` → how a network is made of encoder, outputs, decoder, deep supervision and dropout."""


@KINDS.register("segmentation")
def _create_segmentation(
    encoder: Encoder, num_classes: int, decoder: str | None, deep_supervision: int, dropout: float
) -> nn.Module:
    return SegmentationNetwork(
        encoder,
        num_classes=num_classes,
        decoder=decoder or "unet",
        decoder_channels=ModelConfig().decoder_channels,
        deep_supervision=deep_supervision,
        dropout=dropout,
    )


@KINDS.register("classification")
def _create_classification(
    encoder: Encoder, num_classes: int, decoder: str | None, deep_supervision: int, dropout: float
) -> nn.Module:
    if decoder is not None or deep_supervision:
        raise ConfigError("a classifier has no decoder: leave decoder and deep_supervision out")
    return Classifier(encoder, num_classes=num_classes, dropout=dropout)


@NETWORKS.register("inflated")
def _create_inflated(config: TaskConfig) -> nn.Module:
    encoder = create_encoder(
        config.model.backbone,
        in_channels=config.in_channels,
        init=config.model.init,
        weights=config.model.weights,
        input_scale=tuple(INPUT_SCALES[name] for name in config.normalizations),
        stages=config.model.stages,
        stem_stride=config.model.stem_stride,
        image_size=None if config.train.patch_size is None else config.train.patch_size[1:],
        plan=_depth_plan(config),
        drop_path=config.model.drop_path,
        allow_partial=config.model.allow_partial_init,
    )
    if config.kind == "classification":
        return Classifier(encoder, num_classes=config.num_classes, dropout=config.model.dropout)
    return SegmentationNetwork(
        encoder,
        num_classes=config.out_channels,
        decoder=config.model.decoder,
        decoder_channels=config.model.decoder_channels,
        dropout=config.model.dropout,
        deep_supervision=config.model.deep_supervision,
        num_target_classes=len(config.data.classes),
    )


def _depth_plan(task: TaskConfig) -> DepthPlan | str:
    named, spacing_mm = task.model.depth_plan or "symmetric", task.preprocess.spacing_mm
    if named != "anisotropic":
        return named
    if isinstance(spacing_mm, str):
        raise ConfigError(
            f"model.depth_plan anisotropic needs a voxel size, and preprocess.spacing_mm is {spacing_mm!r}; prepare "
            "the data with --spacing median or with millimetres, or choose another plan"
        )
    return anisotropic(spacing_mm)
