from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from medi3d.evaluate.nearest import NEAR_OFFSETS, near_offsets, nearest_mm, padding_of

SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9), (40.0, 0.5, 0.5), (0.1, 3.0, 0.4)]


def measure(points: np.ndarray, surface: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    margin = [(n, n) for n in padding_of(spacing_mm)]
    return nearest_mm(np.flatnonzero(np.pad(points, margin)), np.pad(surface, margin), spacing_mm)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    spacing_mm=st.sampled_from(SPACINGS),
    shape=st.tuples(*[st.integers(1, 24)] * 3),
    share=st.sampled_from([0.0005, 0.01, 0.3]),
)
def test_distances_are_those_of_the_exact_distance_transform(
    seed: int, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int], share: float
) -> None:
    rng = np.random.default_rng(seed)
    surface, points = rng.random(shape) < share, rng.random(shape) < 0.2
    surface[tuple(rng.integers(shape))] = True
    expected = distance_transform_edt(~surface, sampling=spacing_mm)[points]
    np.testing.assert_allclose(measure(points, surface, spacing_mm), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_no_shorter_offset_is_left_out(spacing_mm: tuple[float, float, float]) -> None:
    offsets, lengths = near_offsets(spacing_mm)
    assert len(offsets) <= NEAR_OFFSETS
    assert np.all(np.diff(lengths) >= 0)
    reach = [int(lengths[-1] / mm) + 1 for mm in spacing_mm]
    every = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), -1).reshape(-1, 3)
    shorter = every[np.linalg.norm(every * spacing_mm, axis=1) < lengths[-1] * (1 - 1e-12)]
    assert {tuple(row) for row in shorter.tolist()} <= {tuple(row) for row in offsets.tolist()}


def test_one_distance_has_one_value_near_and_far() -> None:
    """A tolerance is met or not whichever way the distance was found."""
    surface, points = np.zeros((2, 60, 50, 5), bool)
    surface[0, 0, 0] = points[3, 4, 0] = points[30, 40, 0] = True
    near, far = measure(points, surface, (0.1, 0.1, 0.1))
    assert far == pytest.approx(10 * near, rel=1e-15)
    assert far == np.sqrt((30 * 0.1) ** 2 + (40 * 0.1) ** 2)
