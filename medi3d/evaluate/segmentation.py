"""Label map files against reference files: pairing by name, checks of geometry and labels, scores of each case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from medi3d import io
from medi3d.errors import InputError, Medi3dError
from medi3d.evaluate.metrics import Regions, join_regions, segment_scores
from medi3d.evaluate.result import Evaluation, Row, number_groups, require_cases
from medi3d.evaluate.summary import summarize_segments
from medi3d.types import Array, PathLike
from medi3d.volume import Grid, LabelMap

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
    surface: str = "elements",
    lesion_iou: float = 0.1,
    jobs: int = 1,
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
        surface: what the surface metrics take for a surface, see :mod:`medi3d.evaluate.surface`.
        lesion_iou: least IoU of a detected lesion, see :mod:`medi3d.evaluate.lesions`.
        jobs: processes that score cases at the same time.
        on_case: called with the case's name, how many were looked at, and how many there are.

    Returns:
        The scores. References without a prediction and cases with a problem are named in it and enter no mean; empty
        labels and ignored voxels follow the rules of :mod:`medi3d.evaluate.metrics`.

    Raises:
        InputError: a folder holds no files, or not a single case could be scored.
        ConfigError: there is no such surface.
        Medi3dError: a process was killed.

    Examples:
        >>> result = evaluate_segmentation("predictions", "labelsTs", {1: "nodule"})  # doctest: +SKIP
        >>> print(result.scores["nodule"]["dice"])  # doctest: +SKIP
        0.853 [0.811, 0.889]
    """
    pairs, missing, unmatched = _pair_files(predictions, references)
    scored = _Scored(labels, join_regions(labels, regions), ignore_label, tolerance_mm, surface, lesion_iou)
    rows: list[Row] = []
    problems: list[str] = []
    for count, (case, result) in enumerate(_score_cases(pairs, scored, jobs), start=1):
        if isinstance(result, str):
            problems.append(f"{case}: {result}")
            logger.warning("%s", problems[-1])
        else:
            rows += result
        if on_case is not None:
            on_case(case, count, len(pairs))
    require_cases(rows, missing=missing, problems=problems)
    cases = list(dict.fromkeys(str(row["case_id"]) for row in rows))
    settings = {
        "tolerance_mm": tolerance_mm,
        "surface": surface,
        "lesion_iou": lesion_iou,
        "bootstrap": bootstrap,
        "seed": seed,
        "level": 0.95,
        "ignore_label": ignore_label,
        "labels": list(labels.values()),
        "regions": {name: list(values) for name, values in (regions or {}).items()},
    }
    numbers = number_groups(cases, groups)
    return Evaluation(
        kind="segmentation",
        rows=tuple(rows),
        scores=summarize_segments(rows, settings, groups=numbers, bootstrap=bootstrap, seed=seed),
        cases=len(cases),
        missing=missing,
        unmatched=unmatched,
        problems=tuple(problems),
        settings=settings,
        groups=numbers,
    )


@dataclass(frozen=True)
class _Scored:
    """What is scored in a case, and how.

    Args:
        labels: label value → name.
        segments: name of a label or region → label values.
        ignore_label: see :func:`evaluate_segmentation`, as the rest.
        tolerance_mm: of the surface Dice.
        surface: of the surface metrics.
        lesion_iou: of a detected lesion.
    """

    labels: Mapping[int, str]
    segments: Mapping[str, tuple[int, ...]]
    ignore_label: int | None
    tolerance_mm: float
    surface: str
    lesion_iou: float


_Pair = tuple[Path, Path]
_Result = list[Row] | str


def _score_cases(pairs: Mapping[str, _Pair], scored: _Scored, jobs: int) -> Iterator[tuple[str, _Result]]:
    """Yield each case and its rows, or what is wrong with it, in the order of the cases."""
    score = partial(_try_case, scored=scored)
    if jobs < 2:
        yield from zip(pairs, map(score, pairs, pairs.values()), strict=True)
        return
    from joblib import Parallel, delayed

    tasks = (delayed(score)(case, paths) for case, paths in pairs.items())
    try:
        yield from zip(pairs, Parallel(jobs, return_as="generator")(tasks), strict=True)
    except BrokenExecutor:
        raise Medi3dError(
            f"one of {jobs} processes that scored cases was killed, probably for want of memory; take fewer --jobs"
        ) from None


def _try_case(case: str, paths: _Pair, *, scored: _Scored) -> _Result:
    try:
        return _score_case(case, *paths, scored)
    except InputError as error:
        return str(error)


def find_labels(references: PathLike) -> dict[int, str]:
    """Return the foreground values that occur in reference files, each named ``label <value>``.

    Raises:
        InputError: there is no reference, one cannot be read, or all are empty.
    """
    values: set[int] = set()
    for path in io.image_files(references):
        values |= _values_in(io.read_label_map(path).array) - {0}
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
    scores = segment_scores(
        prediction.array[0],
        reference.array[0],
        labels={},
        regions=scored.segments,
        spacing_mm=reference.spacing_mm,
        tolerance_mm=scored.tolerance_mm,
        ignore_label=scored.ignore_label,
        surface=scored.surface,
        lesion_iou=scored.lesion_iou,
    )
    return [{"case_id": case, "label": name, **values} for name, values in scores.items()]


def _check_pair(prediction: LabelMap, reference: LabelMap, scored: _Scored, *, paths: _Pair) -> None:
    if not reference.grid.is_close(prediction.grid, tolerance=0.01):
        ours, theirs = (
            f"{path} has {_describe(m.grid)}" for path, m in zip(paths, (prediction, reference), strict=True)
        )
        raise InputError(f"{ours}; its reference {theirs}. Compare on the grid of the input image")
    if not reference.grid.is_orthogonal:
        raise InputError(f"{paths[1]} has axes that are not at right angles; resample both before they are compared")
    for path, label_map, ignored in zip(paths, (prediction, reference), (None, scored.ignore_label), strict=True):
        unknown = _values_in(label_map.array) - {0, *scored.labels, ignored}
        if unknown:
            known = f"the labels are 0 and {sorted(scored.labels)}"
            raise InputError(f"{path} holds the label values {sorted(unknown)}; {known}")


def _describe(grid: Grid) -> str:
    spacing, origin = (
        " × ".join(f"{mm:.4g}" for mm in grid.spacing_mm),
        ", ".join(f"{mm:.4g}" for mm in grid.origin_mm),
    )
    return f"{grid.shape} voxels (D, H, W) of {spacing} mm, orientation {grid.orientation}, origin ({origin}) mm"


def _values_in(array: Array) -> set[int]:
    """Return the values of ``(1, D, H, W)``, slice after slice, so that what is sorted stays small."""
    return {int(value) for plane in array[0] for value in np.unique(plane)}
