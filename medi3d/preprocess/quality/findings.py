"""What is odd about the cases of a data set, in words: who prepared them wants to look at these first.

Rules compare each case with the set (:mod:`~medi3d.preprocess.quality.outliers`), a few know what must hold by itself.
All go by the statistics that lie in ``case.json``, so that no voxel is read again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medi3d.config import TaskConfig
from medi3d.io.prepared import PreparedCase
from medi3d.preprocess.quality.label_quality import LABEL_RULES, describe_labels
from medi3d.preprocess.quality.outliers import FEWEST_CASES, LIMIT, Finding, is_rare, standing_out
from medi3d.preprocess.quality.regions import axes_along
from medi3d.types import Array
from medi3d.volume import CANONICAL_ORIENTATION

Rule = Callable[[Sequence[PreparedCase], TaskConfig], Iterator[Finding]]

_LEAST_OVERLAP = 0.5
_FACTOR_OF_GEOMETRY = 1.5
_FACTOR_OF_RANGE = 10.0
_RARE_ORIENTATION = 0.05


def assess(cases: Sequence[PreparedCase], task: TaskConfig) -> dict[str, Any]:
    """Find what is odd about the cases of a prepared data set.

    Args:
        cases: all of its cases.
        task: the task that they were prepared for.

    Returns:
        ``{"cases": [{"case_id", "severity", "findings": [{"kind", "severity", "message"}]}], "notes": [...]}``: cases
        with findings only, worst first; severity 3 is most likely an error, 2 suspicious, 1 unusual. Notes are about
        the whole set.
    """
    by_case: defaultdict[str, list[Finding]] = defaultdict(list)
    for rule in (*RULES, *LABEL_RULES) if cases else ():
        for finding in rule(cases, task):
            by_case[finding.case_id].append(finding)
    ranked = sorted(by_case.items(), key=lambda item: (-_worst(item[1]), -sum(f.severity for f in item[1]), item[0]))
    notes = [] if len(cases) >= FEWEST_CASES else [f"{len(cases)} cases are too few to tell which of them stand out"]
    return {
        "cases": [
            {
                "case_id": case_id,
                "severity": _worst(findings),
                "findings": [
                    {"kind": f.kind, "severity": f.severity, "message": f.message}
                    for f in sorted(findings, key=lambda f: -f.severity)
                ],
            }
            for case_id, findings in ranked
        ],
        "notes": [*notes, *describe_labels(cases, task)],
    }


def _worst(findings: Sequence[Finding]) -> int:
    return max(finding.severity for finding in findings)


# --- geometry


def check_geometry(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name cases with another field of view or spacing, by a factor of 1.5 and more."""
    grids = [case.record.native for case in cases]
    axes = [list(axes_along(grid, CANONICAL_ORIENTATION)) for grid in grids]
    spacings = np.array([np.take(grid.spacing_mm, order) for grid, order in zip(grids, axes, strict=True)])
    shapes = np.array([np.take(grid.shape, order) for grid, order in zip(grids, axes, strict=True)])
    for kind, table, digits in (("field of view", spacings * shapes, 0), ("spacing", spacings, 2)):
        odd = standing_out(np.log(table), np.log(_FACTOR_OF_GEOMETRY) / LIMIT).any(axis=1)
        usual = _triple(np.median(table, axis=0), digits)
        for index in np.flatnonzero(odd).tolist():
            found = _triple(table[index], digits)
            yield Finding(
                cases[index].case_id, kind, 1, f"{found} mm (towards S, P, L), where the set's median is {usual} mm"
            )


