"""From raw files to a prepared case: read, check, lay out the prepared grid, and fill it slab by slab.

A slab of the prepared image needs only the native voxels beneath it: they are clipped, smoothed and interpolated in one
step, and rescaled after it. So memory holds the native voxels as they are stored and one slab, and a case too big
for memory differs only in that its native voxels are mapped from disk. Training and prediction share this path, so that
both see the same voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.io.prepared import SLAB_PLANES, Slabs
from medi3d.io.record import Record
from medi3d.preprocess.bias import correct_bias
from medi3d.preprocess.cases.raw_case import RawCase
from medi3d.preprocess.cases.reading import read_cube_center, read_image, read_label
from medi3d.preprocess.crop import CROPS, prepared_spacing
from medi3d.preprocess.intensity import NORMALIZATIONS, IntensityMap
from medi3d.preprocess.orient import prepared_orientation, reorient
from medi3d.preprocess.quality.fingerprint import CountedLabels, measure_case
from medi3d.preprocess.resampling.labels import LabelResampler
from medi3d.preprocess.resampling.resample import ImageResampler
from medi3d.types import Array, FloatTriple
from medi3d.volume import Grid, LabelMap, Volume

_BIAS_CORRECTED = ("mr", "percentile")
_SLAB_COPIES = 4
_PROCESS_BYTES = 150 * 2**20


@dataclass(frozen=True)
class Preparation:
    """A case about to be prepared: its arrays are computed as they are asked for.

    Args:
        image: ``(C, D, H, W)`` float32.
        label: ``(1, D, H, W)`` uint8, or ``None`` where the case has none.
        record: native and prepared grid.
        statistics: of the raw case, for the fingerprint; complete when the label's last slab was asked for.
    """

    image: Slabs
    label: Slabs | None
    record: Record
    statistics: dict[str, Any]


@dataclass(frozen=True)
class NormalizedSlabs:
    """Resampled slabs on which each channel's intensity map is completed."""

    resampler: ImageResampler
    maps: tuple[IntensityMap, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(C, D, H, W)``."""
        return self.resampler.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return self.resampler.dtype

    def slab(self, start: int, stop: int) -> Array:
        """Return the planes ``start`` to ``stop`` (not included), ``(C, stop - start, H, W)``."""
        resampled = self.resampler.slab(start, stop)
        for completed, channel in zip(self.maps, resampled, strict=True):
            completed.after(channel)
        return resampled


def open_case(raw: RawCase, task: TaskConfig, *, scratch: Path | None = None) -> Preparation:
    """Read and check one raw case and lay out its prepared grid.

    Args:
        raw: where its files lie.
        task: the task, with a prepared spacing that is not ``median`` any more.
        scratch: folder for native voxels that shall not be held in memory; ``None`` holds them there.

    Raises:
        InputError: any of the case's files cannot be used.
    """
    volume = read_image(
        raw.images, channels=task.in_channels, frame=raw.frame, quantities=task.quantities, scratch=scratch
    )
    label = read_label(raw, volume.grid, task, scratch=scratch)
    image, record = lay_out(volume, task, center_mm=read_cube_center(raw, volume.grid, task))
    ignored = task.data.ignore_label
    statistics = measure_case(volume, label, ignore_label=ignored)
    prepared_label = None
    if label is not None:
        resampler = LabelResampler(label.array, label.grid, record.prepared, fill=0, ignore_label=ignored)
        prepared_label = CountedLabels(resampler, statistics)
    return Preparation(image, prepared_label, record, statistics)


def lay_out(volume: Volume, task: TaskConfig, *, center_mm: FloatTriple | None = None) -> tuple[Slabs, Record]:
    """Lay out the prepared grid of a native volume and fit its intensities, see :func:`prepare_image`."""
    config = task.preprocess
    if volume.num_channels != task.in_channels:
        raise InputError(
            f"expected {task.in_channels} channels ({', '.join(task.data.channels)}), got {volume.num_channels}"
        )
    corrected, bias_steps = _without_bias(volume, task)
    orientation, target = _prepared_grid(corrected, task, center_mm)
    maps, intensity_steps = _fit_intensities(corrected, task)
    resampler = ImageResampler(
        corrected.array,
        corrected.grid,
        target,
        interpolation=config.interpolation,
        padding=config.padding,
        before=lambda native, channel: maps[channel].before(native),
    )
    steps: list[dict[str, Any]] = [
        *bias_steps,
        *intensity_steps,
        {"step": "orient", "from": volume.orientation, "to": orientation},
        {"step": "crop", "mode": config.crop, "center_mm": None if center_mm is None else list(center_mm)},
        {
            "step": "resample",
            "interpolation": config.interpolation,
            "padding": config.padding,
            "from_spacing_mm": list(volume.spacing_mm),
            "to_spacing_mm": list(target.spacing_mm),
        },
    ]
    return NormalizedSlabs(resampler, maps), Record(native=volume.grid, prepared=target, steps=tuple(steps))


def prepare_image(volume: Volume, task: TaskConfig, *, center_mm: FloatTriple | None = None) -> tuple[Volume, Record]:
    """Prepare an image as training does: normalised, oriented, cropped and resampled.

    Args:
        volume: native intensities ``(C, D, H, W)``.
        task: the task; ``data.channels`` and ``preprocess`` are used.
        center_mm: RAS millimetres, the middle of the cube where ``preprocess.crop`` is ``cube``; ``None`` is
            the middle of the volume.

    Returns:
        The prepared volume (float32) and the record that maps it back.

    Raises:
        InputError: the number of channels differs from the task's, or the image cannot be normalised or cropped.

    Example:
        >>> from medi3d.config import load_task
        >>> raw = Volume(np.random.default_rng(0).normal(size=(1, 6, 20, 20)).astype("f4"), np.diag([3.0, 1, 1, 1]))
        >>> prepare_image(raw, load_task("hippocampus"))[0].shape
        (20, 20, 18)
    """
    slabs, record = lay_out(volume, task, center_mm=center_mm)
    return Volume(assemble(slabs), record.prepared.affine), record


def prepare_case(raw: RawCase, task: TaskConfig) -> tuple[Volume, LabelMap | None, Record]:
    """Read, check and prepare one raw case, whole in memory.

    Returns:
        Image ``(C, D, H, W)`` float32, label map ``(1, D, H, W)`` uint8 or ``None``, both on ``record.prepared``.

    Raises:
        InputError: any of the case's files cannot be used.
    """
    case = open_case(raw, task)
    affine = case.record.prepared.affine
    label = None if case.label is None else LabelMap(assemble(case.label), affine)
    return Volume(assemble(case.image), affine), label, case.record


def assemble(slabs: Slabs) -> Array:
    """Compute all slabs of an array into one, ``(C, D, H, W)``."""
    whole = np.empty(slabs.shape, slabs.dtype)
    for start in range(0, slabs.shape[1], SLAB_PLANES):
        stop = min(start + SLAB_PLANES, slabs.shape[1])
        whole[:, start:stop] = slabs.slab(start, stop)
    return whole


def estimate_bytes(raw: RawCase, task: TaskConfig) -> int:
    """Estimate from the headers how much memory preparing a case takes without a scratch folder.

    Returns:
        Bytes; of a case whose headers cannot be used, what a process takes by itself: it is refused when it is read.
    """
    try:
        headers = [io.read_header(path) for path in raw.images]
        label = None if raw.label is None else io.read_header(raw.label)
        compressed = max(file.stat().st_size for path in raw.images for file in io.source_files(path))
    except (InputError, OSError):
        return _PROCESS_BYTES
    native = sum(header.num_bytes for header in headers) * (2 if len(headers) > 1 else 1)
    if label is not None:
        native += label.num_bytes + label.num_bytes // label.dtype.itemsize
    first = headers[0].grid
    if task.preprocess.bias_correction == "n4":
        native += 4 * 4 * task.in_channels * int(np.prod(first.shape, dtype=np.int64))
    wanted = task.preprocess.spacing_mm
    spacing_mm = first.spacing_mm if isinstance(wanted, str) else wanted
    voxel_mm3 = np.abs(np.linalg.det(first.affine[:3, :3]))
    voxels = np.prod(first.shape, dtype=np.float64) * voxel_mm3 / np.prod(spacing_mm)
    slab = 4 * task.in_channels * min(SLAB_PLANES * np.cbrt(voxels) ** 2, voxels)
    return int(native + compressed + _SLAB_COPIES * slab + _PROCESS_BYTES)


def _prepared_grid(volume: Volume, task: TaskConfig, center_mm: FloatTriple | None) -> tuple[str, Grid]:
    """Return the orientation and the grid of the prepared image."""
    config, wanted = task.preprocess, task.preprocess.spacing_mm
    orientation = prepared_orientation(
        volume.grid, None if wanted == "native" else prepared_spacing(wanted, volume.grid)
    )
    oriented = reorient(volume, orientation)
    return orientation, CROPS[config.crop](oriented, config, prepared_spacing(wanted, oriented.grid), center_mm)


def _without_bias(volume: Volume, task: TaskConfig) -> tuple[Volume, list[dict[str, Any]]]:
    """Remove the bias field of the channels that are normalised by what they show, where the task asks for it."""
    if task.preprocess.bias_correction == "none":
        return volume, []
    chosen = [method in _BIAS_CORRECTED for method in task.normalizations]
    channels = [
        correct_bias(channel, volume.grid) if wanted else channel.astype(np.float32)
        for channel, wanted in zip(volume.array, chosen, strict=True)
    ]
    names = [name for name, wanted in zip(task.data.channels, chosen, strict=True) if wanted]
    return Volume(np.stack(channels), volume.affine), [{"step": "bias", "method": "n4", "channels": names}]


def _fit_intensities(volume: Volume, task: TaskConfig) -> tuple[tuple[IntensityMap, ...], list[dict[str, Any]]]:
    maps: list[IntensityMap] = []
    steps: list[dict[str, Any]] = []
    measured = task.preprocess.dataset_intensities or (None,) * task.in_channels
    named = zip(task.data.channels, task.normalizations, volume.array, measured, strict=True)
    for name, method, channel, dataset in named:
        try:
            maps.append(NORMALIZATIONS[method](channel, task.preprocess, dataset))
        except InputError as error:
            raise InputError(f"channel {name}: {error}") from None
        steps.append({"step": "normalize", "channel": name, "method": method, **maps[-1].to_json()})
    return tuple(maps), steps
