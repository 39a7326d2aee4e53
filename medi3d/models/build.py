"""From a task's configuration to its network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from medi3d.config import TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.inflation import DepthPlan, anisotropic
from medi3d.models.classifier import Classifier
from medi3d.models.creation import create_encoder
from medi3d.models.monai_networks import create_basic_unet, create_dynunet
from medi3d.models.unet import UNet
from medi3d.registry import Registry
from medi3d.types import PathLike

INPUT_SCALES = {"ct": "unit", "mr": "zscore", "percentile": "unit", "dataset": "zscore", "none": "zscore"}
"""Normalisation of the prepared channel → the scale that the encoder expects it on."""


NETWORKS: Registry[Callable[[TaskConfig], nn.Module]] = Registry("network")
"""``model.network`` → how it is made of a task's configuration."""

NETWORKS.add("monai/basic_unet", create_basic_unet)
NETWORKS.add("monai/dynunet", create_dynunet)


def create_model(task: TaskConfig | PathLike) -> nn.Module:
    """Create the network that a task trains.

    Args:
        task: a configuration, a built-in task's name, or the path of a task's YAML file.

    Returns:
        A module that maps volumes ``(B, C, D, H, W)`` to logits: ``(B, out_channels, D, H, W)`` for segmentation,
        ``(B, out_channels)`` for classification; in training, to :class:`medi3d.models.outputs.Outputs` where there
        are more. The ``encoder`` of an inflated network is a :class:`medi3d.models.Encoder`.

    Raises:
        ConfigError: an unknown network, backbone or initialisation, or options that the network does not have.
        WeightsError: pretrained weights that cannot be had.

    Examples:
        >>> model = create_model("hippocampus")
        >>> model.encoder.in_channels
        1
    """
    config = task if isinstance(task, TaskConfig) else load_task(task)
    return NETWORKS[config.model.network](config)


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
    return UNet(
        encoder,
        num_classes=config.out_channels,
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
