from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medi3d.errors import InputError
from medi3d.volume import Grid, LabelMap, Volume, closest_world_axes

SHAPE = (4, 5, 6)
SPL = np.array([[0, 0, -0.7, 50.0], [0, -0.8, 0, 40.0], [2.5, 0, 0, -30.0], [0, 0, 0, 1]])


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Draw rotations, mirrorings, spacings and origins."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    affine = np.eye(4)
    rotation = Rotation.random(rng=rng).as_matrix()
    affine[:3, :3] = rotation * rng.choice([-1, 1], size=3) * rng.uniform(0.3, 6, size=3)
    affine[:3, 3] = rng.uniform(-300, 300, size=3)
    return affine


def test_geometry_follows_from_the_affine() -> None:
    grid = Grid(SHAPE, SPL)
    assert grid.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert grid.origin_mm == (50.0, 40.0, -30.0)
    assert grid.orientation == "SPL"
    assert grid.is_orthogonal
    assert grid.index_to_world([1, 2, 3]) == pytest.approx([50 - 2.1, 40 - 1.6, -30 + 2.5])


@settings(max_examples=50, deadline=None)
@given(affine=affines())
def test_orientation_and_spacing_are_those_of_nibabel(affine: np.ndarray) -> None:
    grid = Grid(SHAPE, affine)
    assert grid.spacing_mm == pytest.approx(nib.affines.voxel_sizes(affine))
    codes = nib.orientations.io_orientation(affine)
    if sorted(codes[:, 0]) == [0, 1, 2] and np.abs(grid.direction).max(axis=0).min() > 0.8:
        assert grid.orientation == "".join(nib.orientations.aff2axcodes(affine))


@settings(max_examples=50, deadline=None)
@given(affine=affines())
def test_index_and_world_are_inverse(affine: np.ndarray) -> None:
    grid = Grid(SHAPE, affine)
    index = np.array([[0, 0, 0], [3.5, -1, 2], [1, 4, 5]])
    assert grid.world_to_index(grid.index_to_world(index)) == pytest.approx(index, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(affine=affines())
def test_each_axis_gets_a_world_axis_of_its_own(affine: np.ndarray) -> None:
    assert sorted(closest_world_axes(Grid(SHAPE, affine).direction)) == [0, 1, 2]


def test_a_crop_keeps_voxels_where_they_are() -> None:
    grid = Grid(SHAPE, SPL)
    crop = grid.cropped((1, -2, 3), (2, 9, 2))
    assert crop.shape == (2, 9, 2)
    assert crop.index_to_world([0, 0, 0]) == pytest.approx(grid.index_to_world([1, -2, 3]))
    assert crop.spacing_mm == grid.spacing_mm


def test_grids_are_compared_at_their_corners() -> None:
    grid = Grid(SHAPE, SPL)
    near, far = SPL.copy(), SPL.copy()
    near[0, 3] += 1e-4
    far[0, 3] += 1e-2
    stretched = SPL.copy()
    stretched[2, 0] *= 1.001
    assert grid.is_close(Grid(SHAPE, near))
    assert not grid.is_close(Grid(SHAPE, far))
    assert grid.is_close(Grid(SHAPE, far), tolerance=0.1)
    assert not grid.is_close(Grid(SHAPE, stretched))
    assert not grid.is_close(Grid((4, 5, 7), SPL))


def test_a_sheared_grid_is_not_orthogonal() -> None:
    tilted = SPL.copy()
    tilted[1, 0] = 0.4
    assert not Grid(SHAPE, tilted).is_orthogonal


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), r"finite 4×4 matrix; got shape \(3, 3\)"),
        (np.diag([1, 1, np.nan, 1]), "finite 4×4"),
        (np.diag([1, 0, 1, 1]), "invertible"),
        (np.eye(4) + np.eye(4, k=-3), "last row 0 0 0 1"),
    ],
)
def test_an_unusable_affine_is_refused(affine: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid(SHAPE, affine)


def test_the_affine_cannot_be_changed_from_outside() -> None:
    affine = SPL.copy()
    volume = Volume(np.zeros((2, *SHAPE), np.float32), affine)
    affine[0, 3] = 0
    assert volume.grid.origin_mm[0] == 50.0
    with pytest.raises(ValueError, match="read-only"):
        volume.affine[0, 3] = 1


def test_a_volume_knows_its_shape_and_channels() -> None:
    volume = Volume(np.zeros((2, *SHAPE), np.float32), SPL)
    assert (volume.shape, volume.num_channels) == (SHAPE, 2)
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert volume.orientation == "SPL"
    assert volume.grid.is_close(Grid(SHAPE, SPL))


@pytest.mark.parametrize("shape", [SHAPE, (1, 4, 0, 6), (1, 1, *SHAPE)])
def test_a_volume_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"non-empty \(C, D, H, W\)"):
        Volume(np.zeros(shape, np.float32), SPL)


def test_a_label_map_holds_integers_of_one_channel() -> None:
    assert LabelMap(np.zeros((1, *SHAPE), np.uint8), SPL).num_channels == 1
    with pytest.raises(InputError, match=r"integers of shape .* got float32"):
        LabelMap(np.zeros((1, *SHAPE), np.float32), SPL)
    with pytest.raises(InputError, match=r"got uint8 \(2, 4, 5, 6\)"):
        LabelMap(np.zeros((2, *SHAPE), np.uint8), SPL)
