"""Two evaluations of the same cases against each other: paired differences with intervals and p-values.

- The interval of a difference is a paired bootstrap: both are averaged over the same draws of cases, whole patients
  where they are known.
- The p-value of a mean over cases is that of the signed-rank test (Wilcoxon 1945, Biometrics Bulletin 1), zeros left
  out; cases of one patient are averaged first, for the test takes its pairs to be independent. That of an AUC is
  DeLong's, see :mod:`medi3d.evaluate.roc_test`. Other metrics have an interval alone. Nothing corrects for how many
  p-values one looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medi3d._version import __version__
from medi3d.errors import InputError
from medi3d.evaluate.classification import scores_name
from medi3d.evaluate.probabilities import brier_of, classification_statistics
from medi3d.evaluate.result import ALL_LABELS, Evaluation, Row, write_json
from medi3d.evaluate.roc_test import compare_auc
from medi3d.evaluate.statistics import Interval, Statistic, bootstrap_intervals
from medi3d.evaluate.summary import summaries
from medi3d.types import Array, FloatArray, PathLike

_SAME_SETTINGS = ("labels", "regions", "classes", "tolerance_mm", "surface", "lesion_iou", "ignore_label")
_TRUTH = ("target", "reference_ml", "reference_lesions")
"""Columns that tell of the reference alone."""


@dataclass(frozen=True)
class Difference:
    """One metric of two evaluations.

    Args:
        first: value over the cases of both, by the first.
        second: by the second.
        difference: the first minus the second, with its interval.
        p_value: two-sided; NaN where ``test`` is empty, or tells nothing.
        test: ``"signed-rank"``, ``"DeLong"`` or nothing.
    """

    first: float
    second: float
    difference: Interval
    p_value: float
    test: str


@dataclass(frozen=True)
class Comparison:
    """What two evaluations of the same cases say.

    Args:
        kind: ``"segmentation"`` or ``"classification"``.
        cases: how many cases both have scored.
        patients: how many patients they are of; 0 where that is not known.
        only_first: cases that the second has not scored; they are left out.
        only_second: the reverse.
        scores: what is scored → metric → difference.
        value: what ``differing`` tells of a case.
        differing: case id → that value by the first and by the second, those that differ most first.
        settings: of the bootstrap.
    """

    kind: str
    cases: int
    patients: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Difference]]
    value: str
    differing: Mapping[str, tuple[float, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: PathLike) -> Path:
        """Write it as JSON; what is undefined is ``null``."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"medi3d": __version__, **asdict(self)})
        return path


@dataclass(frozen=True, eq=False)
class _Metric:
    """A metric of one evaluation: its statistic, and ``(N,)`` its values of the cases where each has one."""

    statistic: Statistic
    values: FloatArray | None


def compare_evaluations(first: Evaluation, second: Evaluation, *, bootstrap: int = 2000, seed: int = 0) -> Comparison:
    """Compare two evaluations case by case.

    Args:
        first: as :func:`~medi3d.evaluate.read_evaluation` returns it, or as it was made.
        second: of the same task; cases that one of them lacks are left out and named.
        bootstrap: number of bootstrap samples of the 95 % intervals.
        seed: of the bootstrap.

    Raises:
        InputError: they are of different kinds, settings, references or patients, or have no case in common.

    Examples:
        >>> from medi3d.evaluate import read_evaluation
        >>> both = read_evaluation("a/evaluation"), read_evaluation("b/evaluation")  # doctest: +SKIP
        >>> print(compare_evaluations(*both).scores["nodule"]["dice"].difference)  # doctest: +SKIP
        0.021 [0.004, 0.037]
    """
    _require_same_settings(first, second)
    rows = [_by_case(evaluation.rows) for evaluation in (first, second)]
    shared = [case for case in rows[0] if case in rows[1]]
    _require_same_truth(rows[0], rows[1], shared)
    groups = _shared_groups(first, second, shared)
    kind = _KINDS[first.kind]
    pair = [[row for case in shared for row in of_case[case]] for of_case in rows]
    metrics = [kind.metrics(chosen, first.settings) for chosen in pair]
    names = list(metrics[0])
    intervals = bootstrap_intervals(
        [_minus(metrics[0][name].statistic, metrics[1][name].statistic) for name in names],
        len(shared), groups=groups, samples=bootstrap, seed=seed,
    )  # fmt: skip
    scores: dict[str, dict[str, Difference]] = {}
    ones = np.ones((1, len(shared)))
    for name, interval in zip(names, intervals, strict=True):
        two = metrics[0][name], metrics[1][name]
        values = [float(metric.statistic(ones)[0]) for metric in two]
        p_value, test = _signed_rank(two[0].values, two[1].values, groups)
        scores.setdefault(name[0], {})[name[1]] = Difference(values[0], values[1], interval, p_value, test)
    if len(first.settings.get("classes", ())) == 2:
        _add_delong(scores, pair, first.settings["classes"], groups)
    return Comparison(
        kind=first.kind,
        cases=len(shared),
        patients=len(set(groups or ())),
        only_first=tuple(case for case in rows[0] if case not in rows[1]),
        only_second=tuple(case for case in rows[1] if case not in rows[0]),
        scores=scores,
        value=kind.told_title,
        differing=_rank_differences(shared, *(kind.told(chosen, first.settings) for chosen in pair)),
        settings={"bootstrap": bootstrap, "seed": seed, "level": 0.95},
    )


def _require_same_settings(first: Evaluation, second: Evaluation) -> None:
    if first.kind != second.kind:
        raise InputError(f"one evaluation is of a {first.kind}, the other of a {second.kind}; compare two of a kind")
    for key in _SAME_SETTINGS:
        ours, theirs = first.settings.get(key), second.settings.get(key)
        if ours != theirs:
            raise InputError(f"the evaluations differ in {key}: {ours} and {theirs}; evaluate both in the same way")


