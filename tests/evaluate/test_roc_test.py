from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medi3d.evaluate import compare_auc


def draw(seed: int, cases: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(cases) < 0.4
    common = rng.normal(size=cases) + positive
    first, second = ((common + rng.normal(scale=scale, size=cases)).round(1) for scale in (0.5, 1.0))  # with ties
    return positive, first, second


def delong_by_definition(positive: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """DeLong, DeLong and Clarke-Pearson 1988, pair by pair."""
    components = []
    for scores in (first, second):
        kernel = (scores[positive][:, None] > scores[~positive]) + 0.5 * (
            scores[positive][:, None] == scores[~positive]
        )
        components.append((kernel.mean(axis=1), kernel.mean(axis=0)))
    variance = sum(
        np.cov(components[0][side], components[1][side], ddof=1) / len(components[0][side]) for side in (0, 1)
    )
    difference = components[0][0].mean() - components[1][0].mean()
    error = np.sqrt(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1])
    return difference, error, 2 * norm.sf(abs(difference) / error)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_delongs_by_definition(seed: int) -> None:
    positive, first, second = draw(seed)
    found = compare_auc(positive, first, second)
    expected = delong_by_definition(positive, first, second)
    assert (found.difference, found.standard_error, found.p_value) == pytest.approx(expected)
    aucs = [roc_auc_score(positive, scores) for scores in (first, second)]
    assert found.difference == pytest.approx(aucs[0] - aucs[1])
    back = compare_auc(positive, second, first)
    assert (back.difference, back.p_value) == pytest.approx((-found.difference, found.p_value))


def test_a_patient_each_is_no_cluster() -> None:
    positive, first, second = draw(5)
    single = compare_auc(positive, first, second, groups=[f"p{index}" for index in range(60)])
    assert single.standard_error == pytest.approx(compare_auc(positive, first, second).standard_error)


def test_cases_said_four_times_are_no_four_patients() -> None:
    """Copies of each case add nothing where their patient is known, and halve the error where it is not."""
    positive, first, second = (np.repeat(array, 4) for array in draw(6))
    plain = compare_auc(*draw(6))
    clustered = compare_auc(positive, first, second, groups=[str(index) for index in np.repeat(np.arange(60), 4)])
    assert clustered.standard_error == pytest.approx(plain.standard_error)
    assert compare_auc(positive, first, second).standard_error == pytest.approx(plain.standard_error / 2, rel=0.03)


def test_p_values_of_equal_classifiers_are_uniform_with_patients_of_both_classes() -> None:
    """Patients with several cases of either class, whose scores hang together: 5 % of the p-values lie below 0.05."""
    rng = np.random.default_rng(1)
    p_values = []
    patients = np.repeat(np.arange(60), 3)
    for _ in range(400):
        positive = rng.random(180) < 0.5
        shared = rng.normal(size=(2, 60))[:, patients]
        first, second = (positive + 1.5 * own + rng.normal(size=180) for own in shared)
        p_values.append(compare_auc(positive, first, second, groups=patients.astype(str).tolist()).p_value)
    assert 0.025 < np.mean(np.array(p_values) < 0.05) < 0.08
    assert 0.4 < np.mean(p_values) < 0.6


def test_what_cannot_be_tested_is_undefined() -> None:
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    assert np.isnan(compare_auc(np.array([False, True, True, True]), scores, scores[::-1]).p_value)
    positive = np.array([False, False, True, True])
    assert compare_auc(positive, scores, scores).p_value == 1
    assert np.isnan(compare_auc(positive, scores, -scores).p_value)  # right throughout against wrong throughout
