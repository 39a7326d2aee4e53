from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from medi3d import io
from medi3d.config import load_task
from medi3d.data.synthetic import (
    EXTENT_MM,
    NODULE_LABELS,
    Nodule,
    PhantomPlan,
    plan_phantom,
    render_phantom,
    write_phantom_dataset,
)
from medi3d.volume import LabelMap, Volume


@pytest.fixture(scope="module")
def plan() -> PhantomPlan:
    return plan_phantom(5)


@pytest.fixture(scope="module")
def phantom(plan: PhantomPlan) -> tuple[Volume, LabelMap]:
    return render_phantom(plan)


def test_one_seed_gives_one_phantom(plan: PhantomPlan, phantom: tuple[Volume, LabelMap]) -> None:
    image, label = render_phantom(plan_phantom(5))
    assert np.array_equal(image.array, phantom[0].array)
    assert np.array_equal(label.array, phantom[1].array)
    assert plan_phantom(6) != plan


def test_both_kinds_of_nodule_are_in_every_plan() -> None:
    for seed in range(12):
        plan = plan_phantom(seed)
        assert {nodule.kind for nodule in plan.nodules} == {"solid", "subsolid"}
        assert all(8 <= nodule.diameter_mm <= 24 for nodule in plan.nodules)


def test_spacing_is_unequal_and_the_size_fits_a_short_training(phantom: tuple[Volume, LabelMap]) -> None:
    image, label = phantom
    assert image.grid.is_close(label.grid)
    assert image.spacing_mm[0] > 1.5 * image.spacing_mm[1]
    assert np.multiply(image.shape, image.spacing_mm) == pytest.approx(EXTENT_MM, abs=2)
    assert image.array.dtype == np.int16


def test_tissues_have_their_hounsfield_units(plan: PhantomPlan, phantom: tuple[Volume, LabelMap]) -> None:
    image, label = phantom
    voxels, labels = image.array[0], label.array[0]
    assert np.median(voxels[labels == 1]) == pytest.approx(40, abs=60)
    assert np.median(voxels[labels == 2]) == pytest.approx(-400, abs=80)
    assert np.percentile(voxels, 1) < -950
    lung = (voxels > -920) & (voxels < -750)
    assert 0.1 < lung.mean() < 0.4


def test_a_nodule_lies_where_the_plan_says_whatever_the_stored_orientation(plan: PhantomPlan) -> None:
    nodule = Nodule("solid", (11.0, -21.0, 36.0), 16.0, (0.0, 0.0, 0.0))
    for flips in ((False, False, False), (True, False, True)):
        changed = dataclasses.replace(plan, nodules=(nodule,), flips=flips)
        _, label = render_phantom(changed)
        center = label.grid.index_to_world(np.argwhere(label.array[0] == 1).mean(axis=0))
        # superior 11, posterior -21, left 36 mm is right -36, anterior 21, superior 11 in RAS
        assert center == pytest.approx([-36.0, 21.0, 11.0], abs=0.5)
        assert label.orientation == "".join(
            letter if not flip else opposite
            for letter, opposite, flip in zip("SPL", "IAR", flips, strict=True)
        )  # fmt: skip


def test_the_data_set_fits_the_demo_task(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = write_phantom_dataset(tmp_path, cases=2, test_cases=1, seed=3, on_case=lambda *call: seen.append(call))
    description = json.loads(path.read_text())
    task = load_task("demo")
    assert {int(value): name for value, name in description["labels"].items() if value != "0"} == task.data.labels
    assert {value: name for name, value in NODULE_LABELS.items()} == task.data.labels
    assert [call[1:] for call in seen] == [(1, 3), (2, 3), (3, 3)]
    for entry in description["training"]:
        image, label = io.read_volume(tmp_path / entry["image"]), io.read_label_map(tmp_path / entry["label"])
        assert image.grid.is_close(label.grid)
    names = [path.name for path in (tmp_path / "imagesTs").iterdir()]
    assert names == [path.name for path in (tmp_path / "labelsTs").iterdir()] == ["chest_test_000.nii.gz"]
    assert not set(names) & {path.name for path in (tmp_path / "imagesTr").iterdir()}


def test_a_case_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    for folder, cases in (("a", 1), ("b", 2)):
        write_phantom_dataset(tmp_path / folder, cases=cases, test_cases=0)
    one, two = (io.read_volume(tmp_path / folder / "imagesTr" / "chest_000.nii.gz") for folder in ("a", "b"))
    assert np.array_equal(one.array, two.array)
