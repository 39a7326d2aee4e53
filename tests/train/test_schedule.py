from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medi3d.config import parse_duration
from medi3d.errors import ConfigError
from medi3d.train.schedule import CURVES, Pace, rate_factor

fractions = st.floats(0, 1)


@given(schedule=st.sampled_from(sorted(CURVES)), progress=fractions, warmup=fractions)
def test_factors_lie_between_zero_and_one(schedule: str, progress: float, warmup: float) -> None:
    assert 0 <= rate_factor(schedule, progress, warmup=warmup) <= 1 + 1e-12


@given(schedule=st.sampled_from(sorted(CURVES)), one=fractions, two=fractions, warmup=st.floats(0, 0.9))
def test_factors_rise_to_the_end_of_the_warmup_and_never_after(
    schedule: str, one: float, two: float, warmup: float
) -> None:
    early, late = sorted((one, two))
    first, second = (rate_factor(schedule, progress, warmup=warmup) for progress in (early, late))
    if late < warmup:
        assert first <= second
    if early >= warmup:
        assert first >= second - 1e-12


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("cosine", 0.0, 1.0),
        ("cosine", 0.25, 0.5 * (1 + math.sqrt(0.5))),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("poly", 0.5, 0.5**0.9),
        ("poly", 1.0, 0.0),
        ("constant", 1.0, 1.0),
    ],
)
def test_known_values(schedule: str, progress: float, expected: float) -> None:
    assert rate_factor(schedule, progress, warmup=0) == pytest.approx(expected, abs=1e-12)
    # The curve is squeezed into what the warm-up leaves.
    assert rate_factor(schedule, 0.2 + 0.8 * progress, warmup=0.2) == pytest.approx(expected, abs=1e-9)


def test_a_warmup_starts_at_zero() -> None:
    assert rate_factor("cosine", 0.0, warmup=0.1) == 0
    assert rate_factor("cosine", 0.025, warmup=0.1) == pytest.approx(0.25)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        rate_factor("cosin", 0.5, warmup=0)


@given(hours=st.integers(0, 99), minutes=st.integers(0, 99), seconds=st.integers(0, 99))
def test_durations_are_read_back(hours: int, minutes: int, seconds: int) -> None:
    total = 3600 * hours + 60 * minutes + seconds
    text = "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if n)
    if total:
        assert parse_duration(f" {text} ") == total
    else:
        with pytest.raises(ConfigError, match="is no duration"):
            parse_duration(text)


def test_fractions_of_a_unit_are_taken() -> None:
    assert parse_duration("1.5h") == 5400
    assert parse_duration("0.5m10s") == 40


@pytest.mark.parametrize("text", ["", "10", "m", "10 minutes", "-5m", "5m1h", "1h 30m", "ten", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no duration; write 45s, 10m or 1h30m"):
        parse_duration(text)


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="'0m' is no time at all"):
        parse_duration("0m")


@given(steps=st.integers(1, 1000), elapsed=st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_progress_by_steps_does_not_look_at_the_clock(steps: int, elapsed: list[float]) -> None:
    pace = Pace(steps, None)
    found = [pace.update(step + 1, seconds) for step, seconds in enumerate(elapsed)]
    assert found == [min((step + 1) / steps, 1) for step in range(len(elapsed))]
    assert pace.update(steps, 0) == 1


@given(
    budget=st.floats(1, 1e5),
    elapsed=st.lists(st.floats(0, 2e5), min_size=1, max_size=20),
    validation=st.floats(0, 1e5),
)
def test_progress_by_the_clock_never_goes_back_and_ends_with_the_budget(
    budget: float, elapsed: list[float], validation: float
) -> None:
    pace = Pace(5, budget)
    before = 0.0
    for number, seconds in enumerate(elapsed):
        if number == len(elapsed) // 2:
            pace.validation_s = validation
        now = pace.update(10**6, seconds)  # steps do not count
        assert before <= now <= 1
        before = now
    assert pace.update(0, budget) == 1


def test_the_last_validation_is_held_back_from_the_budget() -> None:
    pace = Pace(1, 100.0, validation_s=20.0)
    assert pace.update(1, 40.0) == pytest.approx(0.5)
    assert pace.update(2, 80.0) == 1
