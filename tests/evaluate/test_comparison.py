from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from medi3d import io
from medi3d.errors import InputError
from medi3d.evaluate import (
    ALL_LABELS,
    Comparison,
    Evaluation,
    bootstrap_difference,
    compare_auc,
    compare_evaluations,
    evaluate_classification,
    evaluate_segmentation,
    mean_of,
    read_evaluation,
)
from medi3d.volume import LabelMap

LABELS = {1: "solid", 2: "subsolid"}
CASES = [f"c{number}" for number in range(8)]
PATIENTS = {case: f"p{number // 2}" for number, case in enumerate(CASES)}


def label_map(shift: int, second: int) -> LabelMap:
    array = np.zeros((1, 6, 9, 16), np.uint8)
    array[0, 1:4, 2:7, shift : shift + 6] = 1
    array[0, 4, :second] = 2
    return LabelMap(array, np.diag([3.0, 1.0, 0.7, 1.0]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References, and predictions ``a`` that are shifted less than ``b``; the last two cases are as good in both."""
    folder = tmp_path_factory.mktemp("pair")
    for number, case in enumerate(CASES):
        shifts = {"r": 4, "a": 4 + (number % 3), "b": 4 + (number % 3) + (2 if number < 6 else 0)}
        for name, shift in shifts.items():
            io.write_label_map(label_map(shift, 3 + (name == "b")), folder / name / f"{case}.nii.gz")
    return folder


def evaluate(folder: Path, name: str, **settings: object) -> Evaluation:
    return evaluate_segmentation(folder / name, folder / "r", LABELS, bootstrap=50, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def both(folders: Path) -> tuple[Evaluation, Evaluation]:
    return evaluate(folders, "a", groups=PATIENTS), evaluate(folders, "b", groups=PATIENTS)


def dice_of(evaluation: Evaluation, label: str) -> np.ndarray:
    return np.array([row["dice"] for row in evaluation.rows if row["label"] == label])


def test_differences_are_paired_over_whole_patients(both: tuple[Evaluation, Evaluation]) -> None:
    found = compare_evaluations(*both, bootstrap=500, seed=3)
    assert (found.kind, found.cases, found.patients) == ("segmentation", 8, 4)
    dice = [dice_of(evaluation, "solid") for evaluation in both]
    groups = [str(index // 2) for index in range(8)]
    expected = bootstrap_difference(*map(mean_of, dice), 8, groups=groups, samples=500, seed=3)
    difference = found.scores["solid"]["dice"]
    assert difference.difference == expected
    assert (difference.first, difference.second) == pytest.approx((dice[0].mean(), dice[1].mean()))
    per_patient = (dice[0] - dice[1]).reshape(4, 2).mean(axis=1)
    per_patient = per_patient[per_patient != 0]
    assert len(per_patient) == 3
    assert (difference.p_value, difference.test) == (wilcoxon(per_patient).pvalue, "signed-rank")
    assert set(found.scores) == {"solid", "subsolid", ALL_LABELS}
    assert set(found.scores["solid"]) == set(both[0].scores["solid"])


def test_the_cases_that_differ_most_come_first(both: tuple[Evaluation, Evaluation]) -> None:
    found = compare_evaluations(*both, bootstrap=20)
    means = [(dice_of(e, "solid") + dice_of(e, "subsolid")) / 2 for e in both]
    expected = {case: pair for case, *pair in zip(CASES, *means, strict=True)}
    assert found.differing == {case: pytest.approx(tuple(pair)) for case, pair in expected.items()}
    gaps = [abs(a - b) for a, b in found.differing.values()]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > gaps[-1]
    assert found.value == "Dice, all labels"


def test_what_was_written_compares_like_what_was_made(both: tuple[Evaluation, Evaluation], tmp_path: Path) -> None:
    for name, evaluation in zip("ab", both, strict=True):
        evaluation.write(tmp_path / name)
    read = [read_evaluation(tmp_path / name) for name in "ab"]
    assert read[0].groups == both[0].groups == {case: 1 + index // 2 for index, case in enumerate(CASES)}
    assert not any(patient in (tmp_path / "a" / "summary.json").read_text() for patient in set(PATIENTS.values()))
    again, made = compare_evaluations(*read, bootstrap=50), compare_evaluations(*both, bootstrap=50)
    for label, metrics in made.scores.items():
        for metric, difference in metrics.items():
            other = again.scores[label][metric]
            assert other.first == pytest.approx(difference.first, rel=1e-4, nan_ok=True)
            assert other.difference.low == pytest.approx(difference.difference.low, rel=1e-4, abs=1e-5, nan_ok=True)
    path = again.write(tmp_path / "out" / "comparison.json")
    written = json.loads(path.read_text())
    assert written["scores"]["solid"]["dice"]["difference"]["value"] == pytest.approx(
        made.scores["solid"]["dice"].difference.value, rel=1e-4
    )
    assert written["differing"] == {case: pytest.approx(pair, rel=1e-4) for case, pair in made.differing.items()}


def test_cases_of_one_side_are_named_and_left_out(both: tuple[Evaluation, Evaluation]) -> None:
    without = [
        replace(e, rows=tuple(row for row in e.rows if row["case_id"] != case))
        for e, case in zip(both, ("c1", "c4"), strict=True)
    ]
    found = compare_evaluations(*without, bootstrap=20)
    assert (found.cases, found.only_first, found.only_second) == (6, ("c4",), ("c1",))


def test_equal_evaluations_do_not_differ(both: tuple[Evaluation, Evaluation]) -> None:
    found = compare_evaluations(both[0], both[0], bootstrap=50)
    for metrics in found.scores.values():
        for difference in metrics.values():
            assert (difference.difference.low, difference.difference.high, difference.p_value) == (0, 0, 1)


def test_what_cannot_be_compared_is_refused(both: tuple[Evaluation, Evaluation], folders: Path, tmp_path: Path) -> None:
    first, second = both
    with pytest.raises(InputError, match=r"differ in tolerance_mm: 1\.0 and 2\.0; evaluate both in the same way"):
        compare_evaluations(first, evaluate(folders, "b", tolerance_mm=2.0))
    with pytest.raises(InputError, match="know different patients of the same cases"):
        compare_evaluations(first, replace(second, groups={case: index for index, case in enumerate(CASES)}))
    with pytest.raises(InputError, match="one evaluation is of a segmentation, the other of a classification"):
        compare_evaluations(first, replace(second, kind="classification"))
    other_truth = evaluate_segmentation(folders / "b", folders / "b", LABELS, bootstrap=20)
    with pytest.raises(InputError, match="case c0 was scored against two references: reference_ml is"):
        compare_evaluations(first, other_truth)
    renamed = replace(second, rows=tuple({**row, "case_id": f"x{row['case_id']}"} for row in second.rows))
    with pytest.raises(InputError, match="no case is in both evaluations; the first has c0, c1, c2, the second xc0"):
        compare_evaluations(first, renamed)
    with pytest.raises(InputError, match=r"not an evaluation with its cases.csv and summary.json"):
        read_evaluation(tmp_path)
    first.write(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    del summary["groups"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match="written by an older medi3d"):
        read_evaluation(tmp_path)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.4
    scores = {
        name: np.clip(0.3 + 0.3 * positive + rng.normal(0, sd, 60), 0, 1).round(3)
        for name, sd in (("a", 0.2), ("b", 0.4))
    }
    with (folder / "r.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [
                ["case_id", "patient", "target"],
                *([f"c{i}", f"p{i // 2}", "yes" if p else "no"] for i, p in enumerate(positive)),
            ]
        )
    for name, values in scores.items():
        rows = [[f"c{i}", f"{1 - value:.3f}", value] for i, value in enumerate(values)]
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["case_id", "no", "yes"], *rows])
    return folder, positive, scores


def compare_classifiers(folder: Path, group_column: str | None = None) -> Comparison:
    results = [
        evaluate_classification(
            folder / f"{n}.csv", folder / "r.csv", ["no", "yes"], group_column=group_column, bootstrap=20
        )
        for n in "ab"
    ]
    return compare_evaluations(*results, bootstrap=300)


def test_classifiers_are_compared_by_delong(classifiers: tuple[Path, np.ndarray, dict[str, np.ndarray]]) -> None:
    folder, positive, scores = classifiers
    found = compare_classifiers(folder).scores["yes"]
    expected = compare_auc(positive, scores["a"], scores["b"])
    assert found["auc"].difference.value == pytest.approx(expected.difference)
    assert (found["auc"].p_value, found["auc"].test) == (pytest.approx(expected.p_value), "DeLong")
    width = found["auc"].difference.high - found["auc"].difference.low
    assert width == pytest.approx(2 * 1.96 * expected.standard_error, rel=0.2)
    brier = [(scores[name] - positive) ** 2 for name in "ab"]
    assert found["brier"].p_value == pytest.approx(wilcoxon(brier[0] - brier[1]).pvalue)
    assert (found["average_precision"].test, np.isnan(found["average_precision"].p_value)) == ("", True)


def test_classifiers_are_compared_over_whole_patients(
    classifiers: tuple[Path, np.ndarray, dict[str, np.ndarray]],
) -> None:
    folder, positive, scores = classifiers
    found = compare_classifiers(folder, "patient")
    assert found.patients == 30
    groups = [str(index // 2) for index in range(60)]
    expected = compare_auc(positive, scores["a"], scores["b"], groups=groups)
    assert found.scores["yes"]["auc"].p_value == pytest.approx(expected.p_value)
    truth = {f"c{i}": tuple(scores[n][i] if positive[i] else 1 - scores[n][i] for n in "ab") for i in range(60)}
    worst = next(iter(found.differing))
    assert found.differing[worst] == pytest.approx(truth[worst])
    assert abs(np.subtract(*truth[worst])) == max(abs(a - b) for a, b in truth.values())
