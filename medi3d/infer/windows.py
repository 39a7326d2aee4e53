"""Sliding windows over one prepared volume, with Gaussian weighting and optional mirroring (MONAI does the windows)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from medi3d.config import TaskConfig

_AXES = {"D": 2, "H": 3, "W": 4}


@torch.inference_mode()
def predict_logits(model: nn.Module, image: Tensor, task: TaskConfig) -> Tensor:
    """Predict one volume.

    Args:
        model: as :func:`medi3d.models.create_model` builds it, in evaluation mode, on the device to use.
        image: ``(C, D, H, W)`` float32, prepared; it may lie in host memory.
        task: gives window size, overlap and mirroring.

    Returns:
        ``(num_classes, D, H, W)`` for segmentation, ``(num_classes,)`` for classification; float32, on the host.
    """
    device = next(model.parameters()).device
    flips = _mirrorings(task.train.augment.mirror_axes if task.infer.mirror else ())
    total: Tensor | None = None
    for axes in flips:
        flipped = torch.flip(image[None], axes)
        logits = _predict_once(model, flipped, task, device)
        if task.kind == "segmentation":
            logits = torch.flip(logits, axes)
        total = logits if total is None else total + logits
    assert total is not None
    return (total / len(flips))[0]


def _predict_once(model: nn.Module, image: Tensor, task: TaskConfig, device: torch.device) -> Tensor:
    if task.kind == "classification":
        logits: Tensor = model(image.to(device)).float().cpu()
        return logits
    predicted = sliding_window_inference(
        image,
        roi_size=task.patch_size,
        sw_batch_size=task.infer.window_batch,
        predictor=lambda window: model(window).float(),
        overlap=task.infer.overlap,
        mode="gaussian",
        sw_device=device,
        device="cpu",
    )
    assert isinstance(predicted, Tensor)
    return predicted


def _mirrorings(axes: Sequence[str]) -> list[tuple[int, ...]]:
    """Return every subset of the axes to flip, the empty one first."""
    dims = [_AXES[axis] for axis in axes]
    return list(chain.from_iterable(combinations(dims, count) for count in range(len(dims) + 1)))
