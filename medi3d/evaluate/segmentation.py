"""Label map files against reference files: pairing by name, checks of geometry and labels, scores of each case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medi3d import io
from medi3d.errors import InputError
from medi3d.evaluate.metrics import (
    SEGMENT_METRICS,
    Regions,
    annotated_voxels,
    is_in,
    join_regions,
    segment_scores,
)
from medi3d.evaluate.result import ALL_LABELS, ALL_REGIONS, Evaluation, Row, require_cases
from medi3d.evaluate.statistics import Interval, bootstrap_interval, mean_of
from medi3d.types import Array, FloatArray, PathLike
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
    regions: Regions | None = None,
    ignore_label: int | None = None,
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
        regions: unions of labels that are scored as well, as those of BraTS.
        ignore_label: value of voxels of the references that nobody has annotated; they enter no score.
        groups: case id → patient, where cases of one patient shall be drawn together.
        on_case: called with the case's name, how many were looked at, and how many there are.

    Returns:
        The scores. References without a prediction and cases with a problem are named in it and enter no mean; empty
        labels and ignored voxels follow the rules of :mod:`medi3d.evaluate.metrics`.

    Raises:
        InputError: a folder holds no files, or not a single case could be scored.

    Examples:
        >>> result = evaluate_segmentation("predictions", "labelsTs", {1: "nodule"})  # doctest: +SKIP
        >>> print(result.scores["nodule"]["dice"])  # doctest: +SKIP
        0.853 [0.811, 0.889]
    """
    pairs, missing, unmatched = _pair_files(predictions, references)
    scored = _Scored(labels, join_regions(labels, regions), ignore_label, tolerance_mm)
    rows: list[Row] = []
    problems: list[str] = []
    for count, (case, (prediction, reference)) in enumerate(pairs.items(), start=1):
        try:
            rows += _score_case(case, prediction, reference, scored)
        except InputError as error:
            problems.append(f"{case}: {error}")
            logger.warning("%s", problems[-1])
        if on_case is not None:
            on_case(case, count, len(pairs))
    require_cases(rows, missing=missing, problems=problems)
    means = {ALL_LABELS: tuple(labels.values())} | ({ALL_REGIONS: tuple(regions)} if regions else {})
    return Evaluation(
        kind="segmentation",
        rows=tuple(rows),
        scores=_summarize(rows, means, bootstrap=bootstrap, seed=seed, groups=groups or {}),
        cases=len(pairs) - len(problems),
        missing=missing,
        unmatched=unmatched,
        problems=tuple(problems),
        settings={
            "tolerance_mm": tolerance_mm,
            "bootstrap": bootstrap,
            "seed": seed,
            "level": 0.95,
            "ignore_label": ignore_label,
            "regions": {name: list(values) for name, values in (regions or {}).items()},
        },
    )


@dataclass(frozen=True)
class _Scored:
    """What is scored in a case, and how.

    Args:
        labels: label value → name.
        segments: name of a label or region → label values.
        ignore_label: see :func:`evaluate_segmentation`.
        tolerance_mm: of the surface Dice.
    """

    labels: Mapping[int, str]
    segments: Mapping[str, tuple[int, ...]]
    ignore_label: int | None
    tolerance_mm: float


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


def _score_case(case: str, prediction_path: Path, reference_path: Path, scored: _Scored) -> list[Row]:
    prediction, reference = io.read_label_map(prediction_path), io.read_label_map(reference_path)
    _check_pair(prediction, reference, scored, paths=(prediction_path, reference_path))
    arrays = prediction.array[0], reference.array[0]
    scores = segment_scores(
        *arrays,
        labels={},
        regions=scored.segments,
        spacing_mm=reference.spacing_mm,
        tolerance_mm=scored.tolerance_mm,
        ignore_label=scored.ignore_label,
    )
    known = annotated_voxels(*arrays, scored.ignore_label)
    voxel_ml = float(np.prod(reference.spacing_mm)) / 1000

    def volume_ml(array: Array, values: tuple[int, ...]) -> float:
        mask = is_in(array, values)
        return np.count_nonzero(mask if known is None else mask & known) * voxel_ml

    return [
        {
            "case_id": case,
            "label": name,
            **scores[name],
            "prediction_ml": volume_ml(arrays[0], values),
            "reference_ml": volume_ml(arrays[1], values),
        }
        for name, values in scored.segments.items()
    ]


def _check_pair(prediction: LabelMap, reference: LabelMap, scored: _Scored, *, paths: tuple[Path, Path]) -> None:
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
    for path, label_map, ignored in zip(paths, (prediction, reference), (None, scored.ignore_label), strict=True):
        unknown = set(np.unique(label_map.array).tolist()) - {0, *scored.labels, ignored}
        if unknown:
            known = f"the labels are 0 and {sorted(scored.labels)}"
            raise InputError(f"{path} holds the label values {sorted(unknown)}; {known}")


def _summarize(
    rows: Sequence[Row], means: Mapping[str, tuple[str, ...]], *, bootstrap: int, seed: int, groups: Mapping[str, str]
) -> dict[str, dict[str, Interval]]:
    """Average over the cases: each label and region, and ``means``: name → what is averaged in a case first."""
    cases = list(dict.fromkeys(str(row["case_id"]) for row in rows))
    names = list(dict.fromkeys(str(row["label"]) for row in rows))
    drawn_with = [groups.get(case, case) for case in cases]
    # Rows run over what is scored within a case: (cases, names, metrics).
    table = np.array([[float(row[metric]) for metric in SEGMENT_METRICS] for row in rows])
    table = table.reshape(len(cases), len(names), len(SEGMENT_METRICS))
    columns = {name: table[:, index] for index, name in enumerate(names)}
    columns |= {
        mean: _mean_of_known(table[:, [names.index(name) for name in members]]) for mean, members in means.items()
    }
    return {
        name: {
            metric: _mean_interval(values[:, index], drawn_with, bootstrap, seed)
            for index, metric in enumerate(SEGMENT_METRICS)
        }
        for name, values in columns.items()
    }


def _mean_of_known(table: FloatArray) -> FloatArray:
    """Average ``(cases, names, metrics)`` over the names; NaN where none has a value."""
    known = np.isfinite(table)
    total: FloatArray = np.where(known, table, 0).sum(axis=1)
    return total / np.where(known.any(axis=1), known.sum(axis=1), np.nan)


def _mean_interval(values: np.ndarray, groups: list[str], samples: int, seed: int) -> Interval:
    interval = bootstrap_interval(mean_of(values), len(values), groups=groups, samples=samples, seed=seed)
    return Interval(interval.value, interval.low, interval.high, int(np.isfinite(values).sum()))
