"""Lesions of a mask, and which of those predicted are which of the reference.

A lesion is a connected component; voxels that share a corner are connected (26 neighbours; connected-components-3d).
Two rules say which predicted lesion is which true one:

- *detection*: each lesion is matched to at most one, of an IoU of at least a threshold; of all such matchings, a
  largest one counts (Hopcroft and Karp 1973). The default, 0.1, is what 3D detection in medicine reports (Baumgartner
  et al. 2021, arXiv:2106.00817); 0 stands for any overlap. One-to-one: a prediction that melts three lesions finds one.
- *panoptic quality*: of an IoU above 0.5, which leaves no choice (Kirillov et al. 2019, arXiv:1801.00868).
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medi3d.types import Array, FloatArray

PANOPTIC_IOU = 0.5
"""Above it no lesion has two partners."""


@dataclass(frozen=True)
class LesionCounts:
    """What was found of the lesions of one label in one case.

    Args:
        predicted: number of predicted lesions.
        reference: number of true ones.
        matched: number of pairs by the rule of detection.
        panoptic_iou: sum of the IoU of the pairs by the rule of panoptic quality.
    """

    predicted: int
    reference: int
    matched: int
    panoptic_iou: float


def count_lesions(
    prediction: Array, reference: Array, *, lesion_iou: float = 0.1, known: Array | None = None
) -> LesionCounts:
    """Match the lesions of two masks.

    Args:
        prediction: ``(D, H, W)`` mask.
        reference: mask of the same shape.
        lesion_iou: least IoU of a detected lesion, in [0, 1].
        known: mask of the voxels that count; lesions keep their shape, but only these voxels enter sizes and overlaps,
            and a lesion with none of them is none.

    Examples:
        >>> truth = np.zeros((3, 6, 9), bool)
        >>> truth[1, 1:3, 1:3] = truth[1, 4:, 5:7] = True
        >>> count_lesions(np.roll(truth, 1, axis=2), truth)
        LesionCounts(predicted=2, reference=2, matched=2, panoptic_iou=0.0)
    """
    components, sizes = zip(*(_label_components(mask, known) for mask in (prediction, reference)), strict=True)
    pairs, ious = _overlapping_pairs(components, sizes, known)
    return LesionCounts(
        predicted=int(np.count_nonzero(sizes[0])),
        reference=int(np.count_nonzero(sizes[1])),
        matched=_largest_matching(pairs[ious >= lesion_iou]),
        panoptic_iou=float(ious[ious > PANOPTIC_IOU].sum()),
    )


def _label_components(mask: Array, known: Array | None) -> tuple[Array, Array]:
    """Return each voxel's component, 0 outside, and the size of each, ``(N + 1,)`` with that of 0 being 0."""
    numbers, count = cc3d.connected_components(mask, connectivity=26, return_N=True, binary_image=True)
    counted = numbers[mask if known is None else mask & known]
    return numbers, np.bincount(counted, minlength=count + 1)


def _overlapping_pairs(
    components: tuple[Array, ...], sizes: tuple[Array, ...], known: Array | None
) -> tuple[Array, FloatArray]:
    """Return the pairs of (predicted, true) components that overlap, ``(P, 2)``, and their IoU, ``(P,)``."""
    both = (components[0] != 0) & (components[1] != 0)
    if known is not None:
        both &= known
    codes = components[0][both].astype(np.int64) * len(sizes[1]) + components[1][both]
    found, shared = np.unique(codes, return_counts=True)
    pairs = np.stack(np.divmod(found, len(sizes[1])), axis=1)
    return pairs, shared / (sizes[0][pairs[:, 0]] + sizes[1][pairs[:, 1]] - shared)


def _largest_matching(pairs: Array) -> int:
    """Return how many of the pairs can be kept so that no component is in two of them."""
    if not len(pairs):
        return 0
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])))
    return int(np.count_nonzero(maximum_bipartite_matching(graph.tocsr()) >= 0))
