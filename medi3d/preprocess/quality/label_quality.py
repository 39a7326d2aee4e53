"""What is odd about the label maps of a data set: labels lost, exchanged, misplaced, missing, of another size.

Whether labels are missing, exchanged or of an odd size is asked of cases that are annotated throughout: of the others
it is not known how far their labels reach.

See :mod:`medi3d.preprocess.quality.findings`, which gathers the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medi3d.config import TaskConfig
from medi3d.io.prepared import PreparedCase
from medi3d.preprocess.quality.outliers import FEWEST_CASES, LIMIT, Finding, is_rare, robust_spread, standing_out
from medi3d.types import Array

_FACTOR_OF_VOLUME = 3.0
_KEPT_SHARE = 0.6
_BACKGROUND_SHARE = 0.5
_MISSING_SHARE = 0.1
_FLOORS = {"log volume": 0.2, "millimetres": 2.0, "intensity": 0.1}
_FARTHEST = 6.0
_EXCHANGE_GAIN = 30.0
"""How much smaller the summed squares of the deviations must become for two labels to look exchanged: two features
that lie four spreads off in both labels."""


def check_kept(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name labels that vanish, or keep less than 60 % of their volume, when they are prepared."""
    for case in cases:
        voxel_ml = float(np.prod(case.record.prepared.spacing_mm)) / 1000
        for name, values in _labels_of(case, task):
            native_ml, prepared_ml = values["volume_ml"], values["prepared_voxels"] * voxel_ml
            if prepared_ml < _KEPT_SHARE * native_ml:
                change = "vanishes" if prepared_ml == 0 else f"shrinks to {prepared_ml:.3g} ml"
                yield Finding(
                    case.case_id,
                    "lost label",
                    3 if prepared_ml == 0 else 2,
                    f"label {name}, {native_ml:.3g} ml, {change} when prepared: is the spacing too coarse, or does the "
                    "crop cut it off?",
                )


