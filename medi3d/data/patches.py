"""Random patches of prepared cases, read from the chunked store without loading whole volumes.

Patch number ``i`` is a pure function of the seed and ``i``: the order of reading, the number of workers and a resumed
run change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medi3d.data.augment import Augmenter
from medi3d.io.prepared import PreparedCase
from medi3d.types import Array, IntTriple


class PatchDataset(Dataset[dict[str, Any]]):
    """An endless sequence of augmented patches, as a map from patch number to patch.

    Every case comes once in each pass over the cases, in an order drawn anew for each pass.

    Args:
        cases: prepared cases.
        patch_size: ``(D, H, W)``; smaller volumes are padded with zeros.
        length: number of patches that may be asked for.
        augmenter: changes each patch; ``None`` leaves it.
        foreground_fraction: share of the patches centred on a foreground voxel, of a label drawn evenly.
        seed: draws everything.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        *,
        patch_size: IntTriple,
        length: int,
        augmenter: Augmenter | None,
        foreground_fraction: float,
        seed: int,
    ) -> None:
        self.cases = list(cases)
        self.patch_size = patch_size
        self.length = length
        self.augmenter = augmenter
        self.foreground_fraction = foreground_fraction
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return patch number ``index``.

        Returns:
            ``image`` ``(C, D, H, W)`` float32; ``label`` ``(D, H, W)`` int64 where the case has a label map; ``target``
            int where it has a class; ``case_id``.
        """
        case = self._case_of(index)
        rng = np.random.default_rng([self.seed, 1, index])
        start = self._draw_start(case, rng)
        image = torch.from_numpy(read_patch(case.image(), start, self.patch_size).astype(np.float32, copy=False))
        stored = case.label()
        label = None if stored is None else torch.from_numpy(read_patch(stored, start, self.patch_size))
        if self.augmenter is not None:
            image, label = self.augmenter(image, label, seed=int(rng.integers(2**31)))
        sample: dict[str, Any] = {"image": image.contiguous(), "case_id": case.case_id}
        if label is not None:
            sample["label"] = label[0].long()
        if case.target is not None:
            sample["target"] = case.target
        return sample

    def _case_of(self, index: int) -> PreparedCase:
        epoch, position = divmod(index, len(self.cases))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.cases))
        return self.cases[int(order[position])]

    def _draw_start(self, case: PreparedCase, rng: np.random.Generator) -> IntTriple:
        labels = sorted(value for value, voxels in case.foreground.items() if len(voxels))
        free = np.array(case.shape) - np.array(self.patch_size)
        if labels and rng.random() < self.foreground_fraction:
            voxels = case.foreground[labels[rng.integers(len(labels))]]
            start = voxels[rng.integers(len(voxels))] - np.array(self.patch_size) // 2
        else:
            start = rng.integers(0, np.maximum(free, 0) + 1)
        # A volume smaller than the patch lies in its middle.
        start = np.where(free > 0, np.clip(start, 0, np.maximum(free, 0)), free // 2)
        return int(start[0]), int(start[1]), int(start[2])


def read_patch(array: Any, start: IntTriple, size: IntTriple) -> Array:
    """Read a box of a chunked ``(C, D, H, W)`` array; what lies outside the array is zero.

    Args:
        array: anything with a shape that is sliced like a numpy array.
        start: first voxel ``(D, H, W)``, may be negative.
        size: ``(D, H, W)``.

    Returns:
        ``(C, *size)`` of the array's dtype.
    """
    shape = array.shape[1:]
    low = [max(s, 0) for s in start]
    high = [min(s + n, limit) for s, n, limit in zip(start, size, shape, strict=True)]
    inner = np.asarray(array[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))])
    if inner.shape[1:] == tuple(size):
        return inner
    patch = np.zeros((array.shape[0], *size), dtype=inner.dtype)
    box = tuple(slice(a - s, b - s) for s, a, b in zip(start, low, high, strict=True))
    patch[(slice(None), *box)] = inner
    return patch
