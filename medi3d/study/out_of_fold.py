"""What ends a cross-validation: every case predicted by the run that held it out, and scored with intervals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.evaluate import Evaluation, evaluate_classification, evaluate_segmentation
from medi3d.infer.batch import BatchOptions, predict_cases, predict_prepared_cases
from medi3d.infer.predictor import Predictor
from medi3d.infer.summary import PredictionSummary
from medi3d.io import PreparedCase, PreparedStore, write_label_map
from medi3d.preprocess.cases.raw_case import RawCases
from medi3d.preprocess.cases.sources import find_raw_cases
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import FoldsFolder
from medi3d.volume import LabelMap

OnCase = Callable[[str, int, int], None]

CHECKPOINT = "last"
"""The best checkpoint was chosen by its score on the very cases that are scored here."""


@dataclass(frozen=True)
class OutOfFold:
    """What came of it.

    Attributes:
        evaluations: scores of the held-out cases, of their ``labels``, of their ``classes``, or of both.
        predictions: what was predicted, and what could not be.
        grid: ``native``, or ``prepared`` where the raw data is not at hand.
        notes: what a reader of the scores should know, one line each.
    """

    evaluations: Mapping[str, Evaluation]
    predictions: PredictionSummary
    grid: str
    notes: tuple[str, ...] = ()


def score_out_of_fold(folds: FoldsFolder, *, raw: Path, device: str, on_case: OnCase) -> OutOfFold:
    """Predict and score the held-out cases of all folds that are finished, and note the scores in the folder's record.

    Args:
        folds: the folder of folds.
        raw: folder of the raw data; where it does not exist, the cases are scored on the prepared grid.
        device: to predict on.
        on_case: called before each case.

    Raises:
        InputError: no fold is finished, or none of the cases can be scored.
    """
    record = folds.read()
    finished = [fold for fold, entry in record["folds"].items() if entry["state"] == "finished"]
    if not finished:
        raise InputError(f"{folds.path}: no fold is finished; `medi3d train --resume {folds.path}` goes on")
    result = score_held_out(
        [folds.fold(fold) for fold in finished],
        prepared=Path(record["prepared"]),
        raw=raw,
        output=folds.out_of_fold,
        device=device,
        on_case=on_case,
    )
    scores = {}
    for kind in result.evaluations:
        summary = folds.out_of_fold / "evaluation" / kind / "summary.json"
        scores[kind] = json.loads(summary.read_text(encoding="utf-8"))["scores"]
    folds.write(record | {"evaluation": _describe(result, scores)})
    return result


def score_held_out(
    runs: Sequence[RunFolder], *, prepared: Path, raw: Path | None, output: Path, device: str, on_case: OnCase
) -> OutOfFold:
    """Predict every case that runs of one task held out, each by the runs that did, score them, and write both.

    Args:
        runs: finished runs.
        prepared: the prepared store.
        raw: folder of the raw data; where it does not exist, the cases are scored on the prepared grid, as they are
            with ``None``.
        output: folder of the predictions; the scores go to ``evaluation/labels`` and ``evaluation/classes`` in it.
        device: to predict on.
        on_case: called before each case.

    Raises:
        InputError: the runs held no case of the store out, or none of the cases can be scored.
    """
    held_out = {case_id for run in runs for case_id in run.load_split().validation}
    cases = [case for case in PreparedStore(prepared).cases() if case.case_id in held_out]
    predictor = Predictor([run.path for run in runs], device=device, checkpoint=CHECKPOINT)
    if raw is not None and raw.exists():
        result = _score_raw(predictor, _find_raw(raw, predictor.task, held_out), cases, output, on_case)
    else:
        result = _score_prepared(predictor, cases, output, on_case, raw)
    for kind, evaluation in result.evaluations.items():
        evaluation.write(output / "evaluation" / kind)
    return result


def _find_raw(raw: Path, task: TaskConfig, held_out: set[str]) -> RawCases:
    found = find_raw_cases(raw, task.data, need_label=True)
    wanted = [case for case in found.cases if case.case_id in held_out]
    return RawCases(wanted, [problem for problem in found.problems if problem.case_id in held_out])


def _score_raw(
    predictor: Predictor, found: RawCases, prepared: list[PreparedCase], output: Path, on_case: OnCase
) -> OutOfFold:
    predicted = predict_cases(predictor, found, output, options=BatchOptions(out_of_fold=True), on_case=on_case)
    references = {case.case_id: case.label for case in found.cases if case.label is not None}
    absent = sorted({case.case_id for case in prepared} - {case.case_id for case in found.cases})
    notes = (f"{len(absent)} held-out cases are not in the raw data: {', '.join(absent[:5])}",) if absent else ()
    return OutOfFold(_score(predictor.task, predicted, references, prepared), predicted, "native", notes)


def _score_prepared(
    predictor: Predictor, prepared: list[PreparedCase], output: Path, on_case: OnCase, raw: Path | None
) -> OutOfFold:
    predicted = predict_prepared_cases(
        predictor, prepared, output, options=BatchOptions(out_of_fold=True), on_case=on_case
    )
    absent = f"scored on the prepared grid, not the scanner's own: there is no raw data in {raw}; --data says where"
    notes = () if raw is None else (f"{absent} it lies",)
    with TemporaryDirectory() as folder:
        references: dict[str, Path] = {}
        for case in prepared:
            stored = case.label()
            if stored is not None:
                references[case.case_id] = Path(folder) / f"{case.case_id}.nii.gz"
                label = LabelMap(np.asarray(stored[:]), case.record.prepared.affine)
                write_label_map(label, references[case.case_id])
        return OutOfFold(_score(predictor.task, predicted, references, prepared), predicted, "prepared", notes)


def _score(
    task: TaskConfig, predicted: PredictionSummary, references: Mapping[str, Path], prepared: list[PreparedCase]
) -> dict[str, Evaluation]:
    """Score predictions, with intervals over patients: cases of one are drawn together."""
    scores: dict[str, Evaluation] = {}
    if task.kind == "segmentation":
        scores["labels"] = evaluate_segmentation(
            {case_id: predicted.output / f"{case_id}.nii.gz" for case_id in predicted.predicted},
            references,
            task.data.labels,
            tolerance_mm=task.evaluate.tolerance_mm,
            bootstrap=task.evaluate.bootstrap,
            seed=task.train.seed,
            regions=task.data.regions,
            ignore_label=task.data.ignore_label,
            surface=task.evaluate.surface,
            lesion_iou=task.evaluate.lesion_iou,
            groups={case.case_id: case.group for case in prepared},
        )
    table = predicted.output / "predictions.csv" if task.kind == "segmentation" else predicted.output
    with_class = [case for case in prepared if case.target is not None]
    if task.data.classes and with_class:
        scores["classes"] = _score_classes(task, table, with_class)
    return scores


def _score_classes(task: TaskConfig, predictions: Path, prepared: list[PreparedCase]) -> Evaluation:
    with TemporaryDirectory() as folder:
        references = Path(folder) / "references.csv"
        with references.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("case_id", "patient", "class"))
            writer.writerows((case.case_id, case.group, task.data.classes[case.target or 0]) for case in prepared)
        return evaluate_classification(
            predictions,
            references,
            task.data.classes,
            case_column="case_id",
            target_column="class",
            group_column="patient",
            bootstrap=task.evaluate.bootstrap,
            seed=task.train.seed,
        )


def _describe(result: OutOfFold, scores: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation's part of the folder's record."""
    problems = [problem for evaluation in result.evaluations.values() for problem in evaluation.problems]
    problems += [f"{case}: {text}" for case, text in result.predictions.problems.items()]
    return {
        "grid": result.grid,
        "checkpoint": CHECKPOINT,
        "cases": {kind: evaluation.cases for kind, evaluation in result.evaluations.items()},
        "scores": scores,
        "notes": [*result.notes],
        "problems": problems,
    }
