"""Figures as PNG files, drawn with Matplotlib's object interface: no global state, no display.

A picture of a prediction shows three planes through a label's centre, in the canonical orientation, with the aspect
that the spacing asks for.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medi3d.errors import InputError
from medi3d.types import Array, FloatArray, FloatTriple, PathLike
from medi3d.volume import CANONICAL_ORIENTATION, LABEL_COLORS, LabelMap, Volume, closest_world_axes

if TYPE_CHECKING:  # Matplotlib takes half a second to import: it waits for the first figure
    from matplotlib.figure import Figure

PLANES = (("axial", 0, "R", "L"), ("coronal", 1, "R", "L"), ("sagittal", 2, "A", "P"))
"""Title, the axis that is cut, and what lies at the left and right edge of the picture."""

_HEIGHT_INCHES = 4.2


@dataclass(frozen=True)
class Scene:
    """Arrays ``(D, H, W)`` in SPL order and what is needed to draw planes of them."""

    image: Array
    prediction: Array | None
    reference: Array | None
    spacing_mm: FloatTriple
    center: tuple[int, ...]
    window: tuple[float, float]


def draw_prediction(
    volume: Volume, prediction: LabelMap, reference: LabelMap | None, path: PathLike, *, labels: Mapping[int, str]
) -> Path:
    """Draw an axial, a coronal and a sagittal plane with the contours of the labels.

    The planes go through the centre of the largest component of the label that covers most voxels (of the reference
    where there is one and it is not empty). Contours of the prediction are full lines, those of the reference dashed.

    Args:
        volume: the image; its first channel is shown.
        prediction: on the volume's grid.
        reference: the truth on the same grid, or ``None``.
        path: of the PNG file.
        labels: label value → name.

    Raises:
        InputError: the grids differ.

    Examples:
        >>> draw_prediction(image, prediction, None, "case.png", labels={1: "nodule"})  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    for name, label_map in (("prediction", prediction), ("reference", reference)):
        if label_map is not None and not volume.grid.is_close(label_map.grid, tolerance=0.01):
            raise InputError(
                f"the {name} does not lie on the volume's grid: {label_map.shape} and {volume.shape} voxels"
            )
    scene = make_scene(volume, prediction, reference, labels)
    extents = np.asarray(scene.image.shape) * scene.spacing_mm
    sizes = np.array([np.delete(extents, axis) for _, axis, _, _ in PLANES])  # (height, width) mm of each picture
    # One scale for all three: the widths and the height of the row are in proportion to the millimetres shown.
    width = _HEIGHT_INCHES * float(sizes[:, 1].sum() / sizes[:, 0].max())
    figure = Figure(figsize=(width + 0.3, _HEIGHT_INCHES + 0.75), facecolor="black")
    grid = figure.add_gridspec(
        1, 3, width_ratios=sizes[:, 1].tolist(), wspace=0.03, left=0.01, right=0.99, top=0.93, bottom=0.1
    )
    for column, plane in enumerate(PLANES):
        draw_plane(figure.add_subplot(grid[0, column]), scene, plane, labels)
    add_legend(figure, labels, with_reference=reference is not None)
    return save_figure(figure, path)


_OF_THE_MACHINE = ("seconds", "cpu_seconds", "patches_per_second", "waiting", "memory_gb")


def draw_curves(metrics_csv: PathLike, path: PathLike) -> Path:
    """Draw every numeric column of a run's metrics table over its first column (the step).

    Args:
        metrics_csv: a CSV with one row a record; empty cells are left out, so that losses and validation scores may
            stand in rows of their own. Columns whose names hold "loss" share the first panel, learning rates the last;
            what tells of the machine, such as ``seconds``, is not drawn.
        path: of the PNG file.

    Raises:
        InputError: the table cannot be read or holds no numbers.

    Examples:
        >>> draw_curves("runs/demo/first/metrics.csv", "curves.png")  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    step, columns = read_columns(Path(metrics_csv))
    columns = {name: values for name, values in columns.items() if name not in _OF_THE_MACHINE}
    panels = {
        "loss": [name for name in columns if "loss" in name],
        "validation": [name for name in columns if "loss" not in name and not _is_rate(name)],
        "learning rate": [name for name in columns if _is_rate(name) and "loss" not in name],
    }
    shown = {title: names for title, names in panels.items() if names}
    figure = Figure(figsize=(5.2 * len(shown), 3.8), layout="constrained")
    for axes, (title, names) in zip(np.ravel(figure.subplots(1, len(shown), sharex=True)), shown.items(), strict=True):
        for name in names:
            known = np.isfinite(columns[name])
            marker = "o" if known.sum() <= 30 else None
            axes.plot(step[1][known], columns[name][known], label=name, linewidth=1.5, marker=marker, markersize=4)
        axes.set(title=title, xlabel=step[0])
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return save_figure(figure, path)


def make_scene(volume: Volume, prediction: LabelMap, reference: LabelMap | None, labels: Mapping[int, str]) -> Scene:
    """Turn what is drawn into SPL order, and find the middle of the largest label."""
    image = to_canonical(volume.array[0], volume)
    predicted = to_canonical(prediction.array[0], volume)
    truth = None if reference is None else to_canonical(reference.array[0], volume)
    target = predicted if truth is None or not np.isin(truth, list(labels)).any() else truth
    spacing = np.asarray(volume.spacing_mm)[list(_canonical_order(volume))]
    low, high = np.percentile(image[:: max(1, image.shape[0] // 32)], [1, 99.5])
    return Scene(
        image,
        predicted,
        truth,
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        find_center(target, labels),
        (float(low), float(max(high, low + 1e-6))),
    )


def _canonical_order(volume: Volume) -> tuple[int, ...]:
    """Return which axis of the volume becomes D, H and W of the SPL order."""
    world = closest_world_axes(volume.grid.direction)
    return world.index(2), world.index(1), world.index(0)


def to_canonical(array: Array, volume: Volume) -> Array:
    """Turn ``(D, H, W)`` of the volume's own axes into SPL order, by transposing and flipping alone."""
    order = _canonical_order(volume)
    letters = [volume.orientation[axis] for axis in order]
    flips = [slice(None, None, 1 if a == b else -1) for a, b in zip(letters, CANONICAL_ORIENTATION, strict=True)]
    turned: Array = array.transpose(order)[tuple(flips)]
    return turned


