"""Boundary loss: predicted probabilities weighed by their distance to the true boundary.

Kervadec et al. 2019, arXiv:1812.07032, eq. 5: the mean over positions of p φ, with φ the distance to the boundary of
the true region, negative inside. Distances are in voxels, computed from the labels of each batch by scipy: it is on the
CPU, and takes a quarter of a second for each million voxels and label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, find_objects
from torch import Tensor

from medi3d.train.losses.comparison import Comparison
from medi3d.train.losses.terms import Term
from medi3d.types import Array, FloatArray


@dataclass(frozen=True)
class Boundary(Term):
    """Mean over positions and outputs of p φ.

    Args:
        first: first output that counts; 1 leaves the background out.
    """

    first: int = 1

    def sums(self, comparison: Comparison) -> Tensor:
        """Sum of p φ, positions: (2, K)."""
        signed = measure_distances(comparison.inside(), comparison.known, first=self.first)
        return torch.stack([comparison.over(comparison.scores.yes * signed), comparison.total()])

    def value(self, sums: Tensor) -> Tensor:
        """The mean; 0 where there is no position."""
        weighed, positions = sums[:, self.first :]
        loss: Tensor = (weighed / torch.where(positions > 0, positions, 1)).mean()
        return loss


def measure_distances(inside: Tensor, known: Tensor | None, *, first: int = 0) -> Tensor:
    """Measure the signed distance of each position to the boundary of each output's region.

    Args:
        inside: (B, K, D, H, W) bool.
        known: (B, D, H, W) bool, where there is an annotation. Elsewhere the nearest annotated position stands for it,
            so that the edge of what is annotated is no boundary.
        first: outputs before it are left at 0.

    Returns:
        (B, K, D, H, W) float32: voxels to the nearest voxel on the other side, negative inside; 0 where a volume has no
        voxel of a region, or nothing else.
    """
    masks = inside.cpu().numpy()
    signed = np.zeros(masks.shape, np.float32)
    for n, volume in enumerate(masks):
        if known is not None:
            volume = _spread_annotation(volume, known[n].cpu().numpy())
        for output in range(first, len(volume)):
            signed[n, output] = _signed_distance(volume[output])
    return torch.from_numpy(signed).to(inside.device)


def _spread_annotation(volume: Array, known: Array) -> Array:
    if known.all() or not known.any():
        return volume
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    spread: Array = volume[(slice(None), *nearest)]
    return spread


def _signed_distance(mask: Array) -> FloatArray:
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    signed: FloatArray = distance_transform_edt(~mask).astype(np.float32)
    # Within a box that reaches one voxel beyond the region lies, for each of its voxels, the nearest one outside.
    box = find_objects(mask.astype(np.uint8))[0]
    box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in box)
    signed[box] -= distance_transform_edt(mask[box])
    return signed
