"""Label map files against reference files: pairing by name, checks of geometry and labels, scores of each case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from medi3d import io
from medi3d.errors import InputError
from medi3d.evaluate.metrics import SEGMENT_METRICS, segment_scores
from medi3d.evaluate.result import ALL_LABELS, Evaluation, Row, require_cases
from medi3d.evaluate.statistics import Interval, bootstrap_interval, mean_of
from medi3d.types import PathLike
from medi3d.volume import LabelMap

logger = logging.getLogger(__name__)

Files = PathLike | Mapping[str, Path]
"""A label map file, a folder of them, or case id → file."""

_CHANNEL_SUFFIX = "_0000"
"""Of the nnU-Net layout's images, after which a prediction may be named."""


def evaluate_segmentation(
    predictions: Files,
    references: Files,
    labels: Mapping[int, str],
    *,
    tolerance_mm: float = 1.0,
    bootstrap: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    on_case: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score predicted label maps.

    Predictions and references are paired by file name; one file against one file needs no common name.

    Args:
        predictions: a file, a folder of files, or case id → file.
        references: the same.
        labels: label value → name, the foreground values to score.
        tolerance_mm: of the surface Dice.
        bootstrap: number of bootstrap samples of the 95 % intervals.
        seed: of the bootstrap.
        groups: case id → patient, where cases of one patient shall be drawn together.
        on_case: called with the case's name, how many were looked at, and how many there are.

    Returns:
        The scores. References without a prediction and cases with a problem are named in it and enter no mean; empty
        labels follow the rules of :mod:`medi3d.evaluate.metrics`.

    Raises:
        InputError: a folder holds no files, or not a single case could be scored.

    Examples:
        >>> result = evaluate_segmentation("predictions", "labelsTs", {1: "nodule"})  # doctest: +SKIP
        >>> print(result.scores["nodule"]["dice"])  # doctest: +SKIP
        0.853 [0.811, 0.889]
    """
    pairs, missing, unmatched = _pair_files(predictions, references)
    rows: list[Row] = []
    problems: list[str] = []
    for count, (case, (prediction, reference)) in enumerate(pairs.items(), start=1):
        try:
            rows += _score_case(case, prediction, reference, labels, tolerance_mm)
        except InputError as error:
            problems.append(f"{case}: {error}")
            logger.warning("%s", problems[-1])
        if on_case is not None:
            on_case(case, count, len(pairs))
    require_cases(rows, missing=missing, problems=problems)
    return Evaluation(
        kind="segmentation",
        rows=tuple(rows),
        scores=_summarize(rows, labels, bootstrap=bootstrap, seed=seed, groups=groups or {}),
        cases=len(pairs) - len(problems),
        missing=missing,
        unmatched=unmatched,
        problems=tuple(problems),
        settings={"tolerance_mm": tolerance_mm, "bootstrap": bootstrap, "seed": seed, "level": 0.95},
    )


def find_labels(references: PathLike) -> dict[int, str]:
    """Return the foreground values that occur in reference files, each named ``label <value>``.

    Raises:
        InputError: there is no reference, one cannot be read, or all are empty.
    """
    values: set[int] = set()
    for path in io.image_files(references):
        values |= set(np.unique(io.read_label_map(path).array).tolist()) - {0}
    if not values:
        raise InputError(f"{references}: no label in any reference; expected values above 0")
    return {value: f"label {value}" for value in sorted(values)}


def _pair_files(
    predictions: Files, references: Files
) -> tuple[dict[str, tuple[Path, Path]], tuple[str, ...], tuple[str, ...]]:
    """Return case → (prediction, reference), the references without a prediction, the predictions without one."""
    predicted, wanted = _name_files(predictions), _name_files(references)
    if len(predicted) == len(wanted) == 1 and not (_is_folder(predictions) or _is_folder(references)):
        return {name: (next(iter(predicted.values())), path) for name, path in wanted.items()}, (), ()
    chosen = {name: name if name in predicted else name + _CHANNEL_SUFFIX for name in wanted}
    pairs = {name: (predicted[chosen[name]], path) for name, path in wanted.items() if chosen[name] in predicted}
    missing = tuple(name for name in wanted if name not in pairs)
    used = {chosen[name] for name in pairs}
    return pairs, missing, tuple(name for name in predicted if name not in used)


def _name_files(files: Files) -> dict[str, Path]:
    if isinstance(files, Mapping):
        return dict(files)
    return {io.case_name(path): path for path in io.image_files(Path(files))}


def _is_folder(files: Files) -> bool:
    return isinstance(files, Mapping) or Path(files).is_dir()


def _score_case(
    case: str, prediction_path: Path, reference_path: Path, labels: Mapping[int, str], tolerance_mm: float
) -> list[Row]:
    prediction, reference = io.read_label_map(prediction_path), io.read_label_map(reference_path)
    _check_pair(prediction, reference, labels, paths=(prediction_path, reference_path))
    arrays = prediction.array[0], reference.array[0]
    scores = segment_scores(*arrays, labels=labels, spacing_mm=reference.spacing_mm, tolerance_mm=tolerance_mm)
    voxel_ml = float(np.prod(reference.spacing_mm)) / 1000
    return [
        {
            "case_id": case,
            "label": name,
            **scores[name],
            "prediction_ml": np.count_nonzero(arrays[0] == value) * voxel_ml,
            "reference_ml": np.count_nonzero(arrays[1] == value) * voxel_ml,
        }
        for value, name in labels.items()
    ]


def _check_pair(
    prediction: LabelMap, reference: LabelMap, labels: Mapping[int, str], *, paths: tuple[Path, Path]
) -> None:
    if prediction.shape != reference.shape:
        raise InputError(
            f"{paths[0]} has {prediction.shape} voxels (D, H, W), its reference {paths[1]} has {reference.shape};"
            " compare predictions with labels on the grid of the input image"
        )
    if not reference.grid.is_close(prediction.grid, tolerance=0.01):
        raise InputError(
            f"{paths[0]} lies elsewhere than its reference {paths[1]}: affines"
            f" {prediction.affine[:3].round(4).tolist()} and {reference.affine[:3].round(4).tolist()}"
        )
    if not reference.grid.is_orthogonal:
        raise InputError(f"{paths[1]} has axes that are not at right angles; resample both before they are compared")
    for path, label_map in zip(paths, (prediction, reference), strict=True):
        unknown = set(np.unique(label_map.array).tolist()) - {0, *labels}
        if unknown:
            raise InputError(f"{path} holds the label values {sorted(unknown)}; the labels are 0 and {sorted(labels)}")


def _summarize(
    rows: list[Row], labels: Mapping[int, str], *, bootstrap: int, seed: int, groups: Mapping[str, str]
) -> dict[str, dict[str, Interval]]:
    cases = list(dict.fromkeys(str(row["case_id"]) for row in rows))
    drawn_with = [groups.get(case, case) for case in cases]
    # Rows run over the labels within a case: (cases, labels, metrics).
    table = np.array([[float(row[metric]) for metric in SEGMENT_METRICS] for row in rows])
    table = table.reshape(len(cases), len(labels), len(SEGMENT_METRICS))
    known = np.isfinite(table)
    per_case = np.where(known, table, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    columns = {name: table[:, index] for index, name in enumerate(labels.values())} | {ALL_LABELS: per_case}
    return {
        name: {
            metric: _mean_interval(values[:, index], drawn_with, bootstrap, seed)
            for index, metric in enumerate(SEGMENT_METRICS)
        }
        for name, values in columns.items()
    }


def _mean_interval(values: np.ndarray, groups: list[str], samples: int, seed: int) -> Interval:
    interval = bootstrap_interval(mean_of(values), len(values), groups=groups, samples=samples, seed=seed)
    return Interval(interval.value, interval.low, interval.high, int(np.isfinite(values).sum()))