def check_background(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name labels most of whose voxels lie where the image shows nothing."""
    for case in cases:
        for name, values in _labels_of(case, task):
            share = max(values["background_shares"])
            if share > _BACKGROUND_SHARE:
                channel = task.data.channels[values["background_shares"].index(share)]
                yield Finding(
                    case.case_id,
                    "label on background",
                    3,
                    f"label {name}: {share:.0%} of it lies on the background of channel {channel}: another case's?",
                )


def check_missing(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name cases without a label that nine tenths of the others have."""
    labelled = [case for case in _annotated_throughout(cases) if case.statistics["labels"]]
    for value, name in task.data.labels.items():
        missing = [str(value) not in case.statistics["labels"] for case in labelled]
        for index in np.flatnonzero(missing).tolist() if is_rare(missing, _MISSING_SHARE) else ():
            found = f"no label {name}, which {missing.count(False)} of {len(labelled)} cases have"
            yield Finding(labelled[index].case_id, "missing label", 2, found)


def check_volumes(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name labels whose volume is another one by a factor of 3 and more."""
    cases = _annotated_throughout(cases)
    for value, name in task.data.labels.items():
        volumes = np.array([case.statistics["labels"].get(str(value), {}).get("volume_ml", np.nan) for case in cases])
        odd = standing_out(np.log(volumes), np.log(_FACTOR_OF_VOLUME) / LIMIT)
        for index in np.flatnonzero(odd).tolist():
            found = f"label {name}: {volumes[index]:.3g} ml, where the set's median is {np.nanmedian(volumes):.3g} ml"
            yield Finding(cases[index].case_id, "label volume", 2, found)


def check_border(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name cases whose labels touch the rim of the field of view, where a tenth of the set or fewer do."""
    for name, touching in _touching(cases, task).items():
        for index in np.flatnonzero(touching).tolist() if is_rare(touching) else ():
            found = f"label {name} touches the rim of the field of view: is part of it outside?"
            yield Finding(cases[index].case_id, "label at rim", 1, found)


def describe_labels(cases: Sequence[PreparedCase], task: TaskConfig) -> list[str]:
    """Say what holds for a good part of the set, so that it is no finding about one case."""
    shares = [case.statistics["annotated"] for case in cases if case.statistics.get("annotated", 1.0) < 1.0]
    partly = f"{len(shares)} of {len(cases)} cases are annotated in part, {np.mean(shares or 1.0):.0%} of their voxels"
    return [partly] * bool(shares) + [
        f"label {name} touches the rim of the field of view in {np.count_nonzero(touching)} of {len(cases)} cases"
        for name, touching in _touching(cases, task).items()
        if touching.any() and not is_rare(touching)
    ]


# --- exchanged labels


@dataclass(frozen=True)
class _Looks:
    """What the regions of a set look like, as far as it tells labels apart.

    Args:
        table: ``(cases, labels, features)``, NaN where a label is absent.
        median: ``(labels, features)``.
        spread: as ``median``.
    """

    table: Array
    median: Array
    spread: Array


def check_exchanged(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name cases in which exchanging two labels makes their volumes, places and intensities fit the set much better."""
    names, cases = list(task.data.labels.values()), _annotated_throughout(cases)
    looks = _looks(cases, task)
    if looks is None:
        return
    for case, rows in zip(cases, looks.table, strict=True):
        present = np.flatnonzero(np.isfinite(rows[:, 0]))
        apart = (rows[present, None] - looks.median[None, present]) / looks.spread[None, present]
        cost = np.minimum(apart**2, _FARTHEST**2).sum(axis=-1)  # (region, label that it is taken for)
        own = np.diag(cost)
        gain = own[:, None] + own[None] - cost - cost.T
        if gain.size and gain.max() > _EXCHANGE_GAIN:
            first, second = (names[present[place]] for place in np.unravel_index(gain.argmax(), gain.shape))
            yield Finding(
                case.case_id,
                "exchanged labels",
                3,
                f"labels {first} and {second} look exchanged (or the image is mirrored): volumes, places and "
                "intensities fit the other cases much better the other way round",
            )


def _looks(cases: Sequence[PreparedCase], task: TaskConfig) -> _Looks | None:
    """Return the looks of the labels; ``None`` where there are too few to compare."""
    values = [str(value) for value in task.data.labels]
    width = 4 + task.in_channels
    table = np.full((len(cases), len(values), width), np.nan)
    for row, case in zip(table, cases, strict=True):
        labels = case.statistics["labels"]
        present = [index for index, value in enumerate(values) if value in labels]
        if len(present) > 1:
            row[present] = _features([labels[values[index]] for index in present], case)
    enough = np.isfinite(table[..., 0]).sum(axis=0) >= FEWEST_CASES
    if np.count_nonzero(enough) < 2:
        return None
    table[:, ~enough] = np.nan
    floors = [_FLOORS["log volume"], *[_FLOORS["millimetres"]] * 3, *[_FLOORS["intensity"]] * task.in_channels]
    median, spread = np.zeros((2, len(values), width))
    for index in np.flatnonzero(enough):
        seen = table[np.isfinite(table[:, index, 0]), index]
        for feature, floor in enumerate(floors):
            median[index, feature], spread[index, feature] = robust_spread(seen[:, feature], floor)
    return _Looks(table, median, spread)


def _features(labels: Sequence[dict[str, Any]], case: PreparedCase) -> Array:
    """Return log volume, place relative to all labels, intensities in the case's scale: ``(labels, 4 + C)``."""
    volumes = np.array([values["volume_ml"] for values in labels])
    places = np.array([values["offset_mm"] for values in labels])
    places = places - np.average(places, axis=0, weights=volumes)
    percentiles = np.array([channel["percentiles"] for channel in case.statistics["channels"]])
    means = np.array([values["means"] for values in labels])
    scaled = (means - percentiles[:, 2]) / np.maximum(percentiles[:, 3] - percentiles[:, 1], 1e-30)
    return np.column_stack([np.log(volumes), places, scaled])


def _annotated_throughout(cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """Return the cases without ignored voxels; only tasks with an ignore label have others."""
    return [case for case in cases if case.statistics.get("annotated", 1.0) == 1.0]


def _labels_of(case: PreparedCase, task: TaskConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    for value, values in case.statistics["labels"].items():
        yield task.data.labels[int(value)], values


def _touching(cases: Sequence[PreparedCase], task: TaskConfig) -> dict[str, Array]:
    return {
        name: np.array([case.statistics["labels"].get(str(value), {}).get("at_border", False) for case in cases])
        for value, name in task.data.labels.items()
    }


LABEL_RULES = (check_kept, check_background, check_missing, check_volumes, check_border, check_exchanged)