def _by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["case_id"]), []).append(row)
    return found


def _require_same_truth(first: Mapping[str, list[Row]], second: Mapping[str, list[Row]], shared: list[str]) -> None:
    if not shared:
        raise InputError(
            f"no case is in both evaluations; the first has {', '.join(list(first)[:3])}, "
            f"the second {', '.join(list(second)[:3])}"
        )
    for case in shared:
        for ours, theirs in zip(first[case], second[case], strict=True):
            for key in (key for key in _TRUTH if key in ours):
                if _cell(ours[key]) != _cell(theirs[key]):
                    raise InputError(
                        f"case {case} was scored against two references: {key} is {ours[key]} and {theirs[key]}; "
                        "evaluate both against the same ones"
                    )


def _cell(value: str | float) -> str:
    """Return a number as a table of cases holds it, so that one just made equals one that was read."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _shared_groups(first: Evaluation, second: Evaluation, shared: list[str]) -> list[str] | None:
    """Return the patient of each case, where an evaluation knows them; both must say the same."""
    found = [[str(e.groups[case]) for case in shared] for e in (first, second) if e.groups]
    # Two partitions are one where each part of the one meets one part of the other.
    if len(found) == 2 and {len(set(zip(*found, strict=True)))} != {len(set(numbers)) for numbers in found}:
        raise InputError("the evaluations know different patients of the same cases; evaluate both with the same data")
    return found[0] if found else None


def _minus(first: Statistic, second: Statistic) -> Statistic:
    return lambda weights: first(weights) - second(weights)


def _signed_rank(first: FloatArray | None, second: FloatArray | None, groups: list[str] | None) -> tuple[float, str]:
    """Return the p-value of paired values, those of a patient averaged, and the test's name; nothing without values."""
    if first is None or second is None:
        return math.nan, ""
    from scipy.stats import wilcoxon

    differences = first - second
    known = np.isfinite(differences)
    patients = np.unique(np.asarray(groups or np.arange(len(differences)))[known], return_inverse=True)[1]
    means = np.bincount(patients, weights=differences[known]) / np.bincount(patients)
    means = means[means != 0]
    return (float(wilcoxon(means).pvalue) if len(means) else 1.0), "signed-rank"


def _add_delong(
    scores: dict[str, dict[str, Difference]], pair: list[list[Row]], classes: Sequence[str], groups: list[str] | None
) -> None:
    """Put DeLong's p-value beside the difference of the AUCs of two classes."""
    positive = np.array([row["target"] == classes[-1] for row in pair[0]])
    if positive.all() or not positive.any():
        return
    first, second = (np.array([float(row[classes[-1]]) for row in rows]) for rows in pair)
    of_class = scores[scores_name(classes)]
    p_value = compare_auc(positive, first, second, groups=groups).p_value
    of_class["auc"] = replace(of_class["auc"], p_value=p_value, test="DeLong")


def _rank_differences(cases: list[str], first: FloatArray, second: FloatArray) -> dict[str, tuple[float, float]]:
    order = np.argsort(-np.abs(first - second), kind="stable")
    known = np.isfinite(first - second)
    return {cases[i]: (float(first[i]), float(second[i])) for i in order if known[i]}


_Metrics = Mapping[tuple[str, str], _Metric]
"""(What is scored, metric) → what one evaluation says."""


def _segmentation_metrics(rows: Sequence[Row], settings: Mapping[str, Any]) -> _Metrics:
    return {(s.name, s.metric): _Metric(s.statistic, s.values) for s in summaries(rows, settings)}


def _mean_dice(rows: Sequence[Row], settings: Mapping[str, Any]) -> FloatArray:
    return next(s.values for s in summaries(rows, settings) if (s.name, s.metric) == (ALL_LABELS, "dice"))


def _classification_metrics(rows: Sequence[Row], settings: Mapping[str, Any]) -> _Metrics:
    targets, probabilities = _table(rows, settings["classes"])
    of_cases = {
        "accuracy": (probabilities.argmax(axis=1) == targets).astype(np.float64),
        "brier": brier_of(np.eye(probabilities.shape[1])[targets], probabilities),
    }
    statistics = classification_statistics(targets, probabilities)
    name = scores_name(settings["classes"])
    return {(name, metric): _Metric(statistics[metric], of_cases.get(metric)) for metric in statistics}


def _true_probability(rows: Sequence[Row], settings: Mapping[str, Any]) -> FloatArray:
    targets, probabilities = _table(rows, settings["classes"])
    found: FloatArray = probabilities[np.arange(len(targets)), targets]
    return found


def _table(rows: Sequence[Row], classes: Sequence[str]) -> tuple[Array, FloatArray]:
    """Return the class indices ``(N,)`` and the probabilities ``(N, K)`` of the cases."""
    targets = np.array([classes.index(str(row["target"])) for row in rows])
    return targets, np.array([[float(row[name]) for name in classes] for row in rows])


@dataclass(frozen=True)
class _Kind:
    """What is compared in one kind of evaluation, and by what the cases are ranked."""

    metrics: Callable[[Sequence[Row], Mapping[str, Any]], _Metrics]
    told_title: str
    told: Callable[[Sequence[Row], Mapping[str, Any]], FloatArray]


_KINDS = {
    "segmentation": _Kind(_segmentation_metrics, f"Dice, {ALL_LABELS}", _mean_dice),
    "classification": _Kind(_classification_metrics, "probability of the true class", _true_probability),
}
