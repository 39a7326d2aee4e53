"""Small tasks that tests of several rooms share."""

from __future__ import annotations

from pathlib import Path

from medi3d.config import TaskConfig, parse_task

NODULES = """
name: nodules
kind: segmentation
data:
  layout: csv
  channels: [CT]
  labels: {1: nodule}
  classes: [benign, malignant]
  table: nodules.csv
  columns: {images: [image], label: mask, target: label}
preprocess:
  spacing_mm: 1.0
  normalize: [ct]
train:
  patch_size: [16, 48, 48]
"""
"""Label maps and classes from one table with ``case_id, patient_id, image, mask, label``."""


def write_nodules_task(folder: Path) -> Path:
    """Write :data:`NODULES` as ``nodules.yaml``."""
    path = folder / "nodules.yaml"
    path.write_text(NODULES)
    return path


def make_phantom_task(**data: object) -> TaskConfig:
    """Three labels, of which some are rare where a test plants them so."""
    values = {"labels": {1: "one", 2: "two", 3: "three"}, **data}
    return parse_task({"name": "phantom", "kind": "segmentation", "data": values}, where="test")


def make_two_class_phantom_task() -> TaskConfig:
    """Two classes of whole cases, and no label maps."""
    return parse_task(
        {
            "name": "phantom",
            "kind": "classification",
            "data": {"layout": "csv", "classes": ["a", "b"], "columns": {"target": "class"}},
            "train": {"loss": "cross_entropy"},
        },
        where="test",
    )
