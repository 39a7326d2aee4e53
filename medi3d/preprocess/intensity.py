"""Intensity normalisation by modality: rows of a table, each for one channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medi3d.config import PreprocessConfig
from medi3d.errors import InputError
from medi3d.registry import Registry
from medi3d.types import Array, FloatArray

Normalization = Callable[[Array, PreprocessConfig], tuple[FloatArray, dict[str, float]]]

NORMALIZATIONS: Registry[Normalization] = Registry("normalisation")
"""Name → function of one channel ``(D, H, W)`` that gives float32 and what it measured, for the record."""

_BACKGROUND_SHARE = 0.05
_CLIP_PERCENTILES = (0.5, 99.5)


@NORMALIZATIONS.register("ct")
def normalize_ct(channel: Array, config: PreprocessConfig) -> tuple[FloatArray, dict[str, float]]:
    """Clip to ``window_hu`` and map it to [0, 1]."""
    low, high = config.window_hu
    scaled = np.clip(channel.astype(np.float32), low, high)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    return scaled, {"low": float(low), "high": float(high)}


@NORMALIZATIONS.register("mr")
def normalize_mr(channel: Array, config: PreprocessConfig) -> tuple[FloatArray, dict[str, float]]:
    """Clip to the 0.5 and 99.5 percentiles and z-score, both of the foreground; a constant background becomes 0.

    Raises:
        InputError: the foreground is constant.
    """
    background = background_value(channel)
    mask = None if background is None else channel != background
    voxels = channel.ravel() if mask is None else channel[mask]
    low, high = (float(q) for q in np.percentile(voxels, _CLIP_PERCENTILES)) if voxels.size else (0.0, 0.0)
    clipped = np.clip(voxels.astype(np.float64), low, high)
    mean, std = (float(clipped.mean()), float(clipped.std())) if voxels.size else (0.0, 0.0)
    if std <= 1e-7 * max(abs(mean), 1e-30):
        raise InputError("the image is constant (outside its background), so it cannot be normalised; leave it out")
    scores = np.clip(channel.astype(np.float32), low, high)
    scores -= np.float32(mean)
    scores /= np.float32(std)
    if mask is not None:
        scores[~mask] = 0.0
    return scores, {"low": low, "high": high, "mean": mean, "std": std}


@NORMALIZATIONS.register("none")
def normalize_none(channel: Array, config: PreprocessConfig) -> tuple[FloatArray, dict[str, float]]:
    """Keep the values as they are."""
    return channel.astype(np.float32), {}


def background_value(channel: Array) -> float | None:
    """Return the constant value around the object in a channel ``(D, H, W)``, or ``None`` where there is none.

    It is the value that most of the eight corners share, if more than 5 % of all voxels have it (a brain without its
    skull, a padded scan); crops from inside a body have no background.
    """
    corners = channel[:: max(channel.shape[0] - 1, 1), :: max(channel.shape[1] - 1, 1), :: max(channel.shape[2] - 1, 1)]
    values, counts = np.unique(corners, return_counts=True)
    candidate = values[counts.argmax()]
    share = np.count_nonzero(channel == candidate) / channel.size
    return float(candidate) if share > _BACKGROUND_SHARE else None