def check_orientation(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name cases stored in an orientation that 5 % of the set or fewer have."""
    counts = Counter(case.record.native.orientation for case in cases)
    usual = max(counts, key=lambda orientation: counts[orientation])
    for case in cases if len(cases) >= FEWEST_CASES else ():
        orientation = case.record.native.orientation
        if counts[orientation] <= max(_RARE_ORIENTATION * len(cases), 1):
            yield Finding(
                case.case_id,
                "orientation",
                1,
                f"stored as {orientation} (D, H, W), as {counts[orientation]} of {len(cases)} cases; most are {usual}",
            )


def _triple(values: Array, digits: int) -> str:
    return " × ".join(f"{value:.{digits}f}" for value in values)


# --- intensities


def check_units(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name channels whose range is another one by a factor of 10 or more.

    Where every image is normalised by itself, units do not matter much, and sets are often on mixed scales.
    """
    for channel, name in enumerate(task.data.channels):
        ranges = np.array([_range_of(case, channel) for case in cases])
        odd = standing_out(np.log(np.maximum(ranges, 1e-30)), np.log(_FACTOR_OF_RANGE) / LIMIT)
        severity = 1 if task.normalizations[channel] in ("mr", "percentile") else 3
        for index in np.flatnonzero(odd).tolist():
            yield Finding(
                cases[index].case_id,
                "units",
                severity,
                f"channel {name}: the middle 90 % of the intensities span {ranges[index]:.4g}, where the set's median "
                f"is {np.median(ranges):.4g}: are these other units?",
            )


def check_offset(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name CT channels that hold no negative value: air has −1000 HU, fat −100, and noise around water both signs."""
    for channel, name in enumerate(task.data.channels):
        for case in cases if task.normalizations[channel] == "ct" else ():
            values = case.statistics["channels"][channel]
            if values["min"] >= 0:
                yield Finding(
                    case.case_id,
                    "offset",
                    3,
                    f"channel {name}: no value below 0 ({values['min']:.4g} to {values['max']:.4g}), though air has "
                    "-1000 HU: was the rescale intercept of -1024 lost, or were the values stored without a sign?",
                )


def check_sign(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name channels with negative intensities among non-negative ones (z-scores among raw ones), and the reverse."""
    for channel, name in enumerate(task.data.channels):
        if task.normalizations[channel] == "ct":
            continue
        negative = np.array([case.statistics["channels"][channel]["percentiles"][1] < 0 for case in cases])
        for is_negative, found in (
            (True, "a twentieth of the intensities and more is negative, which is so in few of the other cases: were "
                   "these normalised before?"),
            (False, "hardly an intensity is negative, as many of those of nearly all other cases are: were only those "
                    "normalised before?"),
        ):  # fmt: skip
            for index in np.flatnonzero(negative == is_negative).tolist() if is_rare(negative == is_negative) else ():
                yield Finding(cases[index].case_id, "sign", 2, f"channel {name}: {found}")


def check_overlap(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name cases whose channels show different places."""
    for case in cases:
        for channel, name in enumerate(task.data.channels):
            overlap = case.statistics["channels"][channel]["overlap"]
            if overlap < _LEAST_OVERLAP:
                yield Finding(
                    case.case_id,
                    "overlap",
                    3,
                    f"channels {task.data.channels[0]} and {name} share {overlap:.0%} of the smaller one's object: do "
                    "both belong to this case, and to one frame of reference?",
                )


def check_twins(cases: Sequence[PreparedCase], task: TaskConfig) -> Iterator[Finding]:
    """Name cases that hold the same image as another one, which would be trained on and tested with."""
    same: defaultdict[str, list[PreparedCase]] = defaultdict(list)
    for case in cases:
        grid = case.record.native
        same[json.dumps([grid.shape, case.statistics["channels"]])].append(case)
    for twins in same.values():
        for case in twins if len(twins) > 1 else ():
            others = [twin for twin in twins if twin is not case]
            named = ", ".join(twin.case_id for twin in others[:3]) + (" …" if len(others) > 3 else "")
            apart = any(twin.group != case.group for twin in others)
            yield Finding(
                case.case_id,
                "twin",
                2 if apart else 1,
                f"the same image as {named}" + (", which counts as another patient's" if apart else ""),
            )


def _range_of(case: PreparedCase, channel: int) -> float:
    percentiles = case.statistics["channels"][channel]["percentiles"]
    return float(percentiles[3] - percentiles[1])


RULES: tuple[Rule, ...] = (
    check_geometry, check_orientation, check_units, check_offset, check_sign, check_overlap, check_twins,
)  # fmt: skip
