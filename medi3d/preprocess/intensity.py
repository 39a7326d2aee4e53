"""Intensity normalisation by modality: rows of a table, each of which fits one channel's map.

A map is a clip and a linear rescaling, so it can be split around the resampling: what is not linear
(:meth:`IntensityMap.before`) acts on native voxels, the rest (:meth:`IntensityMap.after`) on resampled ones. Voxels
that are rare and extreme, or that are no tissue, so never bleed into their neighbours. A slab of the prepared image
needs no more than the native voxels beneath it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from medi3d.config import PreprocessConfig
from medi3d.errors import InputError
from medi3d.preprocess.foreground import Background, find_background, sample_voxels
from medi3d.registry import Registry
from medi3d.types import Array, FloatArray

DatasetIntensities = tuple[float, float, float, float]
"""Low, high, mean and standard deviation of a channel over the whole data set."""

_BLOCK = 2**20


@dataclass(frozen=True)
class IntensityMap:
    """``x -> (clip(x, low, high) - offset) / scale``, and background voxels become 0.

    Args:
        low: lower end of the clip, native units.
        high: upper end of the clip.
        offset: native value that becomes 0.
        scale: native units that become 1.
        background: the value of voxels that hold nothing; ``None`` where every voxel counts.

    Example:
        >>> window = IntensityMap(low=-1000.0, high=400.0, offset=-1000.0, scale=1400.0)
        >>> window(np.array([-3024, -300, 400], np.int16)).tolist()
        [0.0, 0.5, 1.0]
    """

    low: float = -math.inf
    high: float = math.inf
    offset: float = 0.0
    scale: float = 1.0
    background: float | None = None

    def before(self, native: Array) -> Array:
        """Do what must happen before voxels are interpolated: clip, and let background voxels be the offset.

        Args:
            native: voxels of any real type and shape; they stay as they are.

        Returns:
            The input's integer type where the bounds are whole numbers of it (``native`` itself where there is nothing
            to do), else float32.
        """
        clipped = self._clip(native)
        if self.background is None:
            return clipped
        filled = np.array(clipped, dtype=np.float32)
        filled[native == self.background] = self.offset
        return filled

    def after(self, resampled: FloatArray) -> FloatArray:
        """Do the linear rest **in place** on float32 voxels, which are the caller's own, and return them."""
        values = np.asarray(resampled, dtype=np.float32)
        if self.offset:
            values -= np.float32(self.offset)
        if self.scale != 1.0:
            values /= np.float32(self.scale)
        return values

    def __call__(self, native: Array) -> FloatArray:
        """Map voxels that are not resampled in between: a new float32 array of the same shape."""
        return self.after(np.array(self.before(native), dtype=np.float32))

    def to_json(self) -> dict[str, float | None]:
        """Return what belongs into a case's record; an open end of the clip is ``None``."""
        return {key: value if value is None or math.isfinite(value) else None for key, value in asdict(self).items()}

    def _clip(self, native: Array) -> Array:
        low, high = self.low, self.high
        if native.dtype.kind in "iu":
            limits = np.iinfo(native.dtype)
            low, high = max(low, float(limits.min)), min(high, float(limits.max))
            if (low, high) == (float(limits.min), float(limits.max)):
                return native
            if low.is_integer() and high.is_integer() and low <= high:
                return np.clip(native, native.dtype.type(low), native.dtype.type(high))
        elif (low, high) == (-math.inf, math.inf):
            return native
        return np.clip(native, low, high).astype(np.float32, copy=False)


Normalization = Callable[[Array, PreprocessConfig, DatasetIntensities | None], IntensityMap]

NORMALIZATIONS: Registry[Normalization] = Registry("normalisation")
"""Name → function of one channel ``(D, H, W)`` as stored (it may be a memory map), the configuration and the data set's
intensities, that gives the channel's map. Raises :class:`InputError` where the channel is constant."""


@NORMALIZATIONS.register("ct")
def fit_ct(channel: Array, config: PreprocessConfig, dataset: DatasetIntensities | None) -> IntensityMap:
    """Map ``window_hu`` to [0, 1]."""
    low, high = config.window_hu
    _check_varies(channel)
    _check_window(channel, low, high)
    return IntensityMap(low=low, high=high, offset=low, scale=high - low)


