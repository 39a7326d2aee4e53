"""Handing a trained network on: its weights as safetensors with what prediction needs, and nothing of the training."""

from medi3d.export.bundle import export_run, export_runs
from medi3d.export.encoder import export_encoder, export_pretrained, export_run_encoder, push_encoder

__all__ = ["export_encoder", "export_pretrained", "export_run", "export_run_encoder", "export_runs", "push_encoder"]
