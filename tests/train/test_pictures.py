from __future__ import annotations

import numpy as np
import pytest

from medi3d.train.pictures import draw_plane, middle_plane

GOLD, BLUE = (255, 176, 0), (100, 143, 255)


@pytest.fixture
def truth() -> np.ndarray:
    label = np.zeros((7, 20, 30), np.uint8)
    label[2:5, 4:12, 5:17] = 1
    label[4, 14:18, 5:17] = 2
    return label


def split(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the plain half and the one with contours."""
    half = picture.shape[1] // 2
    return picture[:, :half], picture[:, half:]


def where(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((picture == color).all(-1))


def test_the_plane_halves_the_foreground(truth: np.ndarray) -> None:
    assert middle_plane(truth) == 3
    assert middle_plane(np.zeros((8, 4, 5))) == 4
    lonely = np.zeros((8, 4, 5))
    lonely[7, 1, 1] = 3
    assert middle_plane(lonely) == 7


def test_prediction_and_truth_are_outlined_where_they_lie(truth: np.ndarray, rng: np.random.Generator) -> None:
    image = rng.normal(size=(2, *truth.shape)).astype(np.float32)
    prediction = np.roll(truth, 6, axis=2)
    picture = draw_plane(image, truth, prediction, spacing_mm=(4.0, 1.0, 1.0))
    assert picture.dtype == np.uint8
    plain, drawn = split(picture)
    scale = plain.shape[1] / 30
    assert plain.shape[0] / 20 == pytest.approx(scale, rel=0.02)
    gold, white = where(drawn, GOLD), where(drawn, (255, 255, 255)) & ~where(plain, (255, 255, 255))
    assert not where(plain, GOLD).any()
    assert not where(drawn, BLUE).any()  # the second label is not in this plane
    for found, left in ((gold, 11), (white, 5)):
        rows, columns = np.nonzero(found)
        assert rows.min() == pytest.approx(4 * scale, abs=4)
        assert rows.max() == pytest.approx(12 * scale, abs=4)
        assert columns.min() == pytest.approx(left * scale, abs=4)
        assert columns.max() == pytest.approx((left + 12) * scale, abs=4)
    middle = drawn[round(8 * scale), round(14 * scale)]
    assert (middle == plain[round(8 * scale), round(14 * scale)]).all()  # an outline is no area


def test_the_picture_has_the_aspect_of_the_spacing_and_the_plane_of_the_prediction_where_truth_is_empty() -> None:
    prediction = np.zeros((5, 10, 10), np.uint8)
    prediction[1, 3:7, 3:7] = 1
    image = np.zeros((1, 5, 10, 10), np.float32)
    plain, drawn = split(draw_plane(image, prediction * 0, prediction, spacing_mm=(1.0, 2.0, 1.0)))
    assert plain.shape[0] == 2 * plain.shape[1]
    assert where(drawn, GOLD).any()


def test_label_colours_begin_again() -> None:
    label = np.zeros((1, 12, 12), np.uint8)
    label[0, 2:9, 2:9] = 9
    drawn = split(draw_plane(np.zeros((1, *label.shape)), label * 0, label, spacing_mm=(1.0, 1.0, 1.0)))[1]
    assert where(drawn, GOLD).any()