def find_center(label_map: Array, labels: Mapping[int, str]) -> tuple[int, ...]:
    """Return a voxel in the middle of the largest component of the most frequent label, else the middle voxel."""
    from scipy.ndimage import distance_transform_edt, find_objects, label

    counts = {value: np.count_nonzero(label_map == value) for value in labels}
    value = max(counts, key=lambda key: counts[key], default=0)
    if not counts.get(value):
        return tuple(n // 2 for n in label_map.shape)
    components, _ = label(label_map == value)
    largest = int(np.bincount(components.ravel())[1:].argmax()) + 1
    box = find_objects(components)[largest - 1]
    # The innermost voxel, which lies inside even where the shape is bent.
    depth = distance_transform_edt(np.pad(components[box] == largest, 1))[1:-1, 1:-1, 1:-1]
    inner = np.unravel_index(int(depth.argmax()), depth.shape)
    return tuple(int(s.start + i) for s, i in zip(box, inner, strict=True))


def draw_plane(axes: Any, scene: Scene, plane: tuple[str, int, str, str], labels: Mapping[int, str]) -> None:
    """Draw one of :data:`PLANES` through the scene's centre, with the contours of its labels."""
    title, axis, left, right = plane
    rows, columns = (n for n in range(3) if n != axis)
    aspect = scene.spacing_mm[rows] / scene.spacing_mm[columns]
    # Superior is up: in the planes that hold D, row 0 (inferior) lies at the bottom.
    origin = "upper" if axis == 0 else "lower"
    show = {"origin": origin, "aspect": aspect}
    low, high = scene.window
    axes.imshow(
        _cut(scene.image, axis, scene.center), cmap="gray", vmin=low, vmax=high, interpolation="bilinear", **show
    )
    for truth, label_map in ((True, scene.reference), (False, scene.prediction)):
        if label_map is not None:
            _draw_contours(axes, _cut(label_map, axis, scene.center), labels, dashed=truth)
    axes.set_title(title, color="white", fontsize=11)
    for x, letter in ((0.02, left), (0.98, right)):
        align = "left" if x < 0.5 else "right"
        axes.text(x, 0.5, letter, color="#bbbbbb", transform=axes.transAxes, ha=align, va="center", fontsize=9)
    axes.set_axis_off()


def _cut(array: Array, axis: int, center: tuple[int, ...]) -> Array:
    plane: Array = np.take(array, center[axis], axis=axis)
    return plane


def _draw_contours(axes: Any, plane: Array, labels: Mapping[int, str], *, dashed: bool) -> None:
    for value in labels:
        mask = plane == value
        if mask.any():
            # Padding closes the contours of what touches the edge.
            axes.contour(
                np.arange(-1, mask.shape[1] + 1),
                np.arange(-1, mask.shape[0] + 1),
                np.pad(mask.astype(float), 1),
                levels=[0.5],
                colors=["white"] if dashed else [_color(value)],
                linestyles="dashed" if dashed else "solid",
                linewidths=1.0 if dashed else 1.6,
            )


def _color(value: int) -> str:
    return LABEL_COLORS[(value - 1) % len(LABEL_COLORS)]


def add_legend(figure: Figure, labels: Mapping[int, str], *, with_reference: bool) -> None:
    """Name the contours below a figure."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_color(value), linewidth=2, label=name) for value, name in labels.items()]
    if with_reference:
        handles.append(Line2D([], [], color="white", linestyle="dashed", linewidth=1.2, label="reference"))
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor="white", fontsize=10
    )


def _is_rate(name: str) -> bool:
    return name in ("lr", "learning_rate") or name.endswith(("/lr", "learning_rate"))


def read_columns(path: Path) -> tuple[tuple[str, FloatArray], dict[str, FloatArray]]:
    """Return a table's first column's name and values, and the other columns that hold numbers; empty cells are NaN."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV table: {error}") from None
    columns = {
        name: np.array([_number(row[index]) if index < len(row) else np.nan for row in rows])
        for index, name in enumerate(header)
    }
    numeric = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if len(numeric) < 2 or header[0] not in numeric:
        raise InputError(f"{path}: expected a column of steps and at least one of numbers; got {_listed(header)}")
    step = numeric.pop(header[0])
    return (header[0], step), numeric


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "an empty table"


def save_figure(figure: Figure, path: PathLike) -> Path:
    """Write a figure as a PNG file, making its folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130, format="png")
    return path
