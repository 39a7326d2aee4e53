from __future__ import annotations

from pathlib import Path

from matplotlib.image import imread

from medi3d.report.study_figure import ArmPoints, draw_study

ARMS = {"random": ArmPoints((8, 16), (0.7, 0.8), (0.6, 0.75), (0.75, 0.85))}


def test_a_panel_for_each_learning_curve_that_is_one(tmp_path: Path) -> None:
    """Runs that were validated once, at their end, have none to draw."""
    line, point = [((50, 0.6), (100, 0.7)), ((50, 0.5), (100, 0.8))], [((100, 0.7),), ((100, 0.8),)]
    widths = {}
    for panels, curves in ((1, {}), (2, {"8": {"random": line}}), (1, {"8": {"random": point}})):
        path = draw_study(ARMS, curves, tmp_path / "figure.png", metric="Dice", title="task")
        width = imread(path).shape[1]
        assert widths.setdefault(panels, width) == width
    assert widths[2] > widths[1]
