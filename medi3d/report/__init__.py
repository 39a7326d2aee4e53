"""Pictures of predictions and of training curves. Volumes and tables in, PNG files out; it knows no model."""

from medi3d.report.figures import draw_curves, draw_prediction

__all__ = ["draw_curves", "draw_prediction"]
