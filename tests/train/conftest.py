from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medi3d.config import TaskConfig
from medi3d.train import train_task
from medi3d.train.loop import TrainResult


@pytest.fixture
def tasks(segmentation_task: TaskConfig, classification_task: TaskConfig) -> dict[str, TaskConfig]:
    return {"segmentation": segmentation_task, "classification": classification_task}


@pytest.fixture
def train(tiny: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    """Train a tiny task into a run of a name, on the processor."""

    def start(task: TaskConfig, run: str, **options: Any) -> TrainResult:
        prepared = options.pop("prepared", tiny / "prepared" / task.name)
        return train_task(task, prepared=prepared, run=tmp_path / run, device="cpu", **options)

    return start
