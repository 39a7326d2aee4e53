from __future__ import annotations

import numpy as np
import pytest

from medi3d.errors import InputError
from medi3d.evaluate import Interval, bootstrap_difference, bootstrap_interval, mean_of
from medi3d.evaluate.statistics import _draw_weights


def test_the_interval_of_a_mean_is_about_two_standard_errors(rng: np.random.Generator) -> None:
    values = rng.normal(0.8, 0.1, size=400)
    interval = bootstrap_interval(mean_of(values), 400, samples=4000)
    standard_error = values.std(ddof=1) / np.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.2 * standard_error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.2 * standard_error)


def test_one_seed_gives_one_interval() -> None:
    values = mean_of(np.linspace(0, 1, 30))
    same = [bootstrap_interval(values, 30, seed=3) for _ in range(2)]
    assert same[0] == same[1]
    assert bootstrap_interval(values, 30, seed=4).low != same[0].low


def test_undefined_values_are_left_out_of_the_mean() -> None:
    assert bootstrap_interval(mean_of([0.5, np.nan, 0.7]), 3).value == pytest.approx(0.6)
    nothing = bootstrap_interval(mean_of([np.nan, np.nan]), 2)
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_cases_of_one_group_are_drawn_together() -> None:
    groups = ["b", "a", "b", "c", "a"]
    weights = np.concatenate(list(_draw_weights(5, groups, 200, 0)))
    assert weights.shape == (200, 5)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert np.array_equal(weights[:, 1], weights[:, 4])
    assert np.array_equal(weights[:, [0, 1, 3]].sum(axis=1), np.full(200, 3.0))


def test_groups_widen_the_interval_when_their_cases_agree(rng: np.random.Generator) -> None:
    values = np.repeat(rng.normal(size=25), 8)
    groups = [str(index) for index in np.repeat(np.arange(25), 8)]
    single = bootstrap_interval(mean_of(values), 200)
    grouped = bootstrap_interval(mean_of(values), 200, groups=groups)
    assert grouped.high - grouped.low > 2 * (single.high - single.low)


def test_a_paired_difference_is_tighter_than_its_parts(rng: np.random.Generator) -> None:
    first = rng.normal(0.8, 0.2, size=100)
    second = first - 0.03 + rng.normal(0, 0.01, size=100)
    difference = bootstrap_difference(mean_of(first), mean_of(second), 100)
    assert 0 < difference.low < difference.value < difference.high < 0.04
    assert difference.value == pytest.approx((first - second).mean())


def test_wrong_groups_are_refused() -> None:
    with pytest.raises(InputError, match="one group for each; got 3 cases, groups: 2"):
        bootstrap_interval(mean_of([1, 2, 3]), 3, groups=["a", "b"])
    with pytest.raises(InputError, match="got 0 cases"):
        bootstrap_interval(mean_of([]), 0)


def test_an_interval_reads_as_text() -> None:
    assert str(Interval(0.8534, 0.8111, 0.8899, 12)) == "0.853 [0.811, 0.890]"
