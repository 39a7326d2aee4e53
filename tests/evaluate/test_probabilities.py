from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference_metrics

from medi3d.errors import InputError
from medi3d.evaluate import bootstrap_interval, classification_statistics
from medi3d.evaluate.probabilities import calibration_error_of

ONES = np.ones((1, 120))


@pytest.fixture
def two_classes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    targets = rng.integers(2, size=120)
    positive = np.clip(0.3 * targets + rng.random(120) * 0.7, 0, 1).round(2)  # rounding makes ties
    return targets, np.stack([1 - positive, positive], axis=1)


def test_auc_accuracy_and_brier_are_those_of_scikit_learn(two_classes: tuple[np.ndarray, np.ndarray]) -> None:
    targets, probabilities = two_classes
    statistics = classification_statistics(targets, probabilities)
    assert statistics["auc"](ONES) == pytest.approx(reference_metrics.roc_auc_score(targets, probabilities[:, 1]))
    predicted = probabilities.argmax(axis=1)
    assert statistics["accuracy"](ONES) == pytest.approx(reference_metrics.accuracy_score(targets, predicted))
    assert statistics["brier"](ONES) == pytest.approx(reference_metrics.brier_score_loss(targets, probabilities[:, 1]))


def test_sensitivity_is_the_highest_on_the_roc_curve_at_95_percent(two_classes: tuple[np.ndarray, np.ndarray]) -> None:
    targets, probabilities = two_classes
    false_rate, true_rate, _ = reference_metrics.roc_curve(targets, probabilities[:, 1], drop_intermediate=False)
    expected = true_rate[false_rate <= 0.05 + 1e-12].max()
    statistic = classification_statistics(targets, probabilities)["sensitivity_at_95_specificity"]
    assert 0 < expected < 1
    assert statistic(ONES) == pytest.approx(expected)


def test_weights_stand_for_repeated_cases(two_classes: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> None:
    targets, probabilities = two_classes
    times = rng.integers(4, size=120)
    weighted = classification_statistics(targets, probabilities)
    repeated = classification_statistics(np.repeat(targets, times), np.repeat(probabilities, times, axis=0))
    for name, statistic in weighted.items():
        expected = repeated[name](np.ones((1, times.sum())))
        assert statistic(times[None].astype(float)) == pytest.approx(expected), name


def test_three_classes_give_the_mean_of_one_against_the_rest(rng: np.random.Generator) -> None:
    targets = rng.integers(3, size=120)
    logits = rng.normal(size=(120, 3)) + 1.5 * np.eye(3)[targets]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = reference_metrics.roc_auc_score(targets, probabilities, multi_class="ovr")
    assert classification_statistics(targets, probabilities)["auc"](ONES) == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    # Bin [0.1, 0.2): two cases at 0.15, one positive: gap 0.35. Bin [0.9, 1]: 0.95 and 1.0, both positive: gap 0.025.
    positive, scores = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.15, 0.15, 0.95, 1.0])
    assert calibration_error_of(positive, scores)(np.ones((1, 4))) == pytest.approx(0.5 * 0.35 + 0.5 * 0.025)


def test_one_class_alone_has_no_auc_but_an_accuracy() -> None:
    probabilities = np.array([[0.4, 0.6], [0.8, 0.2]])
    statistics = classification_statistics(np.array([1, 1]), probabilities)
    assert np.isnan(statistics["auc"](np.ones((1, 2)))).all()
    assert np.isnan(statistics["sensitivity_at_95_specificity"](np.ones((1, 2)))).all()
    assert statistics["accuracy"](np.ones((1, 2))) == pytest.approx(0.5)
    assert np.isnan(bootstrap_interval(statistics["auc"], 2).low)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(InputError, match=r"got \(3,\) and \(2, 2\)"):
        classification_statistics(np.array([0, 1, 1]), np.full((2, 2), 0.5))
    with pytest.raises(InputError, match="class indices 0 to 1"):
        classification_statistics(np.array([0, 2]), np.full((2, 2), 0.5))
