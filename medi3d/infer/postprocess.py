"""Post-processing of label maps on the scanner's own grid: connected pieces, holes, surfaces.

Sizes are millilitres and distances millimetres, both from the affine; so a step does the same to a volume whatever its
spacing and however its axes run. Each step looks at the box around the labels that it acts on, not at the volume.
Pieces are those of connected-components-3d (Silversmith 2021, doi:10.5281/zenodo.5535251), which labels all values of
a map in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medi3d.config.postprocess import FillHoles, LargestComponent, PostprocessStep, RemoveSmall, Smooth
from medi3d.types import Array, FloatTriple, IntTriple
from medi3d.volume import Grid, LabelMap

_BY_A_FACE = 6
_ROUNDING = 1e-6
"""Share by which a volume may seem smaller than it is: files hold an affine in float32."""
_REACH = 4.0
"""Standard deviations after which a Gaussian is cut."""

_Box = tuple[slice, slice, slice]


def postprocess(label: LabelMap, steps: Sequence[PostprocessStep]) -> LabelMap:
    """Do the steps of ``infer.postprocess`` to a label map, one after the other.

    Args:
        label: a predicted label map; it is not changed.
        steps: see :mod:`medi3d.config.postprocess`.

    Returns:
        The label map that they leave, of the same type and on the same grid.

    Examples:
        >>> array = np.zeros((1, 3, 4, 8), np.uint8)
        >>> array[0, 1, 1:3, 1:4], array[0, 1, 1, 6] = 1, 1
        >>> kept = postprocess(LabelMap(array, np.diag([2.0, 1.0, 1.0, 1.0])), [LargestComponent()])
        >>> int(array.sum()), int(kept.array.sum())
        (7, 6)
    """
    array = label.array[0]
    for step in steps:
        box = _box_around(array, step.labels, _margin(step, label.grid))
        if box is not None:
            part = _STEPS[type(step)](array[box], step, label.grid)
            array = array.copy()
            array[box] = part
    return label if not steps else LabelMap(array[None], label.affine)


def voxel_ml(grid: Grid) -> float:
    """Return the volume of a voxel in millilitres, of sheared grids too."""
    return float(abs(np.linalg.det(grid.affine[:3, :3]))) / 1000


def _box_around(array: Array, labels: Sequence[int], margin: IntTriple) -> _Box | None:
    """Return the box around the voxels of some labels and a margin, as far as the volume reaches."""
    chosen = _is_chosen(array, labels)
    slices = []
    for axis, extra in enumerate(margin):
        others = tuple(other for other in range(3) if other != axis)
        at = np.flatnonzero(chosen.any(axis=others))
        if not len(at):
            return None
        slices.append(slice(max(int(at[0]) - extra, 0), int(at[-1]) + 1 + extra))
    d, h, w = slices
    return d, h, w


def _is_chosen(array: Array, labels: Sequence[int]) -> Array:
    chosen: Array = np.isin(array, labels) if labels else array > 0
    return chosen


def _margin(step: PostprocessStep, grid: Grid) -> IntTriple:
    if isinstance(step, Smooth):
        d, h, w = (int(np.ceil(_REACH * sigma)) for sigma in _sigmas(step, grid))
        return d, h, w
    return (1, 1, 1)


def _sigmas(step: Smooth, grid: Grid) -> FloatTriple:
    d, h, w = (step.sigma_mm / spacing for spacing in grid.spacing_mm)
    return d, h, w


def _keep_largest(array: Array, step: LargestComponent, grid: Grid) -> Array:
    def is_largest(sizes: Array, owners: Array) -> Array:
        largest = np.zeros(int(owners.max()) + 1, sizes.dtype)
        np.maximum.at(largest, owners, sizes)
        kept: Array = sizes == largest[owners]
        return kept

    return _keep_pieces(array, step, is_largest)


def _remove_small(array: Array, step: RemoveSmall, grid: Grid) -> Array:
    least = step.min_ml * (1 - _ROUNDING) / voxel_ml(grid)
    return _keep_pieces(array, step, lambda sizes, owners: sizes >= least)


def _keep_pieces(array: Array, step: LargestComponent | RemoveSmall, choose: Callable[[Array, Array], Array]) -> Array:
    """Keep the connected pieces that ``choose`` takes by their numbers of voxels and the values that they bear."""
    import cc3d

    chosen = _is_chosen(array, step.labels)
    values = chosen.astype(np.uint8) if step.together else np.where(chosen, array, 0)
    pieces = cc3d.connected_components(values, connectivity=step.connectivity)
    sizes = np.bincount(pieces.ravel())
    owners = np.zeros(len(sizes), np.int64)
    owners[pieces] = values
    kept = np.ones(len(sizes), np.bool_)
    kept[1:] = choose(sizes[1:], owners[1:])
    return np.where(kept[pieces], array, 0).astype(array.dtype)


def _fill_holes(array: Array, step: FillHoles, grid: Grid) -> Array:
    """Fill what does not reach the faces of the box: of the background they hold a margin, or the volume's border."""
    import cc3d
    from scipy.ndimage import find_objects

    pieces = cc3d.connected_components(array == 0, connectivity=_BY_A_FACE, out_dtype=np.uint32)
    sizes = np.bincount(pieces.ravel())
    filled = np.ones(len(sizes), np.bool_)
    filled[0] = False
    for axis in range(3):
        for face in (0, -1):
            filled[np.unique(pieces.take(face, axis))] = False
    if step.labels:
        filled[_pieces_beside(pieces, (array > 0) & ~_is_chosen(array, step.labels))] = False
    if step.max_ml is not None:
        filled &= sizes * voxel_ml(grid) <= step.max_ml * (1 + _ROUNDING)
    result = array.copy()
    numbers = (np.cumsum(filled) * filled)[pieces]
    for number, box in enumerate(find_objects(numbers), start=1):
        around = tuple(slice(axis.start - 1, axis.stop + 1) for axis in box)
        hole = numbers[around] == number
        result[around][hole] = _nearest_label(array[around], grid.spacing_mm)[hole]
    return result


