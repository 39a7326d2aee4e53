"""Random patches of prepared cases, read from the chunked store without loading whole volumes.

Patch number ``i`` is a pure function of the seed and ``i``: the order of reading, the number of workers and a resumed
run change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medi3d.config import AugmentConfig, TaskConfig
from medi3d.data.augment.draw import draw_spatial
from medi3d.data.case_cache import CaseCache
from medi3d.data.sampling import CaseSampling, PatchSampler
from medi3d.errors import InputError
from medi3d.io.prepared import PreparedCase
from medi3d.types import Array, IntTriple

NO_CLASS = -1
"""``target`` of a case whose class is not known, among cases with classes: it trains the segmentation alone."""


class PatchDataset(Dataset[dict[str, Any]]):
    """An endless sequence of patches as they are stored, as a map from patch number to patch.

    A patch that its augmentation will turn, scale, shift or bend is read with the margin that this takes, so that no
    empty corners come in where the case goes on; what comes back is then the block of voxels around the patch, no more
    of it than the case has. All others are exactly the patch, with zeros beyond the case.

    Args:
        cases: prepared cases.
        patch_size: ``(D, H, W)``.
        seed: with a patch's number it draws everything.
        foreground_fraction: share of the patches centred on a foreground voxel, of a label drawn evenly.
        case_sampling: see :class:`~medi3d.data.sampling.PatchSampler`.
        augment: what the patches are read for; ``None`` reads exact patches.

    Raises:
        InputError: there are no cases, or only some of them have a label map, or, without one, a class.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        *,
        patch_size: IntTriple,
        seed: int,
        foreground_fraction: float = 0.0,
        case_sampling: CaseSampling = "even",
        augment: AugmentConfig | None = None,
    ) -> None:
        _check_cases(cases)
        self.has_classes = any(case.target is not None for case in cases)
        self.sampler = PatchSampler(
            cases,
            patch_size=patch_size,
            foreground_fraction=foreground_fraction,
            case_sampling=case_sampling,
            seed=seed,
        )
        self.patch_size, self.seed, self.augment = patch_size, seed, augment
        self._arrays = CaseCache()

    @classmethod
    def of_task(cls, task: TaskConfig, cases: Sequence[PreparedCase]) -> PatchDataset:
        """Return the patches that a task is trained on."""
        config = task.train
        return cls(
            cases,
            patch_size=task.patch_size,
            seed=config.seed,
            foreground_fraction=config.foreground_fraction,
            case_sampling=config.case_sampling,
            augment=config.augment,
        )

    def case_of(self, number: int) -> PreparedCase:
        """Return the case that patch ``number`` is cut from."""
        return self.sampler.cases[self.sampler.place(number).case]

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return patch ``number``.

        Returns:
            ``image`` ``(C, d, h, w)`` float32; ``label`` ``(d, h, w)`` uint8 where there is a label map; ``target`` int
            where cases have classes, :data:`NO_CLASS` where this one's is not known; ``offset``, first voxel of the
            block from the patch's; ``spacing_mm``; ``case_id``; ``number``.

        Raises:
            InputError: the case's files cannot be read.
        """
        place = self.sampler.place(number)
        case = self.sampler.cases[place.case]
        offset, size = self._block(number, place.start, case)
        start = _add(place.start, offset)
        sample: dict[str, Any] = {"number": number, "case_id": case.case_id, "offset": offset}
        sample["spacing_mm"] = case.record.prepared.spacing_mm
        try:
            sample["image"] = torch.from_numpy(read_patch(self._arrays.image(case), start, size))
            label = self._arrays.label(case)
            if label is not None:
                sample["label"] = torch.from_numpy(read_patch(label, start, size)[0])
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"case {case.case_id}: cannot be read ({error}); run `medi3d preprocess --overwrite`"
            ) from error
        if self.has_classes:
            sample["target"] = NO_CLASS if case.target is None else case.target
        return sample

    def _block(self, number: int, start: IntTriple, case: PreparedCase) -> tuple[IntTriple, IntTriple]:
        """Return the first voxel, from the patch's, and the size of the block to read."""
        whole = (0, 0, 0), self.patch_size
        if self.augment is None:
            return whole
        spacing_mm = case.record.prepared.spacing_mm
        change = draw_spatial(self.augment, seed=self.seed, number=number, size=self.patch_size, spacing_mm=spacing_mm)
        if change.warp is None:
            return whole
        low, high = change.warp.source_box(self.patch_size)
        first, last = -np.array(start), np.array(case.shape) - 1 - np.array(start)
        # at least one voxel, where the patch is moved out of the case
        low = np.clip(low, first, last)
        high = np.clip(high, low, last)
        return _triple(low), _triple(high - low + 1)


def read_patch(array: Any, start: IntTriple, size: IntTriple) -> Array:
    """Read a box of a chunked ``(C, D, H, W)`` array; what lies outside the array is zero.

    Args:
        array: anything with a shape that is sliced like a numpy array.
        start: first voxel ``(D, H, W)``, may be negative.
        size: ``(D, H, W)``.

    Returns:
        ``(C, *size)`` of the array's dtype, in memory of its own.
    """
    shape = array.shape[1:]
    low = [max(s, 0) for s in start]
    high = [min(s + n, limit) for s, n, limit in zip(start, size, shape, strict=True)]
    inner = np.asarray(array[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))])
    if inner.shape[1:] == tuple(size):
        return inner.copy() if isinstance(array, np.ndarray) else inner
    patch = np.zeros((array.shape[0], *size), dtype=inner.dtype)
    box = tuple(slice(a - s, b - s) for s, a, b in zip(start, low, high, strict=True))
    patch[(slice(None), *box)] = inner
    return patch


def collate_patches(patches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put patches into a batch: numbers and classes become tensors ``(B,)``; blocks, unequal in size, stay lists."""
    batch: dict[str, Any] = {key: [patch[key] for patch in patches] for key in patches[0]}
    for key in ("number", "target"):
        if key in batch:
            batch[key] = torch.tensor(batch[key], dtype=torch.int64)
    return batch


def stack_patches(batch: dict[str, Any]) -> dict[str, Any]:
    """Stack a batch of exact patches, as the augmentation would where it changes nothing."""
    stacked = {key: value for key, value in batch.items() if key not in ("offset", "spacing_mm")}
    for key in ("image", "label"):
        if key in batch:
            blocks: list[Tensor] = batch[key]
            stacked[key] = torch.stack(blocks)
    if "label" in stacked:
        stacked["label"] = stacked["label"].long()
    return stacked


def _check_cases(cases: Sequence[PreparedCase]) -> None:
    if not cases:
        raise InputError("there are no cases to cut patches from; prepare some, or give another fold")
    labelled = [case.label() is not None for case in cases]
    # a case with a label map is of use without its class
    classified = [label or case.target is not None for label, case in zip(labelled, cases, strict=True)]
    has = {"label map": labelled, "class": classified}
    for what, given in has.items():
        if any(given) and not all(given):
            first = cases[given.index(False)].case_id
            raise InputError(
                f"{given.count(False)} of {len(cases)} cases have no {what}, {first} first; give one to all or none"
            )


def _add(one: IntTriple, other: IntTriple) -> IntTriple:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _triple(values: Array) -> IntTriple:
    d, h, w = values.tolist()
    return d, h, w
