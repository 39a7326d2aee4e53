"""Controlled comparisons: many runs of one task that differ in one thing, and what they say together."""

from medi3d.study.analysis import Contrast, contrast_arms, learning_curves, write_contrasts
from medi3d.study.design import INITS, Cell, StudyDesign
from medi3d.study.run import METRIC, CellResult, Study, run_study

__all__ = [
    "INITS",
    "METRIC",
    "Cell",
    "CellResult",
    "Contrast",
    "Study",
    "StudyDesign",
    "contrast_arms",
    "learning_curves",
    "run_study",
    "write_contrasts",
]
