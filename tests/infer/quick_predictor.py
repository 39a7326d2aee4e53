"""A predictor without networks: bright voxels are label 1, dark ones label 2. What batches do can be seen with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.infer.predictor import ModelOrigin, Prediction, Predictor, PreparedInput
from medi3d.io import Record
from medi3d.types import FloatTriple
from medi3d.volume import LabelMap, Volume


class QuickPredictor(Predictor):
    """Stands for trained runs.

    Args:
        task: the task.
        checkpoint: stands for the hash of their weights.
        before: called with the number of cases predicted so far, where a network would be at work.
    """

    def __init__(
        self, task: TaskConfig, *, checkpoint: str = "a" * 64, before: Callable[[int], None] = lambda number: None
    ) -> None:
        self.task = task
        self.checkpoint, self.before = checkpoint, before
        self.prepared: list[float] = []
        self.predicted: list[float] = []
        self.threads: set[str] = set()

    @property
    def models(self) -> tuple[ModelOrigin, ...]:
        return (ModelOrigin(Path("runs/one"), self.checkpoint, "b" * 64),)

    def with_infer(self, **changes: object) -> QuickPredictor:
        return QuickPredictor(replace(self.task, infer=replace(self.task.infer, **changes)))

    def prepare(self, volume: Volume, *, center_mm: FloatTriple | None = None) -> PreparedInput:
        self.threads.add(threading.current_thread().name)
        self.prepared.append(time.monotonic())
        if volume.num_channels != self.task.in_channels:
            raise InputError("other channels")
        array = np.ascontiguousarray(volume.array, dtype=np.float32)
        return PreparedInput(torch.from_numpy(array), Record(volume.grid, volume.grid), ("unfamiliar",), 0.25)

    def predict_input(self, prepared: PreparedInput, *, probabilities: Sequence[int] = ()) -> Prediction:
        self.before(len(self.predicted))
        self.predicted.append(time.monotonic())
        image, grid = prepared.image[0].numpy(), prepared.record.native
        label = ((image > 70) + 2 * (image < 30)).astype(np.uint8)
        kept = np.stack([(label == value) * np.float32(0.75) for value in probabilities]) if probabilities else None
        return Prediction(
            LabelMap(label[None], grid.affine),
            None,
            None if kept is None else Volume(kept, grid.affine),
            prepared.warnings,
            {"prepare": prepared.seconds, "network": 0.5, "restore": 0.125},
        )
