"""What an ``--input`` stands for: cases that can be read, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.io import case_name, image_files, read_label_map
from medi3d.io.files import is_image
from medi3d.preprocess.cases.layouts import group_channels, set_doubles_apart
from medi3d.preprocess.cases.raw_case import CaseProblem, RawCase, RawCases
from medi3d.preprocess.cases.sources import find_raw_cases
from medi3d.preprocess.crop import mask_center_mm
from medi3d.types import FloatTriple
from medi3d.volume import Volume


def list_inputs(source: Path, task: TaskConfig, masks: Path | None) -> RawCases:
    """Find the cases that an ``--input`` names, and what is wrong with others.

    A table, and a folder without images of its own for a task whose layout is ``patterns``, are read as preprocessing
    reads them; anything else is an image, a DICOM series, or a folder of them.

    Raises:
        InputError: it does not exist, or holds no images.
    """
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; --input takes an image, a folder, a DICOM series or a .csv"
        )
    plain = source.is_file() or is_image(source) or any(map(is_image, source.iterdir()))
    nested = task.data.layout == "patterns" and not plain
    if nested or source.suffix == ".csv":
        return find_raw_cases(source, task.data, need_label=False)
    files, doubled = set_doubles_apart(image_files(source))
    groups = group_channels(files, channels=task.in_channels)
    if masks is not None and masks.is_file() and len(groups) > 1:
        raise InputError(f"{masks}: one mask for {len(groups)} images; give --masks a folder of masks with their names")
    return RawCases(
        [RawCase(name, name, images, None, None, _mask_of(name, masks)) for name, images in groups.items()],
        [CaseProblem(name, message) for name, message in doubled.items()],
    )


def find_center(case: RawCase, volume: Volume, task: TaskConfig, *, center_of_image: bool) -> FloatTriple | None:
    """Return where the task's cube is cut, RAS millimetres; ``None`` for tasks that cut none.

    Raises:
        InputError: nothing tells where.
    """
    if task.preprocess.crop != "cube":
        return None
    if center_of_image:
        x, y, z = volume.grid.index_to_world([(n - 1) / 2 for n in volume.shape])
        return float(x), float(y), float(z)
    if case.center is None:
        raise InputError(
            "this task cuts a cube and nothing tells where; give --masks with a mask of that name, "
            "a .csv with a mask column, or --center image"
        )
    return mask_center_mm(read_label_map(case.center))


def _mask_of(name: str, masks: Path | None) -> Path | None:
    if masks is None or not masks.is_dir():
        return masks
    return next((path for path in image_files(masks) if case_name(path) == name), None)
