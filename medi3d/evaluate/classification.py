"""A table of class probabilities against a table of true classes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medi3d.errors import InputError
from medi3d.evaluate.curves import classification_curves
from medi3d.evaluate.probabilities import classification_statistics
from medi3d.evaluate.result import Evaluation, Row, number_groups, require_cases
from medi3d.evaluate.statistics import bootstrap_intervals
from medi3d.types import FloatArray, PathLike


def evaluate_classification(
    predictions: PathLike,
    references: PathLike,
    classes: Sequence[str],
    *,
    case_column: str = "case_id",
    target_column: str = "target",
    group_column: str | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Score predicted class probabilities.

    Args:
        predictions: CSV with a column ``case_id`` and one column of probabilities for each class.
        references: CSV with the true classes; rows with an empty class are left out and counted in the settings.
        classes: class names in the order of the model's outputs; of two, the last is the positive one.
        case_column: column of the references that holds the case id.
        target_column: column of the references that holds the class, by name or by index.
        group_column: column of the references whose cases (of one patient) are drawn together.
        bootstrap: number of bootstrap samples of the 95 % intervals.
        seed: of the bootstrap.

    Returns:
        The scores, under the positive class's name, or ``"all classes"`` where there are more than two. References
        without a prediction, predictions without a reference and unusable rows are named in it.

    Raises:
        InputError: a table or column is missing, or not a single case could be scored.

    Examples:
        >>> result = evaluate_classification("p.csv", "cases.csv", ["benign", "malignant"])  # doctest: +SKIP
        >>> print(result.scores["malignant"]["auc"])  # doctest: +SKIP
        0.901 [0.871, 0.928]
    """
    predicted, problems = _read_probabilities(Path(predictions), classes)
    columns = [case_column, target_column, *([group_column] if group_column else [])]
    reference_rows = _read_table(Path(references), columns)
    targets, unlabelled, unknown = _read_targets(reference_rows, case_column, target_column, classes, Path(references))
    problems += unknown
    scored = [case for case in targets if case in predicted]
    faulty = {problem.partition(":")[0] for problem in problems}
    missing = tuple(case for case in targets if case not in predicted and case not in faulty)
    require_cases(scored, missing=missing, problems=problems)
    numbers = number_groups(
        scored,
        {row[case_column]: row[group_column] or row[case_column] for row in reference_rows} if group_column else None,
    )
    groups = [str(numbers[case]) for case in scored] if numbers else None
    target_array = np.array([targets[case] for case in scored])
    probabilities = np.stack([predicted[case] for case in scored])
    statistics = classification_statistics(target_array, probabilities)
    intervals = bootstrap_intervals([*statistics.values()], len(scored), groups=groups, samples=bootstrap, seed=seed)
    scores = dict(zip(statistics, intervals, strict=True))
    known = {row[case_column] for row in reference_rows}
    return Evaluation(
        kind="classification",
        rows=tuple(_case_row(case, targets[case], predicted[case], classes) for case in scored),
        scores={scores_name(classes): scores},
        cases=len(scored),
        missing=missing,
        unmatched=tuple(case for case in predicted if case not in known),
        problems=tuple(problems),
        settings={
            "bootstrap": bootstrap,
            "seed": seed,
            "level": 0.95,
            "unlabelled": unlabelled,
            "classes": list(classes),
        },
        groups=numbers,
        curves=classification_curves(target_array, probabilities, classes),
    )


def scores_name(classes: Sequence[str]) -> str:
    """Return under which name the scores stand: the positive class of two, else all."""
    return classes[-1] if len(classes) == 2 else "all classes"


def _case_row(case: str, target: int, probabilities: FloatArray, classes: Sequence[str]) -> Row:
    return {
        "case_id": case,
        "target": classes[target],
        "predicted": classes[int(probabilities.argmax())],
        **{name: float(value) for name, value in zip(classes, probabilities, strict=True)},
    }


def _read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV that must hold the given columns; the first of them must name each row once."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV table: {error}") from None
    absent = [column for column in columns if column not in header]
    if absent:
        raise InputError(f"{path}: no column {', '.join(map(repr, absent))}; the columns are {', '.join(header)}")
    name, times = next(iter(Counter(row[columns[0]] for row in rows).most_common(1)), ("", 0))
    if times > 1:
        raise InputError(f"{path}: case {name!r} stands in {times} rows; expected one")
    return rows


def _read_probabilities(path: Path, classes: Sequence[str]) -> tuple[dict[str, FloatArray], list[str]]:
    """Return case → ``(K,)`` probabilities, and a line for each row that holds none."""
    predicted: dict[str, FloatArray] = {}
    problems = []
    for row in _read_table(path, ["case_id", *classes]):
        texts = [row[name] for name in classes]
        try:
            values = np.array([float(text) for text in texts])
        except (TypeError, ValueError):
            values = np.array([np.nan])
        if not (np.all((values >= 0) & (values <= 1)) and abs(values.sum() - 1) < 1e-2):
            problems.append(f"{row['case_id']}: {path} holds no probabilities that sum to 1 in its row: {texts}")
        else:
            predicted[row["case_id"]] = values
    return predicted, problems


def _read_targets(
    rows: Sequence[Mapping[str, str]], case_column: str, target_column: str, classes: Sequence[str], path: Path
) -> tuple[dict[str, int], int, list[str]]:
    """Return case → class index, how many rows have no class, and a line for each with an unknown one."""
    indices = {str(index): index for index in range(len(classes))} | {name: i for i, name in enumerate(classes)}
    targets, problems, unlabelled = {}, [], 0
    for row in rows:
        case, text = row[case_column], (row[target_column] or "").strip()
        if not text:
            unlabelled += 1
        elif text in indices:
            targets[case] = indices[text]
        else:
            problems.append(f"{case}: {path} holds the class {text!r}; the classes are {', '.join(classes)}")
    return targets, unlabelled, problems
