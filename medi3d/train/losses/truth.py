"""Label maps at the coarser resolutions of deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def shrink_labels(label: Tensor, size: Sequence[int]) -> Tensor:
    """Return a label map (B, D, H, W) at a coarser size: each voxel has the label of the one at its centre."""
    if label.shape[1:] == tuple(size):
        return label
    coarse = F.interpolate(label[:, None].float(), size=tuple(size), mode="nearest-exact")  # labels are small integers
    return coarse[:, 0].to(label.dtype)
