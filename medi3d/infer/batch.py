"""Prediction of many inputs: a bad one is named and left out, the others go on."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from medi3d.config import TaskConfig
from medi3d.errors import InputError, Medi3dError
from medi3d.infer.predictor import Prediction, Predictor
from medi3d.io import PreparedCase, atomic, case_name, image_files, read_label_map, write_label_map
from medi3d.io.files import is_image
from medi3d.preprocess.cases.layouts import group_channels, set_doubles_apart
from medi3d.preprocess.cases.raw_case import CaseProblem, RawCase, RawCases
from medi3d.preprocess.cases.reading import read_image
from medi3d.preprocess.cases.sources import find_raw_cases
from medi3d.preprocess.crop import mask_center_mm
from medi3d.types import Array, FloatTriple
from medi3d.volume import LabelMap, Volume

logger = logging.getLogger(__name__)

C = TypeVar("C", RawCase, PreparedCase)

OnCase = Callable[[str, int, int], None]
"""Called with a case id, its number and the number of cases before each case."""


@dataclass
class PredictionSummary:
    """What a batch prediction did.

    Attributes:
        output: the folder of label maps, or the CSV file of probabilities.
        predicted: case ids.
        problems: case id → what is wrong with it.
    """

    output: Path
    predicted: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def predict_files(
    predictor: Predictor,
    source: Path,
    output: Path,
    *,
    masks: Path | None = None,
    center_of_image: bool = False,
    out_of_fold: bool = False,
    on_case: OnCase | None = None,
) -> PredictionSummary:
    """Predict a file, a folder of files, a DICOM series, or the rows of a CSV table.

    Args:
        predictor: the trained runs.
        source: what to predict. Files of several channels bear nnU-Net's suffixes ``_0000``, ``_0001``, ….
        output: folder; a label map bears its input's name, probabilities go to ``predictions.csv``, beside the label
            maps where the task has both.
        masks: for tasks that cut a cube: a mask, or a folder of masks with the inputs' names, that tell where.
        center_of_image: for tasks that cut a cube: cut it in the middle of the volume.
        out_of_fold: predict each case only with the runs that held it out, and leave out cases that none did.
        on_case: called with a case id, its number and the number of cases before each case.

    Raises:
        InputError: there is nothing to predict.
    """
    found = list_inputs(source, predictor.task, masks)
    try:
        return predict_cases(
            predictor, found, output, center_of_image=center_of_image, out_of_fold=out_of_fold, on_case=on_case
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def predict_cases(
    predictor: Predictor,
    found: RawCases,
    output: Path,
    *,
    center_of_image: bool = False,
    out_of_fold: bool = False,
    on_case: OnCase | None = None,
) -> PredictionSummary:
    """Predict raw cases, as :func:`predict_files` does.

    Raises:
        InputError: ``out_of_fold``, and these runs held none of the cases out.
    """

    def predict_case(runs: Predictor, case: RawCase) -> Prediction:
        task = runs.task
        volume = read_image(case.images, channels=task.in_channels, frame=case.frame, quantities=task.quantities)
        return runs.predict(volume, center_mm=_center(case, volume, center_of_image, task))

    problems = {problem.case_id: problem.message for problem in found.problems}
    return _predict_all(predictor, found.cases, output, predict_case, problems, out_of_fold, on_case)


def predict_prepared_cases(
    predictor: Predictor,
    cases: Sequence[PreparedCase],
    output: Path,
    *,
    out_of_fold: bool = False,
    on_case: OnCase | None = None,
) -> PredictionSummary:
    """Predict prepared cases, as :func:`predict_files` does; label maps lie on the prepared grid.

    Raises:
        InputError: ``out_of_fold``, and these runs held none of the cases out.
    """

    def predict_case(runs: Predictor, case: PreparedCase) -> Prediction:
        labels, classes = runs.predict_prepared(torch.from_numpy(np.asarray(case.image()[:])))
        array = None if labels is None else labels.argmax(0, keepdim=True).byte().numpy()
        return Prediction(
            None if array is None else LabelMap(array, case.record.prepared.affine),
            None if classes is None else classes.numpy(),
        )

    return _predict_all(predictor, cases, output, predict_case, {}, out_of_fold, on_case)


def _predict_all(
    predictor: Predictor,
    cases: Sequence[C],
    output: Path,
    predict_case: Callable[[Predictor, C], Prediction],
    problems: Mapping[str, str],
    out_of_fold: bool,
    on_case: OnCase | None,
) -> PredictionSummary:
    chosen = [predictor.holding_out(case.case_id) if out_of_fold else predictor for case in cases]
    jobs = [(case, runs) for case, runs in zip(cases, chosen, strict=True) if runs is not None]
    if not jobs and not problems:
        raise InputError("nothing to predict" + (" that these runs held out" if out_of_fold else ""))
    output.mkdir(parents=True, exist_ok=True)
    segmentation = predictor.task.kind == "segmentation"
    summary = PredictionSummary(output if segmentation else output / "predictions.csv", problems=dict(problems))
    rows: list[dict[str, object]] = []
    for number, (case, runs) in enumerate(jobs):
        if on_case is not None:
            on_case(case.case_id, number, len(jobs))
        try:
            prediction = predict_case(runs, case)
        except Medi3dError as error:
            summary.problems[case.case_id] = str(error)
            continue
        summary.predicted.append(case.case_id)
        if prediction.label is not None:
            write_label_map(prediction.label, output / f"{case.case_id}.nii.gz")
        if prediction.classes is not None:
            rows.append(_class_row(case.case_id, prediction.classes, predictor.task.data.classes))
    if rows:
        _write_rows(rows, output / "predictions.csv")
    return summary


def list_inputs(source: Path, task: TaskConfig, masks: Path | None) -> RawCases:
    """Find the cases that an ``--input`` names, and what is wrong with others.

    A table, and a folder without images of its own for a task whose layout is ``patterns``, are read as preprocessing
    reads them; anything else is an image, a DICOM series, or a folder of them.

    Raises:
        InputError: it does not exist, or holds no images.
    """
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; --input takes an image, a folder, a DICOM series or a .csv"
        )
    plain = source.is_file() or is_image(source) or any(map(is_image, source.iterdir()))
    nested = task.data.layout == "patterns" and not plain
    if nested or source.suffix == ".csv":
        return find_raw_cases(source, task.data, need_label=False)
    files, doubled = set_doubles_apart(image_files(source))
    groups = group_channels(files, channels=task.in_channels)
    if masks is not None and masks.is_file() and len(groups) > 1:
        raise InputError(f"{masks}: one mask for {len(groups)} images; give --masks a folder of masks with their names")
    return RawCases(
        [RawCase(name, name, images, None, None, _mask_of(name, masks)) for name, images in groups.items()],
        [CaseProblem(name, message) for name, message in doubled.items()],
    )


def _mask_of(name: str, masks: Path | None) -> Path | None:
    if masks is None or not masks.is_dir():
        return masks
    return next((path for path in image_files(masks) if case_name(path) == name), None)


def _class_row(case_id: str, probabilities: Array, classes: Sequence[str]) -> dict[str, object]:
    row: dict[str, object] = {"case_id": case_id}
    row |= {name: round(float(value), 6) for name, value in zip(classes, probabilities, strict=True)}
    return row | {"predicted": classes[int(probabilities.argmax())]}


def _center(case: RawCase, volume: Volume, center_of_image: bool, task: TaskConfig) -> FloatTriple | None:
    if task.preprocess.crop != "cube":
        return None
    if center_of_image:
        x, y, z = volume.grid.index_to_world([(n - 1) / 2 for n in volume.shape])
        return float(x), float(y), float(z)
    if case.center is None:
        raise InputError(
            "this task cuts a cube and nothing tells where; give --masks with a mask of that name, "
            "a .csv with a mask column, or --center image"
        )
    return mask_center_mm(read_label_map(case.center))


def _write_rows(rows: list[dict[str, object]], path: Path) -> None:
    with atomic.new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
