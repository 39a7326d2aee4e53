"""Pictures of predictions, curves and filters, and pages about runs and data: PNG and HTML; it knows no model."""

from medi3d.report.figures import draw_curves, draw_prediction
from medi3d.report.filters import draw_filters
from medi3d.report.page import Material, write_report

__all__ = ["Material", "draw_curves", "draw_filters", "draw_prediction", "write_report"]
