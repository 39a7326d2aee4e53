"""From raw files to a prepared case: read, check, normalise, orient, crop and resample in one step.

Training and prediction share :func:`prepare_image`, so that both see the same voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.io.record import Record
from medi3d.preprocess.crop import CROPS, mask_center_mm, prepared_spacing, resample_and_pad
from medi3d.preprocess.fingerprint import measure_case
from medi3d.preprocess.intensity import NORMALIZATIONS
from medi3d.preprocess.orient import prepared_orientation, reorient
from medi3d.preprocess.resample import resample_to
from medi3d.preprocess.raw_case import RawCase
from medi3d.types import FloatArray, FloatTriple
from medi3d.volume import Grid, LabelMap, Volume

AFFINE_TOLERANCE = 0.05
"""Share of a voxel by which the corners of two files of a case may differ: headers round."""


def read_image(paths: Sequence[Path], *, channels: int | None = None) -> Volume:
    """Read the files of one case as the channels of one volume.

    Args:
        paths: one file with all channels, or one file a channel.
        channels: number of channels that is expected; ``None`` takes one a file.

    Raises:
        InputError: another number of channels, or grids that disagree.
    """
    if len(paths) == 1:
        return io.read_volume(paths[0], channels=channels)
    if channels is not None and len(paths) != channels:
        names = ", ".join(path.name for path in paths) or "none"
        raise InputError(f"expected {channels} channels (data.channels), got {len(paths)} files: {names}")
    volumes = [io.read_volume(path) for path in paths]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        check_same_grid(volumes[0].grid, volume.grid, paths[0], path)
    return Volume(np.concatenate([volume.array for volume in volumes]), volumes[0].affine)


def check_same_grid(first: Grid, second: Grid, first_path: Path, second_path: Path) -> None:
    """Check that two files of a case cover the same voxels.

    Raises:
        InputError: shapes or affines disagree; the message holds both.
    """
    if first.is_close(second, tolerance=AFFINE_TOLERANCE):
        return
    if first.shape != second.shape:
        what = f"shapes (D, H, W) disagree: {first.shape} against {second.shape}"
    else:
        shift = np.linalg.norm((first.affine - second.affine)[:3, 3])
        what = (
            f"affines disagree: spacing {_rounded(first.spacing_mm)} {first.orientation} against "
            f"{_rounded(second.spacing_mm)} {second.orientation} mm, origins {shift:.2f} mm apart"
        )
    raise InputError(f"{first_path} and {second_path}: {what}; export both on one grid")


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
    config = task.preprocess
    if volume.num_channels != task.in_channels:
        raise InputError(
            f"expected {task.in_channels} channels ({', '.join(task.data.channels)}), got {volume.num_channels}"
        )
    wanted = config.spacing_mm
    orientation = prepared_orientation(
        volume.grid, None if wanted == "native" else prepared_spacing(wanted, volume.grid)
    )
    oriented = reorient(volume, orientation)
    target = CROPS[config.crop](oriented, config, prepared_spacing(wanted, oriented.grid), center_mm)
    normalized, measured = _normalize(volume, task)
    prepared = resample_and_pad(
        reorient(normalized, orientation), target, interpolation=config.interpolation, padding=config.padding
    )
    steps: list[dict[str, Any]] = [
        *measured,
        {"step": "orient", "from": volume.orientation, "to": orientation},
        {
            "step": "crop",
            "mode": config.crop,
            "center_mm": None if center_mm is None else list(center_mm),
        },
        {
            "step": "resample",
            "interpolation": config.interpolation,
            "padding": config.padding,
            "from_spacing_mm": list(volume.spacing_mm),
            "to_spacing_mm": list(target.spacing_mm),
        },
    ]
    return prepared, Record(native=volume.grid, prepared=target, steps=tuple(steps))


def prepare_case(raw: RawCase, task: TaskConfig) -> tuple[Volume, LabelMap | None, Record]:
    """Read, check and prepare one raw case.

    Returns:
        Image ``(C, D, H, W)`` float32, label map ``(1, D, H, W)`` uint8 or ``None``, both on ``record.prepared``.

    Raises:
        InputError: any of the case's files cannot be used.
    """
    image, label, record, _ = prepare_and_measure(raw, task)
    return image, label, record


def prepare_and_measure(raw: RawCase, task: TaskConfig) -> tuple[Volume, LabelMap | None, Record, dict[str, Any]]:
    """Do what :func:`prepare_case` does and measure the raw case for the fingerprint as well."""
    volume = read_image(raw.images, channels=task.in_channels)
    label = _read_label(raw.label, volume.grid, raw.images[0], task) if raw.label is not None else None
    image, record = prepare_image(volume, task, center_mm=_cube_center(raw, volume.grid, task))
    statistics = measure_case(volume, label)
    prepared_label = None if label is None else resample_to(label, record.prepared, fill=0.0)
    return image, prepared_label, record, statistics


def _read_label(path: Path, grid: Grid, image_path: Path, task: TaskConfig) -> LabelMap:
    label = io.read_label_map(path)
    check_same_grid(grid, label.grid, image_path, path)
    known = {0, *task.data.labels}
    unknown = sorted(set(np.unique(label.array).tolist()) - known)
    if unknown:
        raise InputError(
            f"{path}: unknown label values {', '.join(map(str, unknown[:8]))}{' …' if len(unknown) > 8 else ''}; "
            f"data.labels knows {', '.join(map(str, sorted(known)))}"
        )
    return LabelMap(label.array.astype(np.uint8), label.affine)


def _cube_center(raw: RawCase, grid: Grid, task: TaskConfig) -> FloatTriple | None:
    path = raw.center or raw.label
    if task.preprocess.crop != "cube" or path is None:
        return None
    mask = io.read_label_map(path)
    check_same_grid(grid, mask.grid, raw.images[0], path)
    try:
        return mask_center_mm(mask)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _normalize(volume: Volume, task: TaskConfig) -> tuple[Volume, list[dict[str, Any]]]:
    channels: list[FloatArray] = []
    steps: list[dict[str, Any]] = []
    measured = task.preprocess.dataset_intensities or (None,) * task.in_channels
    named = zip(task.data.channels, task.normalizations, volume.array, measured, strict=True)
    for name, method, channel, dataset in named:
        try:
            intensities = NORMALIZATIONS[method](channel, task.preprocess, dataset)
        except InputError as error:
            raise InputError(f"channel {name}: {error}") from None
        channels.append(intensities(channel))
        steps.append({"step": "normalize", "channel": name, "method": method, **intensities.to_json()})
    return Volume(np.stack(channels), volume.affine), steps


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in values)
