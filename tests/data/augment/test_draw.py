from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medi3d.config import AugmentConfig
from medi3d.data.augment.draw import Warp, draw_intensity, draw_share, draw_spatial
from medi3d.data.augment.spatial import locate

SIZE = (20, 34, 27)
CUBIC, THICK = (1.0, 1.0, 1.0), (5.0, 0.8, 0.8)
ALL = AugmentConfig(
    mirror_axes=("D", "H", "W"), rotate_degrees=30, scale=0.3, translate=0.2, elastic=4.0, spatial_probability=1.0,
    blur=1.5, low_resolution=2.0, intensity_probability=1.0,
)  # fmt: skip


def draw_warp(config: AugmentConfig, number: int, spacing_mm: tuple[float, float, float] = CUBIC) -> Warp:
    warp = draw_spatial(config, seed=1, number=number, size=SIZE, spacing_mm=spacing_mm).warp
    assert warp is not None
    return warp


def only(**options: object) -> AugmentConfig:
    off = AugmentConfig(mirror_axes=(), rotate_degrees=0, scale=0, spatial_probability=1.0)
    return replace(off, **options)  # type: ignore[arg-type]


def test_a_patch_is_drawn_from_seed_and_number_alone() -> None:
    options = {"size": SIZE, "spacing_mm": CUBIC}
    first = draw_spatial(ALL, seed=3, number=8, **options).warp  # type: ignore[arg-type]
    np.random.seed(5)  # noqa: NPY002 - the global state is what must not matter
    again = draw_spatial(ALL, seed=3, number=8, **options).warp  # type: ignore[arg-type]
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.matrix, again.matrix)
    np.testing.assert_array_equal(first.knots, again.knots)
    for seed, number in ((4, 8), (3, 9)):
        other = draw_spatial(ALL, seed=seed, number=number, **options).warp  # type: ignore[arg-type]
        assert other is not None
        assert not np.allclose(first.matrix, other.matrix)
    assert draw_share(replace(ALL, mixup=0.4), seed=3, number=8) == draw_share(
        replace(ALL, mixup=0.4), seed=3, number=8
    )


def test_switching_one_change_off_leaves_the_others() -> None:
    spatial = {"seed": 1, "number": 4, "size": SIZE, "spacing_mm": CUBIC}
    with_all = draw_spatial(ALL, **spatial).warp  # type: ignore[arg-type]
    straight = draw_spatial(replace(ALL, elastic=0.0), **spatial).warp  # type: ignore[arg-type]
    assert with_all is not None
    assert straight is not None
    np.testing.assert_array_equal(with_all.matrix, straight.matrix)
    intensity = {"seed": 1, "number": 4, "channels": 2, "spacing_mm": CUBIC}
    full = draw_intensity(ALL, **intensity)  # type: ignore[arg-type]
    less = draw_intensity(replace(ALL, blur=0.0, noise_std=0.0), **intensity)  # type: ignore[arg-type]
    np.testing.assert_array_equal(full.gamma, less.gamma)
    np.testing.assert_array_equal(full.coarsen, less.coarsen)
    assert full.blur.all()
    assert not less.blur.any()
    assert less.noise == 0


def test_scale_and_angle_stay_in_their_ranges_and_fill_them() -> None:
    scales = [draw_warp(only(scale=0.3), number).matrix.diagonal() for number in range(300)]
    assert np.max(scales) <= 1.3 + 1e-9
    assert np.min(scales) >= 1 / 1.3 - 1e-9
    assert np.max(scales) > 1.2
    ratios = [scale.max() / scale.min() for scale in scales]
    assert max(ratios) <= 1.3 ** (2 / 3) + 1e-9  # a third either way along each axis
    assert max(ratios) > 1.1
    turned = [draw_warp(only(rotate_degrees=20.0), number).matrix for number in range(300)]
    for matrix in turned:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)
    angles = [np.degrees(np.arccos((np.trace(matrix) - 1) / 2)) for matrix in turned]
    assert 20 < max(angles) <= 20 * np.sqrt(3) + 1e-6  # about all axes at once


def test_a_turn_is_a_rotation_in_space_whatever_the_voxels() -> None:
    spacing = np.array([2.0, 0.9, 1.1])
    matrix = draw_warp(only(rotate_degrees=25.0), 7, tuple(spacing)).matrix
    in_space = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
    np.testing.assert_allclose(in_space @ in_space.T, np.eye(3), atol=1e-12)
    assert not np.allclose(matrix @ matrix.T, np.eye(3), atol=0.05)