@NORMALIZATIONS.register("mr")
def fit_mr(channel: Array, config: PreprocessConfig, dataset: DatasetIntensities | None) -> IntensityMap:
    """Clip to ``clip_percentiles`` and z-score, both of the foreground; a constant background becomes 0."""
    background = find_background(channel)
    low, high, mean, std = _measure(channel, background, config.clip_percentiles)
    return IntensityMap(low=low, high=high, offset=mean, scale=std, background=background.value)


@NORMALIZATIONS.register("percentile")
def fit_percentile(channel: Array, config: PreprocessConfig, dataset: DatasetIntensities | None) -> IntensityMap:
    """Map ``clip_percentiles`` of the foreground to [0, 1]; a constant background becomes 0."""
    background = find_background(channel)
    low, high, _, _ = _measure(channel, background, config.clip_percentiles)
    return IntensityMap(low=low, high=high, offset=low, scale=high - low, background=background.value)


@NORMALIZATIONS.register("dataset")
def fit_dataset(channel: Array, config: PreprocessConfig, dataset: DatasetIntensities | None) -> IntensityMap:
    """Clip and z-score by the labelled voxels of the whole data set, as nnU-Net does for CT (Isensee 2021)."""
    if dataset is None:
        raise InputError(
            "normalisation 'dataset' needs preprocess.dataset_intensities; `medi3d preprocess` measures and writes them"
        )
    _check_varies(channel)
    low, high, mean, std = dataset
    _check_window(channel, low, high)
    return IntensityMap(low=low, high=high, offset=mean, scale=std)


@NORMALIZATIONS.register("none")
def fit_none(channel: Array, config: PreprocessConfig, dataset: DatasetIntensities | None) -> IntensityMap:
    """Keep the values as they are."""
    _check_varies(channel)
    return IntensityMap()


def _measure(
    channel: Array, background: Background, percentiles: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return the foreground's percentiles, and mean and standard deviation of what is clipped to them."""
    voxels = background.select(sample_voxels(channel))
    if not voxels.size:
        raise InputError(_CONSTANT)
    low, high = (float(value) for value in np.percentile(voxels, percentiles))
    mean, std = _clipped_moments(voxels, low, high)
    if std <= 1e-7 * max(abs(mean), 1e-30):
        if voxels.min() == voxels.max():
            raise InputError(_CONSTANT)
        raise InputError(
            f"the image is constant between its percentiles {percentiles[0]:g} and {percentiles[1]:g} "
            f"(preprocess.clip_percentiles), both {low:g}, so it cannot be normalised; leave it out"
        )
    return low, high, mean, std


_CONSTANT = "the image is constant (outside its background), so it cannot be normalised; leave it out"


def _clipped_moments(voxels: Array, low: float, high: float) -> tuple[float, float]:
    """Return mean and standard deviation in float64, block by block, around a pivot inside the range."""
    pivot = (low + high) / 2
    total = squares = 0.0
    for start in range(0, voxels.size, _BLOCK):
        block = np.clip(voxels[start : start + _BLOCK].astype(np.float64), low, high) - pivot
        total += float(block.sum())
        squares += float(block @ block)
    mean = total / voxels.size
    return pivot + mean, math.sqrt(max(squares / voxels.size - mean**2, 0.0))


def _check_varies(channel: Array) -> None:
    first = channel[0, 0, 0]
    if not any((plane != first).any() for plane in channel):
        raise InputError(_CONSTANT)


def _check_window(channel: Array, low: float, high: float) -> None:
    """Check that a voxel lies inside the window, or voxels on both sides of it."""
    below = above = False
    for plane in channel:
        smallest, largest = float(plane.min()), float(plane.max())
        below, above = below or smallest < high, above or largest > low
        if below and above:
            return
    side = "below" if below else "above"
    raise InputError(
        f"every voxel lies {side} the window {low:g} to {high:g}, so nothing is left to see; are these the right units?"
    )
