"""Sliding windows over one prepared volume, with Gaussian weighting and optional mirroring (MONAI does the windows)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from medi3d.config import TaskConfig

_AXES = {"D": 2, "H": 3, "W": 4}

WindowPredictor = Callable[[Tensor], Tensor]
"""Windows ``(B, C, D, H, W)`` → logits of their labels ``(B, num_classes, D, H, W)``."""


@torch.inference_mode()
def predict_logits(model: nn.Module, image: Tensor, task: TaskConfig) -> Tensor:
    """Predict one volume.

    Args:
        model: as :func:`medi3d.models.create_model` builds it, in evaluation mode, on the device to use.
        image: ``(C, D, H, W)`` float32, prepared; it may lie in host memory.
        task: gives window size, overlap and mirroring.

    Returns:
        ``(num_classes, D, H, W)`` for segmentation, whether the network tells labels or regions; ``(num_classes,)`` for
        classification. Float32, on the host.
    """
    if task.kind == "segmentation":
        return _predict_labels(model, image, task, lambda window: label_logits(model(window).float(), task))
    device = next(model.parameters()).device
    flipped = [torch.flip(image[None], axes) for axes in _mirrorings(task)]
    total: Tensor = torch.stack([model(copy.to(device)).float().cpu()[0] for copy in flipped])
    return total.mean(0)


@torch.inference_mode()
def predict_with_classes(model: nn.Module, image: Tensor, task: TaskConfig) -> tuple[Tensor, Tensor]:
    """Predict labels and classes of one volume, with a network that has a second head.

    The head answers window by window. A window has as much say as it holds foreground that the first head finds there:
    the class is that of the thing segmented, and in training most patches are centred on it. Where no foreground is
    found, all windows have the same say.

    Args:
        model: as for :func:`predict_logits`, with ``classify(x) -> (B, classes)``.
        image: as for :func:`predict_logits`.
        task: a segmentation task that names ``data.classes``.

    Returns:
        Logits of the labels ``(num_classes, D, H, W)`` and of the classes ``(classes,)``; float32, on the host.
    """
    answers: list[Tensor] = []
    weights: list[Tensor] = []

    def predict_window(window: Tensor) -> Tensor:
        logits = label_logits(model(window).float(), task)
        weights.append((logits.argmax(1) > 0).flatten(1).sum(1).double().cpu())
        answers.append(model.classify(window).double().cpu())  # type: ignore[operator]
        return logits

    labels = _predict_labels(model, image, task, predict_window)
    weight = torch.cat(weights)
    weight = weight if weight.any() else torch.ones_like(weight)
    return labels, ((weight / weight.sum()) @ torch.cat(answers)).float()


def label_logits(logits: Tensor, task: TaskConfig) -> Tensor:
    """Turn the logits of regions into logits of labels, the sums over the regions that hold a label.

    A label stands for a pattern of regions: in those that hold it, and in no other. With ``p = sigmoid(z)`` the
    probability of each region and regions independent, the log-probability of a pattern ``m`` is ``Σ m·z`` and a term,
    ``-Σ log(1 + exp(z))``, that is the same for every pattern. So the softmax over these sums is the posterior over the
    patterns that some label stands for; the others (a core outside of the whole) are ruled out, and a voxel whose
    regions contradict each other goes to the likeliest pattern that is possible. The background is in no region: 0.

    Args:
        logits: ``(B, out_channels, D, H, W)`` of the network.
        task: a segmentation task.

    Returns:
        ``(B, num_classes, D, H, W)``; the logits themselves where the task has no regions.

    Example:
        >>> from medi3d.config import load_task
        >>> task = load_task("hippocampus", overrides={"data.regions": {"whole": [1, 2], "posterior": [2]}})
        >>> label_logits(torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1, 1), task).flatten().tolist()
        [0.0, 2.0, 1.0]
    """
    if not task.data.regions:
        return logits
    holds = torch.tensor(task.region_matrix, dtype=logits.dtype, device=logits.device)
    return torch.einsum("kr,brdhw->bkdhw", holds, logits)


def _predict_labels(model: nn.Module, image: Tensor, task: TaskConfig, predict_window: WindowPredictor) -> Tensor:
    """Return the mean over the mirrored copies, ``(num_classes, D, H, W)``; only windows lie on the model's device."""
    flips = _mirrorings(task)
    total: Tensor | None = None
    for axes in flips:
        predicted = sliding_window_inference(
            torch.flip(image[None], axes),
            roi_size=task.patch_size,
            sw_batch_size=task.infer.window_batch,
            predictor=predict_window,
            overlap=task.infer.overlap,
            mode="gaussian",
            sw_device=next(model.parameters()).device,
            device="cpu",
        )
        assert isinstance(predicted, Tensor)
        logits = torch.flip(predicted, axes)
        total = logits if total is None else total + logits
    assert total is not None
    return (total / len(flips))[0]


def _mirrorings(task: TaskConfig) -> list[tuple[int, ...]]:
    """Return every subset of the axes to flip, the empty one first."""
    axes: Sequence[str] = task.train.augment.mirror_axes if task.infer.mirror else ()
    dims = [_AXES[axis] for axis in axes]
    return list(chain.from_iterable(combinations(dims, count) for count in range(len(dims) + 1)))
