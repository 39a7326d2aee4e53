"""Patches in the data's proportions, on the sizes that a network takes."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medi3d.config import load_task
from medi3d.models.backbone import SliceRule
from medi3d.planning.sizes import count_stages, find_grain, fit_patch

edges = st.integers(3, 300)
shapes = st.tuples(edges, edges, edges)
grains = st.sampled_from([(8, 8, 8), (8, 14, 14), (16, 16, 16), (8, 32, 32)])


@given(shape=shapes, grain=grains, limit=st.floats(1e3, 1e8))
def test_patches_have_sizes_that_fit_and_stay_in_the_limit(
    shape: tuple[int, int, int], grain: tuple[int, int, int], limit: float
) -> None:
    patch = fit_patch(shape, grain, limit)
    for edge, step, whole in zip(patch, grain, shape, strict=True):
        assert edge % step == 0
        assert edge < whole + step  # never more than rounding the whole shape up
    smallest = fit_patch(shape, grain, 0)
    assert math.prod(patch) <= max(limit, math.prod(smallest))
    assert all(one >= other for one, other in zip(patch, smallest, strict=True))


@given(shape=shapes, grain=grains)
def test_the_whole_shape_is_taken_where_it_fits(shape: tuple[int, int, int], grain: tuple[int, int, int]) -> None:
    expected = tuple(
        next(n for n in range(step, 1000, step) if n >= whole) for whole, step in zip(shape, grain, strict=True)
    )
    assert fit_patch(shape, grain, math.inf) == expected


@given(shape=st.tuples(*[st.integers(100, 300)] * 3), limit=st.floats(48**3, 96**3))
def test_a_smaller_patch_keeps_the_proportions_and_uses_the_limit(shape: tuple[int, int, int], limit: float) -> None:
    patch = fit_patch(shape, (8, 8, 8), limit)
    assume(min(patch) > 16)  # at the smallest edge proportions give way
    scales = [edge / whole for edge, whole in zip(patch, shape, strict=True)]
    steps = [8 / whole for whole in shape]
    assert max(scales) - min(scales) <= 3 * max(steps)
    for grown in product((0, 8), repeat=3):
        if sum(grown) == 24:
            assert math.prod(edge + more for edge, more in zip(patch, grown, strict=True)) > limit


def test_a_thin_volume_gives_a_thin_patch() -> None:
    assert fit_patch((9, 300, 200), (8, 8, 8), 16 * 128 * 96) == (16, 136, 88)


def test_edges_follow_from_what_the_backbone_takes() -> None:
    task = load_task("hippocampus")
    assert find_grain(task, SliceRule((224, 224), 1)) == (8, 8, 8)
    assert find_grain(task, SliceRule((224, 224), 14)) == (8, 14, 14)
    assert find_grain(task, SliceRule((224, 224), 6)) == (8, 12, 12)
    assert find_grain(task, SliceRule((192, 224), None)) == (8, 192, 224)
    assert find_grain(load_task("hippocampus", overrides={"model.network": "monai/dynunet"}), None) == (16, 16, 16)


@pytest.mark.parametrize(
    ("patch", "voxels", "stages"),
    [
        ((40, 56, 40), 4, 3),
        ((8, 128, 128), 4, 5),
        ((64, 64, 80), 4, 4),
        ((8, 49, 99), 4, 4),
        ((8, 48, 99), 4, 3),
        ((8, 8, 8), 4, 1),
    ],
)
def test_stages_end_where_maps_become_small(patch: tuple[int, int, int], voxels: int, stages: int) -> None:
    strides = [(2**n,) * 3 for n in range(1, 6)]
    assert count_stages(strides, patch, voxels) == stages
