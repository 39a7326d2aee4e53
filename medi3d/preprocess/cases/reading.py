"""Reading the files of one raw case, and the checks between them: one image, its label map, and where a cube is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medi3d import io
from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.io.scratch import spool
from medi3d.preprocess.cases.raw_case import RawCase
from medi3d.preprocess.crop import mask_center_mm
from medi3d.preprocess.foreground import find_background
from medi3d.preprocess.resampling.labels import find_labels
from medi3d.preprocess.resampling.resample import resample_to
from medi3d.types import Array, FloatTriple
from medi3d.volume import Grid, LabelMap, Volume

AFFINE_TOLERANCE = 0.05
"""Share of a voxel by which the corners of two files of a case may differ: headers round."""

LEAST_OVERLAP = 0.5
"""Share of the first channel's voxels that another channel's file must cover."""


def read_image(
    paths: Sequence[Path],
    *,
    channels: int | None = None,
    frame: int | None = None,
    quantities: Sequence[str] = ("stored",),
    scratch: Path | None = None,
) -> Volume:
    """Read the files of one case as the channels of one volume on the first file's grid.

    A channel whose grid differs is resampled; where it does not reach, it holds its background (its lowest value, where
    it has none).

    Args:
        paths: one file with all channels, or one file a channel.
        channels: number of channels that is expected; ``None`` takes one a file.
        frame: which entry of the files' fourth axis is read, where that is time.
        quantities: what the values are, ``stored`` or ``suv``: one entry for all, or one a file.
        scratch: folder for voxels that shall not be held in memory.

    Returns:
        ``(C, D, H, W)`` of the type that is stored, or one that holds all files' values.

    Raises:
        InputError: a file that cannot be used, another number of channels, or a channel elsewhere in space.
    """
    if len(paths) == 1:
        count = 1 if frame is not None else channels
        return io.read_volume(
            paths[0], dtype=None, channels=count, frame=frame, quantity=quantities[0], scratch=scratch
        )
    if channels is not None and len(paths) != channels:
        names = ", ".join(path.name for path in paths) or "none"
        raise InputError(f"expected {channels} channels (data.channels), got {len(paths)} files: {names}")
    volumes: list[Volume] = []
    for path, quantity in zip(paths, quantities if len(quantities) > 1 else [quantities[0]] * len(paths), strict=True):
        volume = io.read_volume(path, dtype=None, frame=frame, quantity=quantity, scratch=scratch)
        volumes.append(volume if not volumes else _on_grid(volume, volumes[0].grid, path, paths[0]))
    return Volume(_stack([volume.array for volume in volumes], scratch), volumes[0].affine)


def read_label(raw: RawCase, grid: Grid, task: TaskConfig, *, scratch: Path | None = None) -> LabelMap | None:
    """Read the label map of a case.

    Returns:
        ``(1, D, H, W)`` uint8 on the image's grid, or ``None`` where the case has none.

    Raises:
        InputError: it lies on another grid than the image, holds values that ``data.labels`` does not name, is all
            background, or annotates nothing.
    """
    if raw.label is None:
        return None
    label = _read_mask(raw.label, grid, raw, scratch)
    ignored = task.data.ignore_label
    known = {0, *task.data.labels}
    present = set(find_labels(label.array[0])) - {ignored}
    unknown = sorted(present - known)
    if unknown:
        raise InputError(
            f"{raw.label}: unknown label values {', '.join(map(str, unknown[:8]))}{' …' if len(unknown) > 8 else ''}; "
            f"data.labels knows {', '.join(map(str, sorted(known)))}"
            + (f", data.ignore_label is {ignored}" if ignored is not None else "")
        )
    if not present:
        raise InputError(f"{raw.label}: every voxel holds data.ignore_label ({ignored}), so it annotates nothing")
    if present == {0} and not task.data.allow_empty_labels:
        raise InputError(
            f"{raw.label}: the label map is all background; leave the case out, or set data.allow_empty_labels if that "
            "is the truth"
        )
    return LabelMap(label.array.astype(np.uint8, copy=False), label.affine)


def read_cube_center(raw: RawCase, grid: Grid, task: TaskConfig) -> FloatTriple | None:
    """Return where the task's cube is cut, RAS millimetres; ``None`` where it cuts none or nothing tells where."""
    path = raw.center or raw.label
    if task.preprocess.crop != "cube" or path is None:
        return None
    try:
        return mask_center_mm(
            _read_mask(path, grid, raw, None), ignore_label=None if raw.center else task.data.ignore_label
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


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


def _read_mask(path: Path, grid: Grid, raw: RawCase, scratch: Path | None) -> LabelMap:
    frame = raw.frame if raw.frame is not None and io.read_header(path).channels > 1 else None
    label = io.read_label_map(path, frame=frame, scratch=scratch)
    check_same_grid(grid, label.grid, raw.images[0], path)
    return label


def _on_grid(volume: Volume, grid: Grid, path: Path, first_path: Path) -> Volume:
    """Bring another channel onto the first one's grid, if it covers enough of it."""
    if volume.grid.is_close(grid, tolerance=AFFINE_TOLERANCE):
        return volume
    covered = _overlap(grid, volume.grid)
    if covered < LEAST_OVERLAP:
        raise InputError(
            f"{path}: covers {covered:.0%} of {first_path}, so it is no channel of the same case; are these files "
            "of one patient and one examination?"
        )
    background = find_background(volume.array[0]).value
    fill = float(volume.array.min()) if background is None else background
    return resample_to(volume, grid, fill=fill)


def _stack(channels: Sequence[Array], scratch: Path | None) -> Array:
    """Join channels ``(1, D, H, W)`` in a type that holds them all, on disk where memory shall not."""
    if scratch is None:
        return np.concatenate(channels)
    dtype = np.result_type(*channels)
    planes = (plane.astype(dtype, copy=False) for channel in channels for plane in channel[0])
    joined = spool(planes, scratch, dtype=dtype, count=sum(channel.size for channel in channels))
    return joined.reshape(len(channels), *channels[0].shape[1:])


def _overlap(grid: Grid, other: Grid) -> float:
    """Return the share of a grid's voxels that lie inside the field of view of another (of up to 32³ of them)."""
    axes: list[Any] = [np.linspace(0, count - 1, min(count, 32)) for count in grid.shape]
    points = grid.index_to_world(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))
    index = other.world_to_index(points)
    inside = (index >= -0.5 - AFFINE_TOLERANCE) & (index <= np.asarray(other.shape) - 0.5 + AFFINE_TOLERANCE)
    return float(inside.all(axis=1).mean())


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in values)
