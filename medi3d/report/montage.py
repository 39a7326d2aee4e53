"""The picture of one case: three planes where truth and prediction differ most, and a row of slices through the labels.

Of a classification: three planes through the middle with what spoke for the class, and a row of slices without it.

It is what a page shows on paper, and where the viewer cannot run.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medi3d.errors import InputError
from medi3d.report.figures import PLANES, Scene, add_legend, draw_plane, make_scene, to_canonical
from medi3d.types import Array
from medi3d.volume import LabelMap, Volume

_WIDTH_INCHES, _DPI = 7.6, 110
_SLICES = 6
_HEAT_COLOURS = "inferno"
_HEAT_FROM = 0.15
"""Heat below this share of the highest is not drawn."""


@dataclass(frozen=True, eq=False)
class CaseImages:
    """What there is to see of a case, all on one grid.

    Args:
        case_id: its name.
        image: ``(C, D, H, W)``; the first channel is shown.
        prediction: label map, of a segmentation.
        reference: the truth, where there is one.
        heat: ``(1, D, H, W)`` from 0 to 1: which places spoke for the class, of a classification.

    Raises:
        InputError: they do not lie on one grid.
    """

    case_id: str
    image: Volume
    prediction: LabelMap | None = None
    reference: LabelMap | None = None
    heat: Volume | None = None

    def __post_init__(self) -> None:
        for name in ("prediction", "reference", "heat"):
            other = getattr(self, name)
            if other is not None and not other.grid.is_close(self.image.grid, tolerance=0.01):
                raise InputError(
                    f"case {self.case_id}: the {name} does not lie on the image's grid: {other.shape} and "
                    f"{self.image.shape} voxels"
                )


def draw_montage(case: CaseImages, labels: Mapping[int, str]) -> bytes:
    """Draw a case, black ground, as WebP.

    Args:
        case: with a prediction or a heat map, or with neither.
        labels: label value → name.
    """
    from matplotlib.figure import Figure

    scene, heat = scene_of(case, labels)
    place = telling_place(scene)
    extents = np.asarray(scene.image.shape) * scene.spacing_mm
    sizes = np.array([np.delete(extents, axis) for _, axis, _, _ in PLANES])  # (height, width) mm of each picture
    tall = _WIDTH_INCHES * float(sizes[:, 0].max() / sizes[:, 1].sum())
    small = _WIDTH_INCHES / _SLICES * float(extents[1] / extents[2])
    has_labels = bool(labels) and scene.prediction is not None
    margin = 0.36 if has_labels else 0.06
    figure = Figure(figsize=(_WIDTH_INCHES, tall + small + 0.3 + margin), facecolor="black")
    height = figure.get_figheight()
    rows = figure.add_gridspec(
        2, 1, height_ratios=[tall, small], hspace=0.04, left=0.005, right=0.995, top=1 - 0.24 / height,
        bottom=margin / height,
    )  # fmt: skip
    row = rows[0].subgridspec(1, 3, width_ratios=sizes[:, 1].tolist(), wspace=0.02)
    for column, plane in enumerate(PLANES):
        _draw(figure.add_subplot(row[0, column]), replace(scene, center=place), heat, plane, labels)
    strip = rows[1].subgridspec(1, _SLICES, wspace=0.02)
    for column, depth in enumerate(_even_slices(scene)):
        axes = figure.add_subplot(strip[0, column])
        draw_plane(axes, replace(scene, center=(depth, *place[1:])), ("", PLANES[0][1], "", ""), labels)
    if has_labels:
        add_legend(figure, labels, with_reference=scene.reference is not None)
    return _encode(figure)


def telling_place(scene: Scene) -> tuple[int, int, int]:
    """Return the index (d, h, w) whose three planes show most of what differs, else the middle of what is drawn."""
    if scene.prediction is not None and scene.reference is not None:
        mask = scene.prediction != scene.reference
        if mask.any():
            d, h, w = (int(mask.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3))
            return d, h, w
    d, h, w = scene.center
    return d, h, w


def scene_of(case: CaseImages, labels: Mapping[int, str]) -> tuple[Scene, Array | None]:
    """Return a case in SPL order, and its heat ``(D, H, W)``."""
    empty = LabelMap(np.zeros((1, *case.image.shape), np.uint8), case.image.affine)
    scene = make_scene(case.image, empty if case.prediction is None else case.prediction, case.reference, labels)
    if case.prediction is None:
        scene = replace(scene, prediction=None)
    heat = None if case.heat is None else to_canonical(case.heat.array[0], case.image)
    return scene, heat


def _even_slices(scene: Scene) -> list[int]:
    """Choose slices across D at even distances through all that is labelled, or through the volume."""
    masks = [array > 0 for array in (scene.prediction, scene.reference) if array is not None]
    planes = np.flatnonzero(np.any([mask.any(axis=(1, 2)) for mask in masks], axis=0)) if masks else np.array([])
    first, last = (planes[0], planes[-1]) if len(planes) else (0, scene.image.shape[0] - 1)
    return [round(float(at)) for at in np.linspace(first, last, _SLICES + 2)[1:-1]]


def _draw(axes: Any, scene: Scene, heat: Array | None, plane: Any, labels: Mapping[int, str]) -> None:
    draw_plane(axes, scene, plane, labels)
    if heat is not None:
        axis = plane[1]
        values = np.take(heat, scene.center[axis], axis=axis)
        opacity = np.clip((values - _HEAT_FROM) / (1 - _HEAT_FROM), 0, 1) * 0.75
        axes.imshow(
            values, cmap=_HEAT_COLOURS, vmin=0, vmax=1, alpha=opacity, interpolation="bilinear",
            origin="upper" if axis == 0 else "lower", aspect=axes.get_aspect(),
        )  # fmt: skip


def _encode(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format="webp", pil_kwargs={"quality": 88, "method": 4})
    return stream.getvalue()