def test_nothing_is_interpolated_along_a_thick_axis() -> None:
    for number in range(20):
        warp = draw_warp(ALL, number, THICK)
        np.testing.assert_array_equal(np.abs(warp.matrix[0]), [1, 0, 0])
        np.testing.assert_array_equal(warp.matrix[1:, 0], 0)
        assert warp.shift[0] == round(warp.shift[0])
        assert warp.knots is not None
        assert not warp.knots[0].any()
        assert warp.knots[1:].any()
    assert not draw_intensity(ALL, seed=0, number=0, channels=1, spacing_mm=THICK).smoothed[0]


def test_shares_of_what_is_drawn() -> None:
    config = replace(ALL, spatial_probability=0.3, intensity_probability=0.2)
    options = {"size": SIZE, "spacing_mm": CUBIC}
    spatial = [draw_spatial(config, seed=0, number=n, **options) for n in range(500)]  # type: ignore[arg-type]
    assert 0.24 < np.mean([change.warp is not None for change in spatial]) < 0.36
    flips = [[axis in change.flips for axis in range(3)] for change in spatial if change.warp is None]
    np.testing.assert_allclose(np.mean(flips, axis=0), 0.5, atol=0.08)
    changes = [draw_intensity(config, seed=0, number=n, channels=1, spacing_mm=CUBIC) for n in range(500)]
    for name, neutral in (("blur", 0), ("coarsen", 1), ("noise", 0), ("contrast", 1), ("brightness", 0), ("gamma", 1)):
        assert 0.14 < np.mean([np.all(getattr(change, name) != neutral) for change in changes]) < 0.26, name
    assert 0.19 < np.mean([change.inverted for change in changes]) < 0.31


def test_only_the_axes_of_the_configuration_are_mirrored() -> None:
    still = only(mirror_axes=("D", "W"))
    seen = {draw_spatial(still, seed=0, number=n, size=SIZE, spacing_mm=CUBIC).flips for n in range(40)}
    assert seen == {(), (0,), (2,), (0, 2)}
    # with a warp, mirroring is part of its matrix
    signs = {tuple(np.sign(draw_warp(only(mirror_axes=("D", "W"), scale=0.1), n).matrix.diagonal())) for n in range(40)}
    assert signs == {(d, 1, w) for d in (-1, 1) for w in (-1, 1)}


def test_nothing_to_draw_from_warps_nothing() -> None:
    assert draw_spatial(only(), seed=0, number=0, size=SIZE, spacing_mm=CUBIC).warp is None


@settings(max_examples=40, deadline=None)
@given(number=st.integers(0, 10**6), largest=st.floats(0.5, 12))
def test_an_elastic_deformation_keeps_its_bound_and_does_not_fold(number: int, largest: float) -> None:
    warp = draw_warp(only(elastic=largest), number)
    place = locate(warp, offset=(0, 0, 0), size=SIZE, device=torch.device("cpu")).numpy()
    bend = place - np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"))
    assert np.abs(bend).max() <= largest + 1e-4
    # the worst that could be drawn: all three displacements fall along the diagonal, as steeply as they may
    assert warp.knots is not None
    diagonal = np.indices(warp.knots.shape[1:]).sum(0)
    worst = np.where(diagonal <= diagonal.max() // 2, largest, -largest)
    warp = replace(warp, knots=np.stack([worst] * 3))
    place = locate(warp, offset=(0, 0, 0), size=SIZE, device=torch.device("cpu")).numpy()
    jacobian = np.stack([np.stack(np.gradient(axis)) for axis in place])  # (3, 3, D, H, W)
    assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0


@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, 10**6))
def test_the_source_box_holds_every_voxel_that_is_read(number: int) -> None:
    warp = draw_warp(ALL, number)
    low, high = warp.source_box(SIZE)
    place = locate(warp, offset=(0, 0, 0), size=SIZE, device=torch.device("cpu")).numpy().reshape(3, -1)
    assert (low <= np.floor(place.min(1))).all()
    assert (high >= np.floor(place.max(1)) + 1).all()
    straight = replace(warp, knots=None)
    low, high = straight.source_box(SIZE)
    place = locate(straight, offset=(0, 0, 0), size=SIZE, device=torch.device("cpu")).numpy().reshape(3, -1)
    assert (low <= np.floor(place.min(1))).all()
    assert (high >= np.floor(place.max(1)) + 1).all()
    np.testing.assert_allclose(low, np.floor(place.min(1)), atol=1)  # and no more than a voxel beyond
    np.testing.assert_allclose(high, np.floor(place.max(1)) + 1, atol=1)
