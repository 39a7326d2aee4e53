from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from medi3d.errors import InputError
from medi3d.report import draw_filters
from medi3d.report.filters import _lay_out


def test_each_tap_has_its_place_on_the_sheet() -> None:
    """Six filters of two taps: two blocks of three rows, each tile a tone of its own."""
    tones = np.arange(12).reshape(6, 2) / 24
    sheet = _lay_out(np.broadcast_to(tones[:, :, None, None, None], (6, 2, 4, 3, 1)))
    expected = [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    found = [[np.unique(row[row < 1]) for row in np.split(sheet[..., 0], [28, 56])][n].tolist() for n in range(3)]
    assert found == [sorted(n / 24 for n in row) for row in expected]
    first_row = sheet[0, :, 0]
    assert [n * 24 for n in first_row[np.flatnonzero(np.diff(first_row, prepend=1) < 0)]] == [0, 1, 6, 7]


@pytest.mark.parametrize(("shape", "colourful"), [((5, 3, 3, 2, 4), True), ((70, 1, 7, 7, 7), False)])
def test_colour_is_shown_where_there_are_three_channels(
    shape: tuple[int, ...], colourful: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = draw_filters(rng.normal(size=shape), tmp_path / "new" / "filters.png", title="stem")
    pixels = imread(path)[..., :3]
    assert (np.ptp(pixels, axis=-1) > 0.05).any() == colourful
    assert 300 < len(pixels) < 3000


def test_a_kernel_of_zeros_is_mid_grey_all_over(tmp_path: Path) -> None:
    pixels = imread(draw_filters(np.zeros((1, 1, 1, 3, 3)), tmp_path / "zeros.png", title=""))[..., :3]
    inside = pixels[200:600, 100:800]
    assert np.allclose(inside, 0.5, atol=0.01)


def test_what_has_no_depth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kernel \(O, I, T, kH, kW\) to draw; got shape \(4, 3, 7, 7\)"):
        draw_filters(np.zeros((4, 3, 7, 7)), tmp_path / "no.png", title="")
