"""What a plan needs to know of a prepared store: how many cases are trained on, their shapes and their voxels' size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.io.prepared import PreparedStore
from medi3d.types import IntTriple


@dataclass(frozen=True)
class Shapes:
    """The cases of a prepared store.

    Attributes:
        cases: how many there are.
        training_cases: how many of them one fold trains on.
        median: median prepared shape ``(D, H, W)``, rounded up to whole voxels.
        spacing_mm: median prepared voxel size ``(D, H, W)``.
        voxels: voxels of all cases together.
    """

    cases: int
    training_cases: int
    median: IntTriple
    spacing_mm: tuple[float, float, float]
    voxels: int

    @property
    def anisotropy(self) -> float:
        """Distance between slices over the size of their pixels."""
        depth, height, width = self.spacing_mm
        return depth / math.sqrt(height * width)


def measure_shapes(store: PreparedStore, task: TaskConfig) -> Shapes:
    """Measure a store for a task.

    Raises:
        InputError: it has no cases.
    """
    cases = store.cases()
    if not cases:
        raise InputError(f"{store.folder}: holds no cases to plan for; run `medi3d preprocess` first")
    depth, height, width = (math.ceil(n) for n in store.fingerprint["prepared_shape"]["median"])
    d, h, w = np.median([case.record.prepared.spacing_mm for case in cases], axis=0).tolist()
    training = max(1, len(cases) - math.ceil(len(cases) / task.train.folds))
    return Shapes(
        cases=len(cases),
        training_cases=min(training, task.train.cases or training),
        median=(depth, height, width),
        spacing_mm=(d, h, w),
        voxels=sum(math.prod(case.shape) for case in cases),
    )
