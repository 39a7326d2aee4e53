"""Validation on the held-out cases, on the prepared grid: one score a run is steered by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.meandice import DiceHelper
from sklearn.metrics import roc_auc_score
from torch import nn

from medi3d.config import TaskConfig
from medi3d.infer.windows import predict_logits
from medi3d.io.prepared import PreparedCase


def validate(model: nn.Module, cases: Sequence[PreparedCase], task: TaskConfig) -> float:
    """Predict all cases and score them.

    Returns:
        Segmentation: mean over the foreground labels of the mean Dice over the cases that hold the label.
        Classification: area under the ROC curve (one class against the rest where there are more than two).
    """
    was_training = model.training
    model.eval()
    score = _mean_dice(model, cases, task) if task.kind == "segmentation" else _auc(model, cases, task)
    model.train(was_training)
    return score


def _predict(model: nn.Module, case: PreparedCase, task: TaskConfig) -> torch.Tensor:
    return predict_logits(model, torch.from_numpy(np.asarray(case.image()[:])), task)


def _mean_dice(model: nn.Module, cases: Sequence[PreparedCase], task: TaskConfig) -> float:
    dice = DiceHelper(
        include_background=False, apply_argmax=True, num_classes=task.num_classes, reduction="none", get_not_nans=False
    )
    rows = []
    for case in cases:
        stored = case.label()
        assert stored is not None
        rows.append(dice(_predict(model, case, task)[None], torch.from_numpy(stored[:].astype(np.int64))[None])[0])
    per_label = torch.nanmean(torch.stack(rows), dim=0)
    return float(torch.nanmean(per_label))


def _auc(model: nn.Module, cases: Sequence[PreparedCase], task: TaskConfig) -> float:
    probabilities = torch.stack([torch.softmax(_predict(model, case, task), 0) for case in cases]).numpy()
    targets = np.array([case.target for case in cases])
    if len(set(targets)) < 2:
        return float("nan")
    if task.num_classes == 2:
        return float(roc_auc_score(targets, probabilities[:, 1]))
    return float(roc_auc_score(targets, probabilities, multi_class="ovr", labels=range(task.num_classes)))
