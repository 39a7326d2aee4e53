from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import map_coordinates
from torch import Tensor

from medi3d.config import AugmentConfig
from medi3d.data.augment.draw import Warp, draw_spatial
from medi3d.data.augment.spatial import locate, spline_weights, warp_patch

BLOCK, SIZE, OFFSET = (15, 24, 21), (12, 20, 17), (-1, -2, -1)
CONFIG = AugmentConfig(
    mirror_axes=("D", "H", "W"), rotate_degrees=25, scale=0.2, translate=0.1, elastic=2.0, spatial_probability=1.0
)


def draw_warp(number: int) -> Warp:
    warp = draw_spatial(CONFIG, seed=0, number=number, size=SIZE, spacing_mm=(1.0, 1.0, 1.0)).warp
    assert warp is not None
    return warp


def plain_warp(matrix: np.ndarray, shift: tuple[float, float, float] = (0, 0, 0)) -> Warp:
    return Warp(matrix, np.array(shift, float), None, 0.0)


def reference_places(warp: Warp) -> np.ndarray:
    """Where patch voxels lie in the block: the definition, with scipy's splines."""
    center = (np.array(SIZE) - 1) / 2
    index = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)
    place = center + (index - center) @ warp.matrix.T + warp.shift - np.array(OFFSET)
    if warp.knots is not None:
        basis = [reference_basis(n, warp.knot_voxels) for n in SIZE]
        place += np.einsum("kabc,da,hb,wc->dhwk", warp.knots, *basis)
    return np.moveaxis(place, -1, 0)


def reference_basis(n: int, knot_voxels: float) -> np.ndarray:
    count = int((n - 1) / knot_voxels) + 4
    knots = (np.arange(count + 4) - 3.0) * knot_voxels  # control point j is centred on (j - 1) knots
    return BSpline.design_matrix(np.arange(n, dtype=float), knots, 3).toarray()


def noise(channels: int) -> Tensor:
    return torch.randn(channels, *BLOCK, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("number", range(4))
def test_places_are_those_of_the_definition(number: int) -> None:
    warp = draw_warp(number)
    place = locate(warp, offset=OFFSET, size=SIZE, device=torch.device("cpu"))
    np.testing.assert_allclose(place.numpy(), reference_places(warp), atol=1e-4)


@pytest.mark.parametrize("number", range(4))
def test_the_image_is_interpolated_linearly_and_zero_beyond_the_block(number: int) -> None:
    image, warp = noise(2), draw_warp(number)
    moved, label = warp_patch(image, None, warp, offset=OFFSET, size=SIZE)
    assert label is None
    place = reference_places(warp)
    for channel, expected in zip(moved.numpy(), image.numpy(), strict=True):
        sampled = map_coordinates(expected, place, order=1, mode="grid-constant", cval=0.0)
        np.testing.assert_allclose(channel, sampled, atol=2e-4)
    assert (moved == 0).any()  # so the rim was seen


@pytest.mark.parametrize("labels", [(0, 1), (0, 3, 7, 9), (0, 1, 254, 255), tuple(range(0, 256, 5))])
def test_labels_are_those_with_the_largest_interpolated_share(labels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    coarse = rng.choice(labels, size=tuple(-(-n // 3) for n in BLOCK)).astype(np.uint8)
    label = np.kron(coarse, np.ones((3, 3, 3), np.uint8))[: BLOCK[0], : BLOCK[1], : BLOCK[2]]
    warp = draw_warp(2)
    moved = warp_patch(noise(1), torch.from_numpy(label.copy()), warp, offset=OFFSET, size=SIZE)[1]
    assert moved is not None
    place = reference_places(warp)
    shares = np.stack(
        [map_coordinates((label == one).astype(float), place, order=1, mode="grid-constant") for one in labels]
    )
    shares[0] += 1 - shares.sum(0)  # beyond the block lies background
    ordered = np.sort(shares, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(moved.numpy()[clear], np.array(labels)[shares.argmax(0)][clear])
    assert set(np.unique(moved)) <= set(labels)


def test_a_quarter_turn_and_a_whole_shift_move_voxels_exactly() -> None:
    image = noise(1)
    label = (image[0] > 0.3).to(torch.uint8)
    turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # target (h, w) shows source (w, -h)
    size, shift = (9, 10, 10), (1, -2, 3)
    moved, moved_label = warp_patch(image, label, plain_warp(turn, shift), offset=(-4, -6, -5), size=size)
    cut = (slice(5, 14), slice(4, 14), slice(8, 18))  # shift - offset, and as many voxels as the patch has
    np.testing.assert_allclose(moved[0], torch.rot90(image[0][cut], 1, (1, 2)), atol=1e-4)
    assert moved_label is not None
    assert torch.equal(moved_label, torch.rot90(label[cut], 1, (1, 2)))


def test_spline_weights_are_scipys() -> None:
    for n, knot_voxels in ((5, 16.0), (40, 16.0), (37, 22.5), (1, 16.0)):
        np.testing.assert_allclose(spline_weights(n, knot_voxels), reference_basis(n, knot_voxels), atol=1e-6)


def test_labels_wander_less_than_with_the_nearest_voxel() -> None:
    """Ellipsoids drawn where they come to lie are the truth."""
    center = (np.array(BLOCK) - 1) / 2
    index = np.stack(np.meshgrid(*map(np.arange, BLOCK), indexing="ij"), 0)
    size = BLOCK
    wrong = np.zeros(2)
    for number in range(12):
        config = AugmentConfig(mirror_axes=(), rotate_degrees=20, scale=0.2, spatial_probability=1.0)
        warp = draw_spatial(config, seed=1, number=number, size=size, spacing_mm=(1.0, 1.0, 1.0)).warp
        assert warp is not None
        axes = np.random.default_rng(number).uniform(4, 7, 3)

        def draw(place: np.ndarray, axes: np.ndarray = axes) -> np.ndarray:
            return (((place - center[:, None, None, None]) / axes[:, None, None, None]) ** 2).sum(0) < 1

        place = locate(warp, offset=(0, 0, 0), size=size, device=torch.device("cpu")).numpy()
        label = draw(index).astype(np.uint8)
        voted = warp_patch(torch.zeros(1, *size), torch.from_numpy(label), warp, offset=(0, 0, 0), size=size)[1]
        assert voted is not None
        nearest = map_coordinates(label, place, order=0, mode="grid-constant")
        wrong += (voted.numpy() != draw(place)).sum(), (nearest != draw(place)).sum()
    assert wrong[0] < 0.85 * wrong[1]
