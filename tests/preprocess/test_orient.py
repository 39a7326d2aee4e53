from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from medi3d.errors import InputError
from medi3d.preprocess.orient import align_axes, prepared_orientation, reorient
from medi3d.volume import Grid, LabelMap, Volume

OBLIQUE = np.array([[0.1, 0.2, -0.8, 5], [0.3, -0.9, 0.1, 6], [2.5, 0.1, 0.05, 7], [0, 0, 0, 1]])


def volume(affine: np.ndarray = OBLIQUE) -> Volume:
    return Volume(np.arange(2 * 3 * 4 * 5, dtype="f4").reshape(2, 3, 4, 5), affine)


def same_voxels(first: Volume, second: Volume) -> bool:
    """Every voxel keeps its value and its place in the world."""

    def listed(v: Volume) -> list[tuple[float, ...]]:
        index = np.argwhere(np.ones(v.shape, bool))
        rows = np.column_stack([v.grid.index_to_world(index).round(6), *(c[tuple(index.T)] for c in v.array)])
        return sorted(map(tuple, rows))

    return np.allclose(listed(first), listed(second))


@pytest.mark.parametrize(
    "orientation",
    ["".join(letters) for axes in itertools.permutations(["RL", "AP", "SI"]) for letters in itertools.product(*axes)],
)
def test_every_orientation_keeps_every_voxel_in_place(orientation: str) -> None:
    turned = reorient(volume(), orientation)
    assert turned.orientation == orientation
    assert same_voxels(volume(), turned)
    back = reorient(turned, volume().orientation)
    np.testing.assert_array_equal(back.array, volume().array)
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-12)


def test_it_is_what_nibabel_does() -> None:
    array = np.arange(60, dtype="f4").reshape(3, 4, 5)
    theirs = nib.as_closest_canonical(nib.Nifti1Image(array, OBLIQUE))
    ours = reorient(Volume(array[None], OBLIQUE), "RAS")
    np.testing.assert_array_equal(ours.array[0], theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)


def test_the_type_stays_and_the_input_is_not_changed() -> None:
    label = LabelMap(np.arange(60).reshape(1, 3, 4, 5), OBLIQUE)
    before = label.array.copy()
    assert isinstance(reorient(label), LabelMap)
    np.testing.assert_array_equal(label.array, before)


def test_align_to_an_oblique_direction() -> None:
    direction = volume().grid.direction[:, [2, 0, 1]] * [1, -1, 1]
    turned = align_axes(volume(), direction)
    np.testing.assert_allclose(turned.grid.direction, direction, atol=1e-12)
    assert same_voxels(volume(), turned)


@pytest.mark.parametrize(
    ("orientation", "message"),
    [("SP", "three letters"), ("SPX", "three letters"), ("SIL", "each of R/L, A/P, S/I once")],
)
def test_wrong_orientations(orientation: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reorient(volume(), orientation)


@pytest.mark.parametrize(
    ("diagonal", "spacing", "expected"),
    [
        ((1, 1, 5), (1, 1, 1), "SPL"),  # isotropic: always canonical
        ((1, 5, 1), (1, 1, 1), "SPL"),
        ((1, 1, 5), (5, 1, 1), "SPL"),  # axial
        ((1, 5, 1), (5, 1, 1), "PIL"),  # coronal
        ((5, 1, 1), (5, 1, 1), "LIP"),  # sagittal
        ((1, 1.2, 1), (5, 1, 1), "SPL"),  # no slab
        ((1, 1, 5), None, "SPL"),  # native spacing: by the slab's own axis
        ((1, 5, 1), None, "PIL"),
        ((5, 1, 1), None, "LIP"),
        ((1, 1.2, 1), None, "SPL"),
    ],
)
def test_the_coarsest_axis_stays_through_plane(
    diagonal: tuple[float, ...], spacing: tuple[float, float, float] | None, expected: str
) -> None:
    assert prepared_orientation(Grid((4, 5, 6), np.diag([*diagonal, 1.0])), spacing) == expected
