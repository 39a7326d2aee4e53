from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from medi3d import io
from medi3d.preprocess.orient import reorient
from medi3d.preprocess.resampling.resample import isotropic_grid, nearest_rotation, resample_to
from medi3d.volume import Grid, LabelMap, Volume


def rotation(angles: tuple[float, ...]) -> np.ndarray:
    return np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix(), (3, 3))


def make_affine(
    spacing: tuple[float, ...] = (2.5, 0.9, 0.7), angles: tuple[float, ...] = (0.1, -0.2, 0.3)
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * spacing
    affine[:3, 3] = 4, -5, 6
    return affine


def smooth(shape: tuple[int, int, int], affine: np.ndarray, channels: int = 1) -> Volume:
    """A blob, smooth at the scale of a voxel, somewhat off the centre."""
    grid = Grid(shape, affine)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    place = grid.index_to_world(index) - grid.index_to_world((np.array(shape) - 1) / 2 + [0.4, -1.2, 2.1])
    blob = np.exp(-((place / [5.0, 6.0, 7.0]) ** 2).sum(-1))
    return Volume(np.stack([blob * (c + 1) for c in range(channels)]).astype("f4"), affine)


def center_of_mass(volume: Volume) -> np.ndarray:
    weights = volume.array[0].astype(np.float64)
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    mean = (index * weights[..., None]).sum(axis=(0, 1, 2)) / weights.sum()
    return volume.grid.index_to_world(mean)


# --- grids


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    old=st.tuples(*[st.floats(0.3, 6)] * 3),
    new=st.tuples(*[st.floats(0.5, 4)] * 3),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
)
def test_the_new_grid_covers_the_old_one_around_the_same_centre(
    shape: tuple[int, int, int], old: tuple[float, ...], new: tuple[float, float, float], angles: tuple[float, ...]
) -> None:
    grid = Grid(shape, make_affine(old, angles))
    resampled = isotropic_grid(grid, new)
    assert resampled.spacing_mm == pytest.approx(new)
    np.testing.assert_allclose(resampled.direction, grid.direction, atol=1e-9)
    centers = [g.index_to_world((np.array(g.shape) - 1) / 2) for g in (grid, resampled)]
    np.testing.assert_allclose(*centers, atol=1e-9)
    extent, covered = np.array(shape) * old, np.array(resampled.shape) * new
    assert (covered >= extent - 0.051 * np.array(new)).all()
    assert (covered < extent + np.array(new)).all() or (np.array(resampled.shape) == 1).any()


def test_rounded_headers_give_no_extra_voxel() -> None:
    assert isotropic_grid(Grid((500, 40, 30), np.diag([1.00001, 0.99999, 1.0, 1])), (1.0, 1.0, 1.0)).shape == (
        500,
        40,
        30,
    )


