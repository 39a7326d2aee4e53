"""Pictures of predictions and curves, and one page about a run. Files in, PNG and HTML out; it knows no model."""

from medi3d.report.figures import draw_curves, draw_prediction
from medi3d.report.page import write_report

__all__ = ["draw_curves", "draw_prediction", "write_report"]
