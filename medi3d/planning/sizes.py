"""Patch sizes: which edges a network takes, and the largest patch of a number of voxels in the data's proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medi3d.config import TaskConfig
from medi3d.models.backbone import SliceRule
from medi3d.planning.rules import RULES
from medi3d.types import IntTriple


def find_grain(task: TaskConfig, slices: SliceRule | None) -> IntTriple:
    """Return what patch edges are multiples of, along ``(D, H, W)``; slices of one size are a multiple of themselves.

    Args:
        task: names the network.
        slices: which slices its encoder takes; ``None`` where it has none.
    """
    grain = RULES.grain if task.model.network == "inflated" else RULES.other_grain
    if slices is not None and slices.step is None:
        return grain, *slices.size
    step = 1 if slices is None or slices.step is None else slices.step
    across = -(-grain // step) * step
    return grain, across, across


def fit_patch(whole: Sequence[float], grain: IntTriple, most_voxels: float) -> IntTriple:
    """Return the largest patch of at most so many voxels, in proportion to a shape and no larger than it.

    Edges are multiples of ``grain``; where the whole shape fits, each is rounded up. The smallest patch is returned
    even if it has more voxels than asked for.

    Args:
        whole: shape ``(D, H, W)`` in voxels; voxels being equal all over a volume, in proportion to it in voxels is in
            proportion in millimetres.
        grain: what edges are multiples of.
        most_voxels: the limit.

    Examples:
        >>> fit_patch((36, 50, 35), (8, 8, 8), 1e9), fit_patch((147, 166, 151), (8, 8, 8), 64**3)
        ((40, 56, 40), (64, 64, 64))
    """
    largest = [math.ceil(edge / step) * step for edge, step in zip(whole, grain, strict=True)]
    patch = [
        min(most, max(step, math.ceil(RULES.smallest_edge / step) * step))
        for most, step in zip(largest, grain, strict=True)
    ]
    growing = {0, 1, 2}
    while growing:
        axis = min(growing, key=lambda axis: patch[axis] / whole[axis])
        grown = [edge + grain[axis] * (place == axis) for place, edge in enumerate(patch)]
        if grown[axis] <= largest[axis] and math.prod(grown) <= most_voxels:
            patch = grown
        else:
            growing.remove(axis)
    return patch[0], patch[1], patch[2]


def count_stages(strides: Sequence[IntTriple], patch_size: IntTriple, coarsest_voxels: int) -> int:
    """Return how many stages, finest first, keep so many voxels along the plane's axes; one at least.

    Examples:
        >>> count_stages([(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)], (40, 56, 40), 4)
        3
    """
    edge = min(patch_size[1:])
    return max(1, sum(-(-edge // max(stride[1:])) >= coarsest_voxels for stride in strides))
