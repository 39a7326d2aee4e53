"""Class activation maps: which places of a volume spoke for a class.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2) weighs a feature map's channels by the mean
gradient of the class's logit and keeps what is positive. It is taken here on every map that the classifier's head
reads, not on the last one alone: the head averages each stage of the encoder over the volume, and of a cube of 32
voxels the last map of five stages is a single voxel. For a head that is affine, as this one is when it predicts, the
maps' means add up to the logit but for a constant (Zhou et al. 2016, arXiv:1512.04150).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medi3d.errors import ConfigError
from medi3d.infer.predictor import Predictor
from medi3d.models.classifier import Classifier, pool_features
from medi3d.types import FloatArray


def activation_map(predictor: Predictor, image: Tensor, target: int) -> FloatArray:
    """Return what spoke for a class, place by place, averaged over the predictor's runs.

    Args:
        predictor: of a classification task.
        image: ``(C, D, H, W)`` float32, prepared.
        target: index of the class.

    Returns:
        ``(D, H, W)`` from 0 to 1, the highest place being 1; all 0 where nothing spoke for the class.

    Raises:
        ConfigError: a network without the classifier's head.
    """
    total = torch.zeros(image.shape[1:])
    for member in predictor.members:
        if not isinstance(member.model, Classifier):
            raise ConfigError(
                f"class activation needs a network of medi3d's classifier; task {member.task.name} trained "
                f"{member.task.model.network}, a {type(member.task.model).__name__} for {member.task.kind}"
            )
        place = next(member.model.parameters()).device
        total += sum_of_maps(member.model, image.to(place), target).cpu()
    positive = total.clamp(min=0)
    highest = positive.max()
    values: FloatArray = (positive / highest if highest > 0 else positive).numpy()
    return values


def sum_of_maps(model: Classifier, image: Tensor, target: int) -> Tensor:
    """Return the stages' weighted maps, enlarged to the image's size and added up, ``(D, H, W)``, of either sign."""
    return sum(
        (interpolate(part[None, None], size=image.shape[1:], mode="trilinear", align_corners=False)[0, 0]
         for part in stage_maps(model, image, target)),
        start=torch.zeros(image.shape[1:], device=image.device),
    )  # fmt: skip


def stage_maps(model: Classifier, image: Tensor, target: int) -> list[Tensor]:
    """Return for each stage ``(d, h, w)``: its channels weighted by the mean gradient, times its number of voxels.

    Grad-CAM's weight of a channel that is averaged over N voxels holds a factor 1/N, which would favour coarse maps.

    Args:
        model: in evaluation mode.
        image: ``(C, D, H, W)``, on the model's device.
        target: index of the class.
    """
    with torch.no_grad():
        features = model.encoder(image[None])
    with torch.enable_grad():
        features = [feature.float().detach().requires_grad_() for feature in features]
        logit = model.head(pool_features(features))[0, target]
        gradients = torch.autograd.grad(logit, features)
    return [
        (feature * gradient.mean((2, 3, 4), keepdim=True)).sum(1)[0].detach() * feature[0, 0].numel()
        for feature, gradient in zip(features, gradients, strict=True)
    ]
