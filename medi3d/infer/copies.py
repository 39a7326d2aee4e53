"""Averages over copies of the windows, mirrored and turned: what a network says of each, brought back.

nnU-Net averages over mirrored copies (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), Wang et al. 2019
(arXiv:1807.07356) over turned ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, combinations

import numpy as np
import torch
from torch import Tensor

from medi3d.config import TaskConfig
from medi3d.data.augment.draw import AXES, Warp, may_turn, rotation
from medi3d.data.augment.spatial import warp_patch
from medi3d.errors import ConfigError

Network = Callable[[Tensor], Tensor]
"""Windows ``(B, C, D, H, W)`` on the network's device → logits ``(B, K, D, H, W)``, or ``(B, K)`` of a classifier."""


def predict_copies(windows: Tensor, predict: Network, task: TaskConfig) -> Tensor:
    """Return the mean of what is predicted for all copies that ``infer`` asks for.

    A voxel that a turned window has lost has no say in that copy.

    Args:
        windows: ``(B, C, D, H, W)`` float32.
        predict: called with each copy.
        task: gives ``infer.mirror`` and ``infer.rotate_degrees``.

    Returns:
        Logits as ``predict`` gives them.

    Raises:
        ConfigError: turned copies without a voxel size that is the same for all cases.
    """
    total = _predict_mirrored(windows, predict, task)
    turned = list(turns(task))
    if not turned:
        return total
    copies = torch.ones_like(total[:1, :1])
    for warp, back in turned:
        logits = _predict_mirrored(_turn(windows, warp), predict, task)
        if logits.ndim == windows.ndim:
            copies += _turn(torch.ones_like(copies), back)
            logits = _turn(logits, back)
        else:
            copies += 1
        total = total + logits
    return total / copies


def turns(task: TaskConfig) -> Iterator[tuple[Warp, Warp]]:
    """Yield rotations to and fro about each axis that may be turned about, each with the one that takes it back."""
    if not task.infer.rotate_degrees:
        return
    spacing_mm = task.preprocess.spacing_mm
    if isinstance(spacing_mm, str):
        raise ConfigError(
            f"infer.rotate_degrees needs one voxel size, and preprocess.spacing_mm is {spacing_mm!r}; prepare with "
            "millimetres, or set infer.rotate_degrees to 0"
        )
    for axis in np.flatnonzero(may_turn(spacing_mm)):
        degrees = task.infer.rotate_degrees * np.eye(3)[axis]
        to, fro = (Warp(rotation(angles, spacing_mm), np.zeros(3)) for angles in (degrees, -degrees))
        yield to, fro
        yield fro, to


def mirrorings(task: TaskConfig) -> list[tuple[int, ...]]:
    """Return every subset of the axes of ``(B, C, D, H, W)`` to flip, the empty one first."""
    dims = [AXES.index(axis) + 2 for axis in task.train.augment.mirror_axes] if task.infer.mirror else []
    return list(chain.from_iterable(combinations(dims, count) for count in range(len(dims) + 1)))


def _predict_mirrored(windows: Tensor, predict: Network, task: TaskConfig) -> Tensor:
    copies = mirrorings(task)
    total: Tensor | None = None
    for axes in copies:
        logits = predict(torch.flip(windows, axes) if axes else windows)
        logits = torch.flip(logits, axes) if axes and logits.ndim == windows.ndim else logits
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(copies) if len(copies) > 1 else total


def _turn(windows: Tensor, warp: Warp) -> Tensor:
    """Turn windows about their centre; what comes in from beyond is zero, as in training."""
    size = windows.shape[2], windows.shape[3], windows.shape[4]
    return torch.stack([warp_patch(one, None, warp, offset=(0, 0, 0), size=size)[0] for one in windows])
