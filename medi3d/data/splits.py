"""Folds for cross-validation: all cases of a patient lie in one fold, classes spread evenly.

scikit-learn is imported when cases are split, so that a prediction, which only reads a split, does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medi3d.errors import ConfigError, InputError
from medi3d.io.prepared import PreparedCase


@dataclass(frozen=True)
class Split:
    """Case ids of one fold's training and validation part."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def split_cases(
    cases: Sequence[PreparedCase], *, folds: int, fold: int, seed: int, train_cases: int | None = None
) -> Split:
    """Split cases into the training and validation part of one fold.

    Args:
        cases: prepared cases; their ``group`` is the (hashed) patient, their ``target`` the class; cases
            whose class is not known are spread evenly as those of a class are.
        folds: number of folds.
        fold: which fold to validate on, from 0.
        seed: shuffles the patients.
        train_cases: keep only this many training cases, drawn with ``seed``; the validation part stays the same.

    Raises:
        ConfigError: there is no such fold.
        InputError: fewer patients, or patients of a class, than folds, or fewer training cases than asked for.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if not 0 <= fold < folds:
        raise ConfigError(f"fold {fold} does not exist: train.folds is {folds}, so give 0 to {folds - 1}")
    ordered = sorted(cases, key=lambda case: case.case_id)
    groups = np.array([case.group for case in ordered])
    patients = len(set(groups))
    if patients < folds:
        raise InputError(f"{patients} patients cannot be split into {folds} folds; set train.folds lower or add cases")
    targets = np.array([-1 if case.target is None else case.target for case in ordered])
    unknown = targets < 0
    if unknown.sum() < folds:  # too few to be spread by themselves
        targets[unknown] = np.bincount(targets[~unknown]).argmax()
    for target in np.unique(targets[targets >= 0]):
        count = len(set(groups[targets == target]))
        if count < folds:
            raise InputError(
                f"class {target} has {count} patient{'' if count == 1 else 's'}, fewer than train.folds ({folds}), so "
                "a fold would lack it; set train.folds lower or add cases"
            )
    ids = np.array([case.case_id for case in ordered])
    if len(set(targets)) > 1:
        # Shuffled by renaming the patients: its own shuffle spoils the stratification before scikit-learn 1.8.
        groups = np.random.default_rng(seed).permutation(patients)[np.unique(groups, return_inverse=True)[1]]
        parts = StratifiedGroupKFold(folds).split(ids, targets, groups)
    else:
        parts = GroupKFold(folds, shuffle=True, random_state=seed).split(ids, targets, groups)
    train, validation = (ids[part] for part in list(parts)[fold])
    if train_cases is not None:
        if train_cases > len(train):
            raise InputError(f"train.cases is {train_cases}, but fold {fold} has only {len(train)} training cases")
        train = np.sort(np.random.default_rng(seed).permutation(train)[:train_cases])
    return Split(tuple(map(str, train)), tuple(map(str, validation)))
