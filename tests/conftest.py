"""Fixtures shared by all tests: where the real volumes lie, a seeded generator, and two tiny tasks with their data."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from medi3d import io
from medi3d.config import TaskConfig, load_task
from medi3d.preprocess import prepare_dataset
from medi3d.volume import Grid, LabelMap, Volume

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function from a data set's name to its folder; it skips the test where the data is absent."""
    root = Path(os.environ.get("MEDI3D_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            pytest.skip(f"real data {folder} is absent; set MEDI3D_TEST_DATA")
        return folder

    return find


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# Two tiny tasks: balls in noise on an unequal, flipped grid; networks of two stages, patches of a few hundred voxels.

_NATIVE_SHAPE = (10, 16, 14)
_MODEL = {"init": "random", "stages": 2, "stem_stride": 1, "decoder_channels": [4, 6]}

_SEGMENTATION = {
    "name": "tiny_segmentation",
    "kind": "segmentation",
    "data": {"layout": "msd", "channels": ["MR"], "labels": {1: "bright", 2: "dark"}},
    "preprocess": {"spacing_mm": 2.0, "normalize": ["mr"]},
    "model": _MODEL,
    "train": {
        "patch_size": [8, 10, 9],
        "batch_size": 2,
        "steps": 4,
        "threads": 1,  # more differ in their last bits
        "precision": "no",  # whatever the machine
        "ema_decay": 0.0,
        "validations": 2,
        "folds": 3,
    },
}
_CLASSIFICATION = {
    "name": "tiny_classification",
    "kind": "classification",
    "data": {
        "layout": "csv",
        "channels": ["MR"],
        "classes": ["bright", "dark"],
        "table": "cases.csv",
        "columns": {"images": ["image"], "target": "class", "center": "mask"},
    },
    "preprocess": {"spacing_mm": 2.0, "normalize": ["mr"], "crop": "cube", "cube_mm": 16.0},
    "model": _MODEL,
    "train": {
        "patch_size": [8, 8, 8],
        "batch_size": 4,
        "steps": 4,
        "threads": 1,
        "precision": "no",
        "ema_decay": 0.0,
        "validations": 2,
        "folds": 2,
        "loss": "cross_entropy",
    },
}


def native_affine() -> np.ndarray:
    """Unequal spacing; D runs superior to inferior, H left to right, W anterior to posterior."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 1.2, 0], [0, 0, -1.6], [-2.5, 0, 0]])
    affine[:3, 3] = 7, -3, 11
    return affine


def draw_balls(seed: int, values: tuple[int, ...]) -> tuple[Volume, LabelMap]:
    """Noise with one ball for each label: 1 is bright, 2 is dark."""
    rng = np.random.default_rng(seed)
    grid = Grid(_NATIVE_SHAPE, native_affine())
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    place = grid.index_to_world(index)
    image = 50 + 3 * rng.normal(size=grid.shape)
    label = np.zeros(grid.shape, np.uint8)
    for value in values:
        center = grid.index_to_world(np.array([4.5, 4 + 7 * (value - 1), 6]) + rng.uniform(-0.8, 0.8, 3))
        ball = np.linalg.norm(place - center, axis=-1) < rng.uniform(3.6, 4.4)
        image[ball] += 40 if value == 1 else -40
        label[ball] = value
    return Volume(image[None].astype(np.float32), grid.affine), LabelMap(label[None], grid.affine)


def _write_task(values: dict[str, object], folder: Path) -> TaskConfig:
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_task(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<task>.yaml``, ``raw/<task>/`` and ``prepared/<task>/`` of two tiny tasks; not to be written into."""
    folder = tmp_path_factory.mktemp("tiny")
    raw = folder / "raw" / "tiny_segmentation"
    for number in range(6):
        image, label = draw_balls(number, (1, 2))
        io.write_volume(image, raw / "imagesTr" / f"case_{number}.nii.gz")
        io.write_label_map(label, raw / "labelsTr" / f"case_{number}.nii.gz")
    task = _write_task(_SEGMENTATION, folder)
    assert not prepare_dataset(raw, task, folder / "prepared" / task.name).problems

    raw = folder / "raw" / "tiny_classification"
    rows = []
    for number in range(10):
        image, mask = draw_balls(100 + number, (1 + number % 2,))
        io.write_volume(image, raw / "images" / f"nodule_{number}.nii.gz")
        io.write_label_map(mask, raw / "masks" / f"nodule_{number}.nii.gz")
        rows.append(
            {
                "case_id": f"nodule_{number}",
                "patient_id": f"patient_{number // 2}" if number < 4 else f"patient_{number}",
                "image": f"images/nodule_{number}.nii.gz",
                "mask": f"masks/nodule_{number}.nii.gz",
                "class": ("bright", "dark")[number % 2] if number < 8 else "",
            }
        )
    with (raw / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    task = _write_task(_CLASSIFICATION, folder)
    assert not prepare_dataset(raw, task, folder / "prepared" / task.name).problems
    return folder


@pytest.fixture(scope="session")
def segmentation_task(tiny: Path) -> TaskConfig:
    return load_task(tiny / "tiny_segmentation.yaml")


@pytest.fixture(scope="session")
def classification_task(tiny: Path) -> TaskConfig:
    return load_task(tiny / "tiny_classification.yaml")
