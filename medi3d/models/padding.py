"""Volumes padded at their ends to sizes that a network takes, and what it gives cropped back."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from medi3d.models.outputs import Outputs
from medi3d.types import IntTriple


def pad_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the end voxels of ``(B, C, D, H, W)`` up to a size (D, H, W) that is no smaller."""
    depth, height, width = (wanted - n for wanted, n in zip(size, x.shape[2:], strict=True))
    return F.pad(x, (0, width, 0, height, 0, depth), mode="replicate") if depth + height + width else x


def crop_back(logits: Tensor, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    """Cut off what padding added to logits, which may be coarser than the volume.

    Args:
        logits: ``(B, C, D', H', W')``, all of the padded volume.
        size: (D, H, W) of the volume before it was padded.
        padded: afterwards.
    """
    depth, height, width = (-(-n * own // large) for n, large, own in zip(size, padded, logits.shape[2:], strict=True))
    return logits[:, :, :depth, :height, :width]


class Padded(nn.Module):
    """A network that takes multiples of its strides, for volumes of any size.

    Args:
        network: takes ``(B, C, D, H, W)`` that are multiples of ``strides``, and gives logits or a list of them.
        strides: ``(D, H, W)``, of its coarsest map.
    """

    def __init__(self, network: nn.Module, strides: IntTriple) -> None:
        super().__init__()
        self.network = network
        self.strides = strides

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Volume of any size → logits of that size; in training, of the supervised coarser levels as well."""
        size = x.shape[2:]
        padded = [-(-n // stride) * stride for n, stride in zip(size, self.strides, strict=True)]
        given: Tensor | list[Tensor] = self.network(pad_to(x, padded))
        if isinstance(given, Tensor):
            return crop_back(given, size, padded)
        return Outputs(tuple(crop_back(logits, size, padded) for logits in given))