def _nearest_label(array: Array, spacing_mm: FloatTriple) -> Array:
    """Return for each voxel the label that is nearest; of equally near ones the lowest, whichever way the axes run."""
    from scipy.ndimage import distance_transform_edt

    labels = [value for value in np.unique(array).tolist() if value]
    distances = [distance_transform_edt(array != value, spacing_mm) for value in labels]
    nearest: Array = np.asarray(labels, array.dtype)[np.argmin(distances, axis=0)]
    return nearest


def _pieces_beside(pieces: Array, mask: Array) -> Array:
    """Return the numbers of the pieces of which a voxel shares a face with the mask."""
    found = [np.zeros(0, pieces.dtype)]
    for axis in range(3):
        lower, upper = (
            tuple(slice(start, stop) if at == axis else slice(None) for at in range(3))
            for start, stop in ((None, -1), (1, None))
        )
        found += [pieces[lower][mask[upper]], pieces[upper][mask[lower]]]
    return np.unique(np.concatenate(found))


def _smooth(array: Array, step: Smooth, grid: Grid) -> Array:
    """Let the labels and what is none of them compete; voxels of labels that were not chosen stay as they are."""
    from scipy.ndimage import gaussian_filter

    chosen = _is_chosen(array, step.labels)
    sigmas = _sigmas(step, grid)

    def blur(mask: Array) -> Array:
        blurred: Array = gaussian_filter(mask.astype(np.float32), sigmas, mode="nearest", truncate=_REACH)
        return blurred

    highest = blur(~chosen)
    result = np.zeros_like(array)
    for value in np.unique(array[chosen]).tolist():
        here = blur(array == value)
        higher = here > highest
        np.copyto(result, value, where=higher)
        np.copyto(highest, here, where=higher)
    np.copyto(result, array, where=(array > 0) & ~chosen)
    return result


_STEPS: Mapping[type, Callable[[Array, Any, Grid], Array]] = {
    LargestComponent: _keep_largest,
    RemoveSmall: _remove_small,
    FillHoles: _fill_holes,
    Smooth: _smooth,
}
"""Step → the function that does it to the box around its labels."""
