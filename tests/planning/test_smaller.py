"""The way down after memory has run out: smaller each time, the same batch as long as can be, and an end."""

from __future__ import annotations

import math

import pytest

from medi3d.config import TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.planning import next_smaller


def make_task(name: str = "hippocampus", **overrides: object) -> TaskConfig:
    keys: dict[str, object] = {"model.init": "random", "model.stages": 2, "train.patch_size": [24, 40, 32]}
    return load_task(name, overrides=keys | {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    ("batch", "accumulate", "smaller"), [(6, 1, (3, 2)), (3, 2, (1, 6)), (9, 1, (3, 3)), (7, 2, (1, 14))]
)
def test_the_batch_shrinks_first_and_the_optimisers_stays(
    batch: int, accumulate: int, smaller: tuple[int, int]
) -> None:
    task = make_task(train__batch_size=batch, train__accumulate=accumulate)
    assert next_smaller(task) == {"train.batch_size": smaller[0], "train.accumulate": smaller[1]}
    assert smaller[0] * smaller[1] == batch * accumulate


def test_a_single_patch_is_too_few_for_some() -> None:
    recompute = {"train.checkpoint_activations": True}
    assert next_smaller(make_task(train__batch_size=2, train__augment__mixup=0.2)) == recompute
    assert next_smaller(make_task("lung_nodule", train__batch_size=2)) == recompute
    assert next_smaller(make_task("lung_nodule", train__batch_size=4)) == {"train.batch_size": 2, "train.accumulate": 2}
    # 24 × 40 × 32 at a stride of 32 is 1 × 2 × 1 voxels; 24 × 32 × 32 is a single one
    assert "train.batch_size" in next_smaller(make_task(train__batch_size=2, model__stages=5))
    single = make_task(train__batch_size=2, model__stages=5, train__patch_size=[24, 32, 32])
    assert next_smaller(single) == recompute


def test_then_maps_are_recomputed_and_then_patches_shrink() -> None:
    task = make_task(train__batch_size=1)
    assert next_smaller(task) == {"train.checkpoint_activations": True}
    patch = next_smaller(make_task(train__batch_size=1, train__checkpoint_activations=True))["train.patch_size"]
    assert math.prod(patch) <= 0.75 * 24 * 40 * 32
    assert all(edge % 8 == 0 and edge <= before for edge, before in zip(patch, (24, 40, 32), strict=True))


def test_the_way_down_ends() -> None:
    seen: list[TaskConfig] = []

    def go_down() -> None:
        overrides: dict[str, object] = {"train.batch_size": 4}
        while len(seen) < 50:
            seen.append(make_task(**overrides))
            overrides |= next_smaller(seen[-1])

    with pytest.raises(ConfigError, match=r"no smaller plan than batches of 1 with patches of 16 × 16 × 16 voxels"):
        go_down()
    assert 4 < len(seen) < 20
    assert all(task.batch_size * task.train.accumulate == 4 for task in seen)
    deep = make_task(train__batch_size=1, model__stages=5, train__checkpoint_activations=True, train__patch_size=32)
    with pytest.raises(ConfigError, match=r"fewer model\.stages"):
        next_smaller(deep)
