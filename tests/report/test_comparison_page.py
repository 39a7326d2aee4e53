from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.report.comparison import (
    ComparedRun,
    Difference,
    difference_text,
    differing_settings,
    draw_figure,
    main_rows,
    size_texts,
    value_text,
    write_page,
    write_table,
)
from medi3d.report.scores import Interval
from medi3d.report.training_facts import Effort


@pytest.fixture
def runs(segmentation_task: TaskConfig) -> list[ComparedRun]:
    other = replace(segmentation_task, train=replace(segmentation_task.train, steps=9))

    def scores(dice: float) -> dict[str, dict[str, Interval]]:
        entry = {"dice": Interval(dice, dice - 0.1, dice + 0.05, 6), "iou": Interval(None, None, None, 0)}
        return {"bright": entry, "all labels": entry}

    differences = {"all labels": {"dice": Difference(Interval(-0.2, -0.3, -0.1, 5), 0.0312)}}
    return [
        ComparedRun("first", segmentation_task, scores(0.8), 5_000_000, Effort(5400.0, 9000.0, "Some GPU")),
        ComparedRun("<second>", other, scores(0.6), 1_234_567, Effort(None, None, None), differences),
    ]


def test_values_and_differences_are_written_with_their_intervals(runs: list[ComparedRun]) -> None:
    assert main_rows(runs) == [("all labels", "dice")]
    assert value_text(runs[0], "all labels", "dice") == "0.800 (0.700 to 0.850)"
    assert value_text(runs[0], "all labels", "iou") == "–"
    assert difference_text(runs[1], "all labels", "dice") == "−0.200 (−0.300 to −0.100), p = 0.031"
    assert difference_text(runs[0], "all labels", "dice") == ""
    sure = {"all labels": {"dice": Difference(Interval(0.02, 0.01, 0.03, 5), 4e-7)}}
    assert difference_text(replace(runs[1], differences=sure), "all labels", "dice") == (
        "+0.020 (0.010 to 0.030), p < 0.001"
    )
    assert [list(size_texts(run).values()) for run in runs] == [
        ["5.00 M", "1 h 30 min", "2 h 30 min", "Some GPU"],
        ["1.23 M", "–", "–", "–"],
    ]


def test_the_table_holds_every_value(runs: list[ComparedRun], tmp_path: Path) -> None:
    with write_table(runs, tmp_path / "new" / "a.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    assert rows[6] == {
        "run": "<second>", "scored": "all labels", "metric": "dice", "value": "0.6", "low": "0.5", "high": "0.65",
        "cases": "6", "difference_value": "-0.2", "difference_low": "-0.3", "difference_high": "-0.1",
        "p_value": "0.0312", "shared_cases": "5", "parameters": "1234567", "trained_minutes": "",
        "processor_minutes": "", "device": "",
    }  # fmt: skip
    assert rows[1]["value"] == rows[0]["difference_value"] == ""
    assert (rows[0]["trained_minutes"], rows[0]["processor_minutes"], rows[0]["device"]) == (
        *("90", "150", "Some GPU"),
    )


def test_only_what_differs_is_listed(runs: list[ComparedRun]) -> None:
    assert differing_settings(runs) == [("train.steps", ["4", "9"])]
    assert differing_settings(runs[:1]) == []


def test_the_figure_is_a_picture(runs: list[ComparedRun], tmp_path: Path) -> None:
    picture = imread(draw_figure(runs, tmp_path / "a.png"))
    assert picture[0, 0, :3].tolist() == [1, 1, 1]
    assert "second" in draw_figure(runs, tmp_path / "a.svg").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.pdf: a figure is a \.png or an \.svg"):
        draw_figure(runs, tmp_path / "a.pdf")


def test_the_page_stands_alone(runs: list[ComparedRun], tmp_path: Path) -> None:
    page = write_page(runs, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<second>" not in page
    assert "&lt;second&gt;" in page
    for text in ("−0.200 (−0.300 to −0.100), p = 0.031", "train.steps", "1 h 30 min", "0.800"):
        assert text in page
    assert "#0a0b" not in page, "a stand-in colour was left"
    assert "default-src 'none'" in page
    assert "<script" not in page
