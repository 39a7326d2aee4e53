from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference_metrics
from sklearn.calibration import calibration_curve as reference_calibration

from medi3d.evaluate import classification_statistics, evaluate_classification
from medi3d.evaluate.curves import calibration_curve, classification_curves, decision_curve, roc_curve


@pytest.fixture
def scored(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    positive = rng.random(150) < 0.3
    return positive, np.clip(0.3 * positive + rng.random(150) * 0.7, 0, 1).round(2)


def test_the_roc_curve_is_that_of_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    points = np.array(roc_curve(*scored))
    false_rate, true_rate, _ = reference_metrics.roc_curve(*scored, drop_intermediate=False)
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    full = set(zip(false_rate.round(12), true_rate.round(12), strict=True))
    assert {tuple(point) for point in points.round(12).tolist()} <= full
    area = reference_metrics.auc(points[:, 0], points[:, 1])
    assert area == pytest.approx(reference_metrics.roc_auc_score(*scored))
    assert len(points) < len(full)


def test_a_straight_roc_curve_has_two_points() -> None:
    assert roc_curve(np.array([True, False]), np.array([0.4, 0.4])) == [[0, 0], [1, 1]]
    assert roc_curve(np.array([True, True]), np.array([0.4, 0.2])) == []


def test_the_calibration_curve_is_that_of_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    points = np.array(calibration_curve(*scored))
    # A score on a bin's edge belongs to the bin above it here, and to that below in scikit-learn.
    apart = [scored[0], np.clip(scored[1] + 1e-9, 0, 1)]
    observed, predicted = reference_calibration(*apart, n_bins=10)
    np.testing.assert_allclose(points[:, :2], np.stack([predicted, observed], axis=1), atol=1e-6)
    assert points[:, 2].sum() == 150


def test_net_benefit_by_hand() -> None:
    # Of 10 cases 4 are ill. At 0.2, 3 ill and 2 healthy ones are treated: 3/10 - 2/10 · 0.25.
    positive = np.array([True] * 4 + [False] * 6)
    scores = np.array([0.9, 0.5, 0.2, 0.1, 0.6, 0.3, 0.1, 0.1, 0.05, 0.0])
    points = {point[0]: point[1:] for point in decision_curve(positive, scores)}
    assert points[0.2] == pytest.approx([0.3 - 0.2 * 0.25, 0.4 - 0.6 * 0.25])
    assert points[0.9] == pytest.approx([0.1, 0.4 - 0.6 * 9])
    assert len(points) == 99


def test_average_precision_sensitivity_and_specificity_are_those_of_scikit_learn(
    scored: tuple[np.ndarray, np.ndarray],
) -> None:
    positive, scores = scored
    statistics = classification_statistics(positive.astype(int), np.stack([1 - scores, scores], axis=1))
    ones = np.ones((1, 150))
    expected = reference_metrics.average_precision_score(positive, scores)
    assert statistics["average_precision"](ones).item() == pytest.approx(expected)
    decided = scores > 0.5
    assert statistics["sensitivity"](ones).item() == pytest.approx(reference_metrics.recall_score(positive, decided))
    assert statistics["specificity"](ones).item() == pytest.approx(reference_metrics.recall_score(~positive, ~decided))
    nobody = classification_statistics(np.zeros(3, int), np.full((3, 2), 0.5))
    assert np.isnan(nobody["average_precision"](np.ones((1, 3)))).all()
    assert np.isnan(nobody["sensitivity"](np.ones((1, 3)))).all()


def test_three_classes_have_three_sets_of_curves() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])
    curves = classification_curves(np.array([0, 1, 2]), probabilities, ["a", "b", "c"])["classes"]
    assert list(curves) == ["a", "b", "c"]
    assert curves["b"]["roc"] == [[0, 0], [0, 1], [1, 1]]
    assert curves["b"]["calibration"][0] == pytest.approx([0.2, 0, 1])


def test_curves_are_written(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("case_id,no,yes\na,0.9,0.1\nb,0.2,0.8\n")
    (tmp_path / "r.csv").write_text("case_id,target\na,no\nb,yes\n")
    evaluate_classification(tmp_path / "p.csv", tmp_path / "r.csv", ["no", "yes"], bootstrap=20).write(tmp_path)
    written = json.loads((tmp_path / "curves.json").read_text())
    assert list(written["classes"]) == ["yes"]
    assert set(written["classes"]["yes"]) == {"roc", "calibration", "decision"}
