"""What there is to see of a case: its prepared image with what was predicted for it, on the prepared grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from medi3d.infer.activation import activation_map
from medi3d.infer.predictor import Predictor
from medi3d.io import PreparedCase, read_label_map
from medi3d.preprocess.resampling.resample import resample_to
from medi3d.report.montage import CaseImages
from medi3d.study.out_of_fold import CHECKPOINT
from medi3d.volume import LabelMap, Volume


def load_label_case(case: PreparedCase | None, predictions: Path) -> CaseImages | None:
    """Read a case and its predicted label map, resampled to the prepared grid where it lies on the scanner's own.

    Returns:
        ``None`` where the case is not in the prepared store, or has no prediction.
    """
    path = None if case is None else predictions / f"{case.case_id}.nii.gz"
    if case is None or path is None or not path.is_file():
        return None
    grid = case.record.prepared
    stored = case.label()
    return CaseImages(
        case.case_id,
        Volume(np.asarray(case.image()[:]), grid.affine),
        prediction=resample_to(read_label_map(path), grid, interpolation="nearest", fill=0),
        reference=None if stored is None else LabelMap(np.asarray(stored[:]), grid.affine),
    )


def load_class_case(
    cases: Mapping[str, PreparedCase], runs: Sequence[Path], device: str
) -> Callable[[str], CaseImages | None]:
    """Return a function that reads a case and finds what spoke for the class that is predicted for it.

    A case is looked at with the runs that held it out; one that none did, with all of them.
    """
    predictor = Predictor(runs, device=device, checkpoint=CHECKPOINT)

    def load(case_id: str) -> CaseImages | None:
        if case_id not in cases:
            return None
        case = cases[case_id]
        chosen = predictor.holding_out(case_id) or predictor
        image = torch.from_numpy(np.asarray(case.image()[:]))
        classes = chosen.predict_prepared(image).classes
        assert classes is not None, "a classification task has classes"
        heat = activation_map(chosen, image, int(classes.argmax()))
        affine = case.record.prepared.affine
        return CaseImages(case_id, Volume(image.numpy(), affine), heat=Volume(heat[None], affine))

    return load
