"""Predictions against references: files or arrays in, scores with intervals out. It knows no model and no training."""

from medi3d.evaluate.classification import evaluate_classification
from medi3d.evaluate.comparison import Comparison, Difference, compare_evaluations
from medi3d.evaluate.metrics import SEGMENT_METRICS, SEGMENT_SIZES, dice_scores, segment_scores
from medi3d.evaluate.probabilities import classification_statistics
from medi3d.evaluate.result import ALL_LABELS, ALL_REGIONS, METRIC_TITLES, Evaluation, read_evaluation
from medi3d.evaluate.roc_test import compare_auc
from medi3d.evaluate.segmentation import evaluate_segmentation, find_labels
from medi3d.evaluate.statistics import Interval, bootstrap_difference, bootstrap_interval, mean_of

__all__ = [
    "ALL_LABELS",
    "ALL_REGIONS",
    "METRIC_TITLES",
    "SEGMENT_METRICS",
    "SEGMENT_SIZES",
    "Comparison",
    "Difference",
    "Evaluation",
    "Interval",
    "bootstrap_difference",
    "bootstrap_interval",
    "classification_statistics",
    "compare_auc",
    "compare_evaluations",
    "dice_scores",
    "evaluate_classification",
    "evaluate_segmentation",
    "find_labels",
    "mean_of",
    "read_evaluation",
    "segment_scores",
]
