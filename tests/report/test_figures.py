from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from medi3d.errors import InputError
from medi3d.report import draw_curves, draw_prediction
from medi3d.report.figures import find_center, to_canonical
from medi3d.volume import LabelMap, Volume

AFFINE = np.array([[0, 0, -1.0, 0], [0, -1.5, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])  # SPL
LABELS = {1: "solid", 2: "subsolid"}


@pytest.fixture
def case(rng: np.random.Generator) -> tuple[Volume, LabelMap]:
    label = np.zeros((1, 8, 20, 30), np.uint8)
    label[0, 2:6, 4:10, 5:12] = 1
    label[0, 3:5, 12:16, 20:24] = 2
    return Volume(rng.normal(size=label.shape).astype(np.float32) + label, AFFINE), LabelMap(label, AFFINE)


def count_color(path: Path, rgb: tuple[int, int, int]) -> int:
    pixels = imread(path)[..., :3] * 255
    return int((np.abs(pixels - rgb).max(axis=-1) < 8).sum())


def test_a_prediction_is_drawn_with_and_without_a_reference(case: tuple[Volume, LabelMap], tmp_path: Path) -> None:
    image, label = case
    empty = LabelMap(np.zeros_like(label.array), AFFINE)
    for name, prediction, reference in (
        ("a", label, None),
        ("b", label, label),
        ("c", empty, None),
        ("d", empty, label),
    ):
        path = draw_prediction(image, prediction, reference, tmp_path / "new" / f"{name}.png", labels=LABELS)
        assert path.read_bytes().startswith(b"\x89PNG")
    solid = (0xFF, 0xB0, 0x00)
    assert count_color(tmp_path / "new" / "a.png", solid) > 2 * count_color(tmp_path / "new" / "c.png", solid) > 0


def test_drawing_leaves_no_global_state(case: tuple[Volume, LabelMap], tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_prediction(case[0], case[1], None, tmp_path / "a.png", labels=LABELS)
    assert dict(matplotlib.rcParams) == before


def test_the_planes_are_canonical_whatever_the_stored_axes(case: tuple[Volume, LabelMap], tmp_path: Path) -> None:
    image, label = case
    stored = np.ascontiguousarray(image.array[:, ::-1].transpose(0, 3, 1, 2))  # (W, D reversed, H)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = AFFINE[:3, 2], -AFFINE[:3, 0], AFFINE[:3, 1]
    affine[:3, 3] = image.grid.index_to_world([7, 0, 0])
    turned = Volume(stored, affine)
    assert turned.orientation == "LIP"
    assert np.array_equal(to_canonical(turned.array[0], turned), image.array[0])
    turned_label = LabelMap(np.ascontiguousarray(label.array[:, ::-1].transpose(0, 3, 1, 2)), affine)
    pictures = [
        imread(draw_prediction(*pair, None, tmp_path / f"{index}.png", labels=LABELS))
        for index, pair in enumerate(((image, label), (turned, turned_label)))
    ]
    assert np.allclose(pictures[0], pictures[1], atol=0.02)


def test_the_planes_cut_the_largest_component(case: tuple[Volume, LabelMap]) -> None:
    d, h, w = find_center(case[1].array[0], LABELS)
    assert (2 <= d < 6, 4 <= h < 10, 5 <= w < 12) == (True, True, True)
    assert find_center(np.zeros((4, 6, 8), np.uint8), LABELS) == (2, 3, 4)


def test_another_grid_is_refused(case: tuple[Volume, LabelMap], tmp_path: Path) -> None:
    image, label = case
    with pytest.raises(InputError, match="the reference does not lie on the volume's grid"):
        draw_prediction(image, label, LabelMap(label.array[:, 1:], AFFINE), tmp_path / "a.png", labels=LABELS)
    assert not list(tmp_path.iterdir())


def test_curves_are_drawn_from_sparse_columns(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    rows = [f"{step},{1 / (step + 1)},{0.1 * step if step % 3 == 0 else ''},1e-3" for step in range(10)]
    table.write_text("\n".join(["step,train_loss,validation_dice,learning_rate", *rows]))
    assert draw_curves(table, tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_without_numbers_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    with pytest.raises(InputError, match="not a readable CSV"):
        draw_curves(table, tmp_path / "curves.png")
    table.write_text("step,loss\n")
    with pytest.raises(InputError, match="at least one of numbers; got step, loss"):
        draw_curves(table, tmp_path / "curves.png")
