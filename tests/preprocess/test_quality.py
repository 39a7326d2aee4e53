"""Each defect is planted in a copy of a real case: it is found there, and the other cases stay clean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from medi3d import io
from medi3d.config import TaskConfig, load_task
from medi3d.io.prepared import PreparedCase
from medi3d.io.record import Record
from medi3d.preprocess.orient import reorient
from medi3d.preprocess.quality.findings import assess
from medi3d.preprocess.quality.fingerprint import measure_case
from medi3d.preprocess.quality.outliers import is_rare, robust_spread, standing_out
from medi3d.preprocess.resampling.resample import isotropic_grid
from medi3d.volume import LabelMap, Volume

V = TypeVar("V", bound=Volume)
Plant = Callable[[Volume, LabelMap], tuple[Volume, LabelMap]]

pytestmark = pytest.mark.real_data


def describe(case_id: str, volume: Volume, label: LabelMap, kept: float = 1.0) -> PreparedCase:
    statistics = measure_case(volume, label)
    for values in statistics["labels"].values():
        values["prepared_voxels"] = round(kept * values["volume_ml"] * 1000)  # prepared voxels have 1 mm³
    record = Record(volume.grid, isotropic_grid(volume.grid, (1.0, 1.0, 1.0)))
    return PreparedCase(Path(case_id), case_id, f"group {case_id}", None, record, case_id, statistics)


@pytest.fixture(scope="module")
def brains(real_data: Callable[[str], Path]) -> list[tuple[str, Volume, LabelMap]]:
    folder = real_data("hippocampus")
    paths = sorted((folder / "imagesTr").iterdir())[:24]
    return [(p.name[:15], io.read_volume(p), io.read_label_map(folder / "labelsTr" / p.name)) for p in paths]


@pytest.fixture(scope="module")
def nodules(real_data: Callable[[str], Path]) -> list[tuple[str, Volume, LabelMap]]:
    folder = real_data("lung_nodule")
    paths = sorted((folder / "images").iterdir())[::25]
    return [(p.name[:19], io.read_volume(p), io.read_label_map(folder / "masks" / p.name)) for p in paths]


@pytest.fixture(scope="module")
def clean_brains(brains: list[tuple[str, Volume, LabelMap]]) -> list[PreparedCase]:
    return [describe(*case) for case in brains]


@pytest.fixture(scope="module")
def clean_nodules(nodules: list[tuple[str, Volume, LabelMap]]) -> list[PreparedCase]:
    return [describe(*case) for case in nodules]


def kinds_of(cases: Sequence[PreparedCase], task: TaskConfig) -> dict[str, dict[str, int]]:
    """Return case → kind → severity."""
    found = assess(cases, task)["cases"]
    return {case["case_id"]: {f["kind"]: f["severity"] for f in case["findings"]} for case in found}


# --- what is planted


def widen_field_of_view(volume: Volume, label: LabelMap) -> tuple[Volume, LabelMap]:
    wide = [(0, 0), (60, 60), (0, 0), (0, 0)]
    return replace_array(volume, np.pad(volume.array, wide, "reflect")), replace_array(label, np.pad(label.array, wide))


def replace_array(volume: V, array: np.ndarray) -> V:
    return type(volume)(array, volume.affine)


def scale_spacing(volume: Volume, label: LabelMap) -> tuple[Volume, LabelMap]:
    affine = volume.affine @ np.diag([4.0, 1, 1, 1])
    return Volume(volume.array, affine), LabelMap(label.array, affine)


def turn(volume: Volume, label: LabelMap) -> tuple[Volume, LabelMap]:
    return reorient(volume, "LAI"), reorient(label, "LAI")


def image(change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    return lambda volume, label: (replace_array(volume, change(volume.array)), label)


def mask(change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    return lambda volume, label: (volume, replace_array(label, change(label.array)))


def exchange(label: np.ndarray) -> np.ndarray:
    return np.array([0, 2, 1], np.uint8)[label]


def keep_some(label: np.ndarray) -> np.ndarray:
    array = label.copy()
    array.ravel()[np.flatnonzero(array == 1)[50:]] = 0
    return array


def move_to_rim(label: np.ndarray) -> np.ndarray:
    return np.roll(label, -int(np.flatnonzero(label.any(axis=(0, 1, 3)))[0]), axis=2)


BRAINS: list[tuple[str, int, Plant]] = [
    ("field of view", 1, widen_field_of_view),
    ("spacing", 1, scale_spacing),
    ("orientation", 1, turn),
    ("units", 1, image(lambda x: x * 1e9)),
    ("sign", 2, image(lambda x: (x - x.mean()) / x.std())),
    ("exchanged labels", 3, mask(exchange)),
    ("label volume", 2, mask(keep_some)),
    ("missing label", 2, mask(lambda x: np.where(x == 1, 0, x).astype("u1"))),
    ("label at rim", 1, mask(move_to_rim)),
]
NODULES: list[tuple[str, int, Plant]] = [
    ("offset", 3, image(lambda x: np.clip(x, -1024, None) + 1024)),
    ("offset", 3, image(lambda x: x.astype("i2").astype("u2").astype("f4"))),
    ("units", 3, image(lambda x: x / 1000)),
    ("units", 3, image(lambda x: (np.clip(x, -1000, 400) + 1000) / 1400 - 0.1)),
]


@pytest.mark.parametrize("victim", [0, 7, 23])
@pytest.mark.parametrize(("kind", "severity", "plant"), BRAINS, ids=[row[0] for row in BRAINS])
def test_planted_in_brains(
    kind: str, severity: int, plant: Plant, victim: int,
    brains: list[tuple[str, Volume, LabelMap]], clean_brains: list[PreparedCase],
) -> None:  # fmt: skip
    case_id, volume, label = brains[victim]
    cases = [*clean_brains[:victim], describe(case_id, *plant(volume, label)), *clean_brains[victim + 1 :]]
    found = kinds_of(cases, load_task("hippocampus"))
    assert found[case_id].get(kind) == severity
    assert severity == 1 or next(iter(found)) == case_id  # worst first
    assert set(found) - {case_id} <= {"hippocampus_044"}  # on a scale a thousand times the others'


@pytest.mark.parametrize(("kind", "severity", "plant"), NODULES, ids=["rescaled", "unsigned", "thousandths", "window"])
def test_planted_in_nodules(
    kind: str, severity: int, plant: Plant,
    nodules: list[tuple[str, Volume, LabelMap]], clean_nodules: list[PreparedCase],
) -> None:  # fmt: skip
    case_id, volume, label = nodules[5]
    cases = [*clean_nodules[:5], describe(case_id, *plant(volume, label)), *clean_nodules[6:]]
    found = kinds_of(cases, load_task("lung_nodule_seg"))
    assert found[case_id].get(kind) == severity
    assert next(iter(found)) == case_id


def test_every_exchange_is_found(brains: list[tuple[str, Volume, LabelMap]], clean_brains: list[PreparedCase]) -> None:
    for victim, (case_id, _, _) in enumerate(brains):
        statistics = clean_brains[victim].statistics
        swapped = {"1": statistics["labels"]["2"], "2": statistics["labels"]["1"]}
        case = replace(clean_brains[victim], statistics={**statistics, "labels": swapped})
        found = kinds_of([*clean_brains[:victim], case, *clean_brains[victim + 1 :]], load_task("hippocampus"))
        assert "exchanged labels" in found[case_id]


def test_labels_that_are_lost(brains: list[tuple[str, Volume, LabelMap]]) -> None:
    task = load_task("hippocampus")
    for kept, severity in ((0.0, 3), (0.5, 2)):
        assert kinds_of([describe(*brains[0], kept=kept)], task)[brains[0][0]] == {"lost label": severity}
    message = assess([describe(*brains[0], kept=0.0)], task)["cases"][0]["findings"][0]["message"]
    assert "vanishes when prepared" in message
    assert kinds_of([describe(*brains[0], kept=0.8)], task) == {}


def test_twins(clean_brains: list[PreparedCase]) -> None:
    task = load_task("hippocampus")
    twin = replace(clean_brains[3], case_id="copy", group="another")
    assert kinds_of([*clean_brains, twin], task)["copy"] == {"twin": 2}
    assert kinds_of([*clean_brains, replace(twin, group=clean_brains[3].group)], task)["copy"] == {"twin": 1}


def test_channels_and_labels_of_another_case(real_data: Callable[[str], Path]) -> None:
    folder = sorted(real_data("brain_tumor").iterdir())[0]
    files = [next(folder.glob(pattern)) for pattern in ("Flair*", "T1c*", "OT*")]
    flair, contrast, label = (io.read_volume(files[0]), io.read_volume(files[1]), io.read_label_map(files[2]))
    task = load_task("brain_tumor")
    both = Volume(np.concatenate([flair.array, contrast.array]), flair.affine)
    assert kinds_of([describe("a", both, label)], task) == {}
    shifted = Volume(np.concatenate([flair.array, np.roll(contrast.array, 120, axis=2)]), flair.affine)
    assert kinds_of([describe("a", shifted, label)], task)["a"]["overlap"] == 3
    elsewhere = LabelMap(np.roll(label.array, 110, axis=3), label.affine)
    assert kinds_of([describe("a", both, elsewhere)], task)["a"]["label on background"] == 3


def test_real_sets_are_clean(clean_brains: list[PreparedCase], clean_nodules: list[PreparedCase]) -> None:
    """Mixed scales from 100 to 1.7e6 and crops of all sizes are what these sets are: no case is accused of them."""
    assert len(kinds_of(clean_brains, load_task("hippocampus"))) <= 1
    found = kinds_of(clean_nodules, load_task("lung_nodule_seg"))
    assert len(found) <= 2
    assert all(severity == 1 for kinds in found.values() for severity in kinds.values())
    notes = assess(clean_nodules, load_task("lung_nodule_seg"))["notes"]
    assert notes[0].startswith("label nodule touches the rim of the field of view in")


def test_few_cases_are_not_compared(clean_brains: list[PreparedCase]) -> None:
    task = load_task("hippocampus")
    assert assess(clean_brains[:4], task) == {
        "cases": [],
        "notes": ["4 cases are too few to tell which of them stand out"],
    }
    assert assess([], task)["cases"] == []


def test_many_equal_numbers_do_not_cry_wolf() -> None:
    equal = np.log([1.0] * 30 + [1.01])
    assert not standing_out(equal, 0.1).any()
    assert standing_out([*equal, np.log(3)], 0.1).sum() == 1
    groups = np.log([1.0] * 24 + [2.0] * 4)  # a group of more than a tenth belongs to the set
    assert not standing_out(groups, 0.08).any()
    holes = np.array([*equal, np.nan, np.log(9)])
    assert np.flatnonzero(standing_out(holes, 0.1)).tolist() == [32]
    assert not standing_out([1.0] * 6 + [9.0], 0.1).any()
    median, spread = robust_spread([[1.0, 5.0]] * 9, 0.5)
    assert median.tolist() == [1, 5]
    assert spread.tolist() == [0.5, 0.5]
    assert is_rare([False] * 9 + [True])
    assert not is_rare([False] * 9)
    assert not is_rare([False] * 3 + [True])
