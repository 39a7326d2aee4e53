"""Handing a trained network on: its weights as safetensors with what prediction needs, and nothing of the training."""

from medi3d.export.bundle import export_run

__all__ = ["export_run"]
