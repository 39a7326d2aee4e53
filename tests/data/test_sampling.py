from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_tasks import make_phantom_task, make_two_class_phantom_task

from medi3d.data.phantom_store import write_prepared_phantom
from medi3d.data.sampling import PatchSampler
from medi3d.io.prepared import ArraySlabs, PreparedCase, read_case, write_case

SIZE = (5, 8, 6)


def make_sampler(cases: list[PreparedCase], **options: object) -> PatchSampler:
    defaults = {"patch_size": SIZE, "foreground_fraction": 1.0, "case_sampling": "even", "seed": 3}
    return PatchSampler(cases, **(defaults | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    """Label 3 lies in one case of eight, label 2 in two."""
    folder = tmp_path_factory.mktemp("rare")
    return write_prepared_phantom(folder, make_phantom_task(), cases=8, shapes=((14, 20, 17),), rare={2: 0.25, 3: 0.1})


def centered_label(sampler: PatchSampler, number: int) -> set[int]:
    """Return the labels whose stored voxels may be the patch's centre (at a rim it is moved)."""
    place = sampler.place(number)
    case = sampler.cases[place.case]
    found = set()
    for label, voxels in case.foreground.items():
        starts = np.clip(voxels.astype(int) - np.array(SIZE) // 2, 0, np.array(case.shape) - SIZE)
        if (starts == place.start).all(1).any():
            found.add(label)
    return found


def test_rare_labels_are_met_as_often_as_the_others(cases: list[PreparedCase]) -> None:
    sampler = make_sampler(cases, case_sampling="rare_labels")
    met = Counter(label for number in range(600) for label in centered_label(sampler, number))
    assert all(170 < met[label] < 260 for label in (1, 2, 3)), met
    even = make_sampler(cases)
    met = Counter(label for number in range(600) for label in centered_label(even, number))
    assert met[1] > 4 * met[3] > 0


def test_rare_labels_leave_the_other_patches_to_all_cases(cases: list[PreparedCase]) -> None:
    sampler = make_sampler(cases, case_sampling="rare_labels", foreground_fraction=0.0)
    assert sorted(sampler.place(number).case for number in range(8)) == list(range(8))


def test_rare_labels_are_a_pure_function_of_seed_and_number(cases: list[PreparedCase]) -> None:
    one, two = (make_sampler(cases, case_sampling="rare_labels", foreground_fraction=0.5) for _ in range(2))
    assert [one.place(n) for n in range(40)] == [two.place(n) for n in reversed(range(40))][::-1]
    other = make_sampler(cases, case_sampling="rare_labels", foreground_fraction=0.5, seed=4)
    assert [one.place(n) for n in range(40)] != [other.place(n) for n in range(40)]


def test_rare_classes_are_drawn_as_often_where_there_are_no_labels(tmp_path: Path) -> None:
    cases = write_prepared_phantom(tmp_path, make_two_class_phantom_task(), cases=9)
    few = [case for case in cases if case.target == 0] + [case for case in cases if case.target == 1][:1]
    sampler = make_sampler(few, case_sampling="rare_labels", foreground_fraction=0.3)
    drawn = Counter(few[sampler.place(number).case].target for number in range(400))
    assert 160 < drawn[1] < 240
    even = make_sampler(few)
    drawn = Counter(few[even.place(number).case].target for number in range(400))
    assert drawn[1] < 80


def centers(cases: list[PreparedCase], **options: object) -> list[tuple[PreparedCase, tuple[int, ...]]]:
    sampler = make_sampler(cases, patch_size=(1, 1, 1), **options)
    places = [sampler.place(number) for number in range(80)]
    return [(sampler.cases[place.case], place.start) for place in places]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case_sampling", ["even", "rare_labels"])
def test_a_voxel_that_is_not_annotated_is_never_a_centre(tmp_path: Path, fraction: float, case_sampling: str) -> None:
    cases = write_prepared_phantom(tmp_path, make_phantom_task(ignore_label=9), cases=3, annotated=0.2)
    found = centers(cases, foreground_fraction=fraction, case_sampling=case_sampling)
    labels = [int(case.label()[(0, *place)]) for case, place in found]  # type: ignore[index]
    assert 9 not in labels
    assert (0 in labels) == (fraction < 1)
    assert any(labels) == (fraction > 0)


def test_where_no_background_is_annotated_patches_lie_on_labels(tmp_path: Path) -> None:
    task = make_phantom_task(ignore_label=9)
    (case,) = write_prepared_phantom(tmp_path, task, cases=1, annotated=0.5)
    label = case.label()[:]  # type: ignore[index]
    label[label == 0] = 9
    image = case.image()[:]
    write_case(case, ArraySlabs(image), ArraySlabs(label), ignore_label=9)
    found = centers([read_case(case.folder)], foreground_fraction=0.0)
    assert all(int(label[(0, *place)]) in (1, 2, 3) for _, place in found)
