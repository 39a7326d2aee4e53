"""Metrics in the words of someone who reads about patients, not about networks: a title, a unit, what it means."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """How a page speaks of a metric.

    Attributes:
        title: short name, for a column's head.
        unit: of the value; empty where it has none.
        meaning: a sentence for the reader.
        better: ``higher``, ``lower`` or ``zero``: which values are good.
        main: whether it stands in the first table.
        digits: after the point.
    """

    title: str
    unit: str = ""
    meaning: str = ""
    better: str = ""
    main: bool = False
    digits: int = 3


METRICS: dict[str, Metric] = {
    "dice": Metric("Dice", "", "Overlap of the drawn and the true region: 1 is the same, 0 is apart.", "higher", True),
    "surface_dice": Metric(
        "Surface Dice", "", "Share of the two outlines that lie within the tolerance of each other.", "higher", True
    ),
    "hd95_mm": Metric(
        "HD95", "mm", "How far the outlines lie apart in their worst places: 95 % of them are nearer.", "lower", True, 2
    ),
    "assd_mm": Metric("Mean distance", "mm", "How far the outlines lie apart on average.", "lower", True, 2),
    "volume_error_ml": Metric(
        "Volume error", "ml", "Drawn less true volume: above 0, too much was drawn.", "zero", True, 2
    ),
    "lesion_f1": Metric(
        "Lesion F1",
        "",
        "Lesions found, and rightly found, in one number: 1 is all of them and no others.",
        "higher",
        True,
    ),
    "panoptic_quality": Metric(
        "Panoptic quality", "", "Finding lesions and outlining them well, in one number.", "higher"
    ),
    "lesion_precision": Metric("Lesion precision", "", "Share of the drawn lesions that are true ones.", "higher"),
    "lesion_recall": Metric("Lesion sensitivity", "", "Share of the true lesions that were found.", "higher"),
    "iou": Metric("IoU", "", "Voxels in both regions, as a share of those in either of them.", "higher"),
    "precision": Metric("Precision", "", "Share of the drawn region that is true.", "higher"),
    "recall": Metric("Sensitivity", "", "Share of the true region that was drawn.", "higher"),
    "volume_error_percent": Metric(
        "Volume error", "%", "Drawn less true volume, as a share of the true one.", "zero", False, 1
    ),
    "absolute_volume_error_ml": Metric(
        "Absolute volume error", "ml", "Size of the difference in volume, whatever its sign.", "lower", False, 2
    ),
    "prediction_ml": Metric("Drawn volume", "ml", "Volume that the network drew.", "", False, 2),
    "reference_ml": Metric("True volume", "ml", "Volume in the reference.", "", False, 2),
    "prediction_lesions": Metric("Drawn lesions", "", "How many there are.", "", False, 0),
    "reference_lesions": Metric("True lesions", "", "How many there are.", "", False, 0),
    "matched_lesions": Metric("Lesions found", "", "How many of the true ones.", "", False, 0),
    "auc": Metric(
        "AUC",
        "",
        "How often a case of the class gets a higher score than one that is not: 0.5 is guessing, 1 never errs.",
        "higher",
        True,
    ),
    "average_precision": Metric(
        "Average precision", "", "Share of right alarms, averaged over all thresholds.", "higher", True
    ),
    "accuracy": Metric("Accuracy", "", "Share of the cases whose most probable class is the true one.", "higher", True),
    "sensitivity": Metric("Sensitivity", "", "Share of the cases of the class that are called so.", "higher", True),
    "specificity": Metric("Specificity", "", "Share of the other cases that are not called so.", "higher", True),
    "sensitivity_at_95_specificity": Metric(
        "Sensitivity at 95 % specificity",
        "",
        "Share of the cases of the class that are found where 5 % of the others raise a false alarm.",
        "higher",
        True,
    ),
    "brier": Metric(
        "Brier score", "", "Mean squared error of the probabilities: 0 is perfect, 0.25 is always 50 %.", "lower", True
    ),
    "calibration_error": Metric(
        "Calibration error",
        "",
        "How far stated probabilities lie from how often it is so: 0.05 is 5 percentage points.",
        "lower",
        True,
    ),
}

_UNITS = {"_mm": "mm", "_ml": "ml"}


def describe_metric(name: str) -> Metric:
    """Return how a page speaks of a metric; of one that the table lacks, by its name alone.

    Example:
        >>> describe_metric("depth_error_mm")[:2]
        ('Depth error', 'mm')
    """
    if name in METRICS:
        return METRICS[name]
    unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")
    title = name.removesuffix(f"_{unit}") if unit else name
    return Metric(title.replace("_", " ").capitalize(), unit)


def format_value(name: str, value: float | None) -> str:
    """Write a metric's value with its digits; an undefined one as a dash."""
    return "–" if value is None else f"{value:.{describe_metric(name).digits}f}".replace("-", "−")
