from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medi3d.data.splits import Split, split_cases
from medi3d.errors import ConfigError, InputError
from medi3d.io.prepared import PreparedCase
from medi3d.io.record import Record
from medi3d.volume import Grid

GRID = Grid((2, 3, 4), np.eye(4))


def make_case(number: int, group: int, target: int | None = None) -> PreparedCase:
    return PreparedCase(Path(f"c{number}"), f"c{number:03d}", f"g{group}", target, Record(GRID, GRID), "", {})


def all_folds(cases: list[PreparedCase], folds: int, seed: int = 0) -> list[Split]:
    return [split_cases(cases, folds=folds, fold=fold, seed=seed) for fold in range(folds)]


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 15), min_size=12, max_size=60),
    folds=st.integers(2, 5),
    seed=st.integers(0, 99),
    classes=st.sampled_from([1, 2]),
)
def test_folds_partition_the_cases_and_keep_patients_together(
    groups: list[int], folds: int, seed: int, classes: int
) -> None:
    groups = [*range(8), *groups]  # eight patients at least, each class well filled
    cases = [make_case(n, group, None if classes == 1 else n % 2) for n, group in enumerate(groups)]
    patient = {case.case_id: case.group for case in cases}
    validated: Counter[str] = Counter()
    for split in all_folds(cases, folds, seed):
        assert split.train
        assert split.validation
        assert sorted([*split.train, *split.validation]) == sorted(patient)
        assert not {patient[name] for name in split.train} & {patient[name] for name in split.validation}
        validated.update(split.validation)
    assert validated == Counter(dict.fromkeys(patient, 1))


def test_classes_are_spread_evenly() -> None:
    cases = [make_case(n, n // 2, int(n % 10 < 2)) for n in range(100)]  # a fifth are of class 1, in pairs of a patient
    target = {case.case_id: case.target for case in cases}
    for split in all_folds(cases, 5):
        assert sum(target[name] or 0 for name in split.validation) == 4
        assert len(split.validation) == 20


def test_cases_whose_class_is_not_known_are_spread_evenly_too() -> None:
    targets = [None, 0, None, 1, None]  # more than half are not known
    cases = [make_case(n, n, targets[n % 5]) for n in range(100)]
    target = {case.case_id: case.target for case in cases}
    for split in all_folds(cases, 5):
        found = [target[name] for name in split.validation]
        assert (found.count(None), found.count(0), found.count(1)) == (12, 4, 4)
    one = [*(make_case(n, n, n % 2) for n in range(20)), make_case(20, 20)]
    assert len(all_folds(one, 5)) == 5  # one unknown class is no class that a fold may lack


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_cases() -> None:
    cases = [make_case(n, n // 2) for n in range(40)]
    first = split_cases(cases, folds=4, fold=1, seed=3)
    assert split_cases(cases[::-1], folds=4, fold=1, seed=3) == first
    assert split_cases(cases, folds=4, fold=1, seed=4) != first


def test_fewer_training_cases_leave_the_validation_part_as_it_is() -> None:
    cases = [make_case(n, n) for n in range(30)]
    whole = split_cases(cases, folds=3, fold=2, seed=1)
    few = split_cases(cases, folds=3, fold=2, seed=1, train_cases=5)
    more = split_cases(cases, folds=3, fold=2, seed=1, train_cases=9)
    assert few.validation == more.validation == whole.validation
    assert len(few.train) == 5
    assert set(few.train) < set(more.train) < set(whole.train)


def test_what_cannot_be_split_is_refused() -> None:
    cases = [make_case(n, n // 3) for n in range(12)]
    with pytest.raises(InputError, match=r"4 patients cannot be split into 5 folds; set train\.folds lower"):
        split_cases(cases, folds=5, fold=0, seed=0)
    with pytest.raises(ConfigError, match=r"fold 3 does not exist: train\.folds is 3, so give 0 to 2"):
        split_cases(cases, folds=3, fold=3, seed=0)
    with pytest.raises(ConfigError, match="fold -1 does not exist"):
        split_cases(cases, folds=3, fold=-1, seed=0)
    with pytest.raises(InputError, match=r"train\.cases is 10, but fold 0 has only 9 training cases"):
        split_cases(cases, folds=4, fold=0, seed=0, train_cases=10)


@pytest.mark.parametrize("rare", [1, 2])
def test_a_class_with_fewer_patients_than_folds_is_named(rare: int) -> None:
    cases = [make_case(n, n, int(n < rare)) for n in range(20)]
    with pytest.raises(InputError, match=rf"class 1 has {rare} patients?, fewer than train\.folds \(3\)"):
        split_cases(cases, folds=3, fold=0, seed=0)
