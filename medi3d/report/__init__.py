"""Pictures of predictions, curves and filters, and one page about a run: PNG and HTML; it knows no model."""

from medi3d.report.figures import draw_curves, draw_prediction
from medi3d.report.filters import draw_filters
from medi3d.report.page import write_report

__all__ = ["draw_curves", "draw_filters", "draw_prediction", "write_report"]
