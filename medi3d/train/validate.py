"""Validation on the held-out cases, on the prepared grid: one score a run is steered by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.infer.windows import predict_logits
from medi3d.io.prepared import PreparedCase
from medi3d.train.pictures import draw_plane
from medi3d.types import Array

PICTURES = 3
"""Cases whose predictions are drawn at each validation."""


@dataclass
class Validation:
    """What came of a validation.

    Attributes:
        score: segmentation: mean over the foreground labels (over the regions, where the task has some) of the mean
            Dice over the cases that hold the label. Classification: area under the ROC curve (one class against the
            rest where there are more than two). NaN where no case has what is scored.
        pictures: case id → a plane of the case with the prediction, of a few cases.
    """

    score: float
    pictures: dict[str, Array] = field(default_factory=dict)


def validate(
    model: nn.Module,
    cases: Sequence[PreparedCase],
    task: TaskConfig,
    *,
    accelerator: Accelerator | None = None,
    pictures: int = 0,
) -> Validation:
    """Predict all cases and score them; the model is left in evaluation mode.

    Args:
        model: the network that predicts.
        cases: the held-out cases.
        task: the task.
        accelerator: of a run of many processes, which share the cases; all of them get the same score.
        pictures: how many of this process's cases are drawn.
    """
    model.eval()
    first, step = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    own = range(first, len(cases), step)
    drawn: dict[str, Array] = {}
    rows: list[tuple[int, list[float]]] = []
    for place in own:
        case = cases[place]
        logits = predict_logits(model, torch.from_numpy(np.asarray(case.image()[:])), task)
        rows.append((place, _score_labels(case, logits, task) if task.kind == "segmentation" else logits.tolist()))
        if task.kind == "segmentation" and len(drawn) < pictures:
            drawn[case.case_id] = _draw(case, logits, task)
    rows = rows if accelerator is None else gather_object(rows)
    ordered = np.array([row for _, row in sorted(rows)], dtype=np.float64)
    score = _average(ordered) if task.kind == "segmentation" else _measure_auc(ordered, cases)
    return Validation(score, drawn)


def _score_labels(case: PreparedCase, logits: Tensor, task: TaskConfig) -> list[float]:
    """Return the Dice of each foreground label or region; NaN where the truth has none of it."""
    truth, found = torch.from_numpy(_read_truth(case)), logits.argmax(0)
    if task.data.ignore_label is not None:
        known = truth != task.data.ignore_label
        truth, found = truth[known], found[known]
    members = list(task.data.regions.values()) or [(label,) for label in sorted(task.data.labels)]
    return [_measure_dice(*(torch.isin(labels, torch.tensor(group)) for labels in (truth, found))) for group in members]


def _measure_dice(truth: Tensor, found: Tensor) -> float:
    if not truth.any():
        return float("nan")
    return float(2 * (truth & found).sum() / (truth.sum() + found.sum()))


def _average(dice: Array) -> float:
    """Return the mean over labels of the mean over cases of ``(cases, labels)``, without what is NaN."""
    counted = np.isfinite(dice)
    means = [column[kept].mean() for column, kept in zip(dice.T, counted.T, strict=True) if kept.any()]
    return float(np.mean(means)) if means else float("nan")


def _measure_auc(logits: Array, cases: Sequence[PreparedCase]) -> float:
    """Return the area under the ROC curve of ``(cases, classes)``."""
    targets = np.array([case.target for case in cases])
    if len(set(targets)) < 2:
        return float("nan")
    probabilities = torch.softmax(torch.from_numpy(logits), 1).numpy()
    if logits.shape[1] == 2:
        return float(roc_auc_score(targets, probabilities[:, 1]))
    return float(roc_auc_score(targets, probabilities, multi_class="ovr", labels=range(logits.shape[1])))


def _read_truth(case: PreparedCase) -> Array:
    stored = case.label()
    assert stored is not None
    truth: Array = stored[:][0].astype(np.int64)
    return truth


def _draw(case: PreparedCase, logits: Tensor, task: TaskConfig) -> Array:
    truth = _read_truth(case)
    if task.data.ignore_label is not None:
        truth[truth == task.data.ignore_label] = 0
    image = np.asarray(case.image()[:])
    return draw_plane(image, truth, logits.argmax(0).numpy(), spacing_mm=case.record.prepared.spacing_mm)
