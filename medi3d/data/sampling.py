"""Which case a patch is cut from, and where: a pure function of the seed and the patch's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from medi3d.io.prepared import PreparedCase
from medi3d.types import Array, IntTriple

CaseSampling = Literal["even", "rare_labels"]

_ORDER, _PLACE = 0, 1
"""Streams of random numbers; those of :mod:`medi3d.data.augment.draw` follow."""


@dataclass(frozen=True)
class PatchPlace:
    """Where a patch lies.

    Args:
        case: index of the case.
        start: first voxel ``(D, H, W)`` in the case, negative where the case is smaller than the patch.
    """

    case: int
    start: IntTriple


class PatchSampler:
    """Draws the places of patches.

    With ``even`` every case comes once in each pass over the cases, in an order drawn anew for each pass. With
    ``rare_labels`` a patch that is to show foreground is given a label, each with the same chance, and then a case and
    a voxel that have it, so that a label of few cases is met as often as one of all; the other patches come from the
    cases in turn. Cases without label maps are drawn by class in the same way.

    Args:
        cases: prepared cases.
        patch_size: ``(D, H, W)`` voxels.
        foreground_fraction: share of the patches that are centred on a foreground voxel, of a label drawn evenly.
        case_sampling: how cases are drawn.
        seed: with a patch's number it draws everything.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        *,
        patch_size: IntTriple,
        foreground_fraction: float,
        case_sampling: CaseSampling,
        seed: int,
    ) -> None:
        self.cases = list(cases)
        self.patch_size = patch_size
        self.foreground_fraction = foreground_fraction
        self.seed = seed
        self._by_label: dict[int, list[int]] = {}
        self._by_class: dict[int, list[int]] = {}
        if case_sampling == "rare_labels":
            self._by_label, self._by_class = _group_by_label(self.cases), _group_by_class(self.cases)

    def place(self, number: int) -> PatchPlace:
        """Draw where patch ``number`` lies."""
        rng = np.random.default_rng([self.seed, _PLACE, number])
        wants_foreground = bool(rng.random() < self.foreground_fraction)
        index, label = self._draw_case(number, rng, wants_foreground)
        case = self.cases[index]
        center = self._draw_center(case, rng, label) if label is not None or wants_foreground else None
        if center is None:
            center = _draw_annotated(case, rng)
        return PatchPlace(index, self._draw_start(case.shape, center, rng))

    def _draw_case(self, number: int, rng: np.random.Generator, wants_foreground: bool) -> tuple[int, int | None]:
        """Return the case's index and, where it was drawn for one, the label."""
        if self._by_label and wants_foreground:
            label = _draw_one(sorted(self._by_label), rng)
            return _draw_one(self._by_label[label], rng), label
        if self._by_class and not self._by_label:
            return _draw_one(self._by_class[_draw_one(sorted(self._by_class), rng)], rng), None
        turn, position = divmod(number, len(self.cases))
        order = np.random.default_rng([self.seed, _ORDER, turn]).permutation(len(self.cases))
        return int(order[position]), None

    def _draw_center(self, case: PreparedCase, rng: np.random.Generator, label: int | None) -> Array | None:
        """Return a voxel of a label, of one drawn evenly where none is given; ``None`` where the case has none."""
        voxels = case.foreground
        if not voxels:
            return None
        chosen = voxels[_draw_one(sorted(voxels), rng) if label is None else label]
        return np.asarray(chosen[rng.integers(len(chosen))], dtype=np.int64)

    def _draw_start(self, shape: IntTriple, center: Array | None, rng: np.random.Generator) -> IntTriple:
        size = np.array(self.patch_size)
        free = np.array(shape) - size
        room = np.maximum(free, 0)
        start = rng.integers(0, room + 1) if center is None else np.clip(center - size // 2, 0, room)
        # A case smaller than the patch lies in its middle.
        d, h, w = np.where(free > 0, start, free // 2).tolist()
        return d, h, w


def _draw_annotated(case: PreparedCase, rng: np.random.Generator) -> Array | None:
    """Return an annotated voxel of a case that is not annotated everywhere; of the others, ``None``: any place."""
    voxels = case.annotated_background
    if voxels is None and case.statistics.get("annotated", 1.0) < 1 and case.foreground:
        voxels = np.concatenate(list(case.foreground.values()))
    return None if voxels is None else np.asarray(voxels[rng.integers(len(voxels))], dtype=np.int64)


def _draw_one(values: Sequence[int], rng: np.random.Generator) -> int:
    return values[int(rng.integers(len(values)))]


def _group_by_label(cases: Sequence[PreparedCase]) -> dict[int, list[int]]:
    """Return label → indices of the cases that have it."""
    groups: dict[int, list[int]] = {}
    for index, case in enumerate(cases):
        for label in replace(case).foreground:  # of a copy: a case keeps what it has read
            groups.setdefault(label, []).append(index)
    return groups


def _group_by_class(cases: Sequence[PreparedCase]) -> dict[int, list[int]]:
    """Return class → indices of its cases."""
    groups: dict[int, list[int]] = {}
    for index, case in enumerate(cases):
        if case.target is not None:
            groups.setdefault(case.target, []).append(index)
    return groups
