"""Runs of both tiny tasks, trained once for all tests of prediction; tests must not write into them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medi3d.config import TaskConfig
from medi3d.train import train_task


def train(task: TaskConfig, tiny: Path, run: Path, *, seed: int = 0, fold: int = 0, steps: int = 2) -> Path:
    short = replace(task, train=replace(task.train, steps=steps, validations=1, seed=seed))
    return train_task(short, prepared=tiny / "prepared" / task.name, run=run, fold=fold, device="cpu").run


@pytest.fixture(scope="session")
def segmentation_runs(
    tiny: Path, segmentation_task: TaskConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("segmentation_runs")
    return (
        train(segmentation_task, tiny, folder / "one"),
        train(segmentation_task, tiny, folder / "two", fold=1),
    )


@pytest.fixture(scope="session")
def classification_runs(
    tiny: Path, classification_task: TaskConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("classification_runs")
    return (
        train(classification_task, tiny, folder / "one", steps=6),
        train(classification_task, tiny, folder / "two", fold=1),
    )