def test_a_sheared_grid_gets_an_upright_box_around_it() -> None:
    affine = np.array([[0, 0, 1.0, 0], [0.5, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    grid = Grid((10, 20, 30), affine)
    box = isotropic_grid(grid, (1.0, 1.0, 1.0))
    assert box.is_orthogonal
    corners = np.array([[d, h, w] for d in (0, 9) for h in (0, 19) for w in (0, 29)])
    inside = box.world_to_index(grid.index_to_world(corners))
    assert (inside >= -0.5).all()
    assert (inside <= np.array(box.shape) - 0.5).all()


def test_nearest_rotation() -> None:
    noisy = rotation((0.3, 0.2, 0.1)) + np.random.default_rng(0).normal(size=(3, 3)) * 1e-4
    clean = nearest_rotation(noisy)
    np.testing.assert_allclose(clean.T @ clean, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(clean, noisy, atol=1e-3)
    assert np.linalg.det(nearest_rotation(noisy * [1, 1, -1])) == pytest.approx(-1)


# --- images


@pytest.mark.parametrize(("interpolation", "itk"), [("linear", sitk.sitkLinear), ("bspline", sitk.sitkBSpline)])
def test_it_is_what_simpleitk_does(interpolation: str, itk: int) -> None:
    volume = smooth((9, 16, 21), make_affine())
    grid = isotropic_grid(volume.grid, (1.0, 0.8, 0.6))
    reference = sitk.ResampleImageFilter()
    reference.SetReferenceImage(io.to_sitk(Volume(np.zeros((1, *grid.shape), "f4"), grid.affine)))
    reference.SetInterpolator(itk)
    reference.SetUseNearestNeighborExtrapolator(True)
    theirs = sitk.GetArrayFromImage(reference.Execute(io.to_sitk(volume)))
    ours = resample_to(volume, grid, interpolation=interpolation)
    np.testing.assert_allclose(ours.array[0], theirs, atol=1e-6)
    assert ours.array.dtype == np.float32
    assert ours.grid.is_close(grid)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (3.0, 2.0, 2.0)])
def test_the_centre_of_mass_stays(spacing: tuple[float, float, float]) -> None:
    volume = smooth((14, 36, 48), make_affine())
    resampled = resample_to(volume, isotropic_grid(volume.grid, spacing))
    np.testing.assert_allclose(center_of_mass(resampled), center_of_mass(volume), atol=0.05)


def test_flips_and_permutations_do_not_matter() -> None:
    volume = smooth((9, 16, 21), make_affine(), channels=2)
    grid = isotropic_grid(reorient(volume, "SPL").grid, (1.0, 1.0, 1.0))
    results = [resample_to(reorient(volume, letters), grid).array for letters in ("RAS", "LPI", "SAR", "AIL")]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5)
    np.testing.assert_allclose(results[0][1], 2 * results[0][0], rtol=1e-5)


def test_the_same_grid_costs_nothing_and_changes_nothing() -> None:
    volume = smooth((9, 16, 21), make_affine())
    turned = reorient(volume, "LSA")
    back = resample_to(turned, volume.grid)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_array_equal(back.affine, volume.affine)


def test_the_rim_is_extended_or_filled() -> None:
    volume = Volume(np.full((1, 5, 6, 7), 9, "f4"), make_affine())
    larger = volume.grid.cropped((-3, -2, -4), (12, 11, 13))
    assert (resample_to(volume, larger).array == 9).all()
    filled = resample_to(volume, larger, fill=-1.0).array[0]
    assert (filled[3:8, 2:8, 4:11] == 9).all()
    assert filled[0, 0, 0] == -1
    assert (filled == 9).sum() == 5 * 6 * 7
    finer = resample_to(volume, isotropic_grid(volume.grid, (0.6, 0.6, 0.6)))
    np.testing.assert_allclose(finer.array, 9, rtol=1e-6)


def test_a_coarser_axis_is_smoothed_first_and_others_are_not() -> None:
    stripes = np.zeros((1, 40, 40, 40), "f4")
    stripes[:, ::2] = 1.0  # finest stripes along D: half the energy is 0.5
    coarse = Grid((10, 40, 40), np.diag([4.0, 1.0, 1.0, 1.0])).affine
    grid = Grid((10, 40, 40), coarse)
    across = resample_to(Volume(stripes, np.eye(4)), grid).array
    np.testing.assert_allclose(across[:, 1:-1], 0.5, atol=0.1)
    along = resample_to(Volume(stripes.transpose(0, 2, 1, 3), np.eye(4)), grid).array
    np.testing.assert_allclose(along, np.broadcast_to(np.arange(40)[:, None] % 2 == 0, (1, 10, 40, 40)), atol=1e-6)


# --- label maps


def blocks(values: tuple[int, ...] = (0, 1, 7, 30)) -> LabelMap:
    rng = np.random.default_rng(1)
    coarse = rng.choice(values, (4, 5, 6)).astype("uint8")
    return LabelMap(np.kron(coarse, np.ones((3, 4, 4), "uint8"))[None], make_affine())


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "bspline"])
@pytest.mark.parametrize("spacing", [(0.8, 0.8, 0.8), (1.7, 1.1, 2.3), (6.0, 5.0, 4.0)])
def test_labels_never_mix(interpolation: str, spacing: tuple[float, float, float]) -> None:
    label = blocks()
    resampled = resample_to(label, isotropic_grid(label.grid, spacing), interpolation=interpolation)
    assert isinstance(resampled, LabelMap)
    assert resampled.array.dtype == np.uint8
    assert set(np.unique(resampled.array)) <= {0, 1, 7, 30}


def test_labels_are_the_arg_max_of_their_shares() -> None:
    label = blocks()
    grid = isotropic_grid(label.grid, (1.0, 0.8, 0.8))
    values = 1, 7, 30, 0  # the first of equal shares wins: a lower label, the background last
    shares = [resample_to(Volume((label.array == v).astype("f4"), label.affine), grid).array for v in values]
    expected = np.array(values)[np.argmax(np.round(np.stack(shares), 5), axis=0)]
    agree = resample_to(label, grid).array == expected
    assert agree.mean() > 0.995  # the nearest voxel gives thin ones, too


def test_label_volume_is_kept() -> None:
    ball = smooth((20, 50, 60), make_affine())
    label = LabelMap((ball.array > 0.1).astype("uint8"), ball.affine)
    for spacing in ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)):
        resampled = resample_to(label, isotropic_grid(label.grid, spacing))
        volumes = [m.array.sum() * np.prod(m.spacing_mm) for m in (label, resampled)]
        assert volumes[1] == pytest.approx(volumes[0], rel=0.06)
        np.testing.assert_allclose(center_of_mass(resampled), center_of_mass(label), atol=0.25)


def test_labels_outside_are_filled() -> None:
    label = LabelMap(np.full((1, 4, 5, 6), 2, "uint8"), make_affine())
    larger = label.grid.cropped((-2, -2, -2), (8, 9, 10))
    filled = resample_to(label, larger, fill=0.0).array[0]
    assert (filled > 0).sum() == 4 * 5 * 6
    assert (filled[2:6, 2:7, 2:8] == 2).all()
    assert (resample_to(label, larger).array == 2).all()


@pytest.mark.real_data
def test_linear_shares_beat_nearest_on_real_masks(real_data: Callable[[str], Path]) -> None:
    scores: dict[str, list[float]] = {"linear": [], "nearest": []}
    for path in sorted((real_data("hippocampus") / "labelsTr").glob("*.nii.gz"))[:8]:
        label = io.read_label_map(path)
        for method, dice in scores.items():
            coarse = resample_to(label, isotropic_grid(label.grid, (1.5, 1.5, 1.5)), interpolation=method)
            back = resample_to(coarse, label.grid, interpolation=method)
            both = ((back.array == label.array) & (label.array > 0)).sum()
            dice.append(2 * both / ((back.array > 0).sum() + (label.array > 0).sum()))
    assert np.mean(scores["linear"]) > np.mean(scores["nearest"])
    assert np.mean(scores["linear"]) > 0.9
