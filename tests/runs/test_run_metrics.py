"""The table of a run's curves, cut at any byte."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from medi3d.errors import Medi3dError
from medi3d.runs.metrics import METRIC_COLUMNS, MetricsTable


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def fill(path: Path) -> MetricsTable:
    table = MetricsTable(path)
    for step in (10, 20, 30):
        table.append({"step": step, "seconds": 0.5, "loss": 1.25 / step} | ({"score": 0.75} if step == 20 else {}))
    return table


def test_rows_are_read_back(tmp_path: Path) -> None:
    fill(tmp_path / "metrics.csv")
    found = rows(tmp_path / "metrics.csv")
    assert tuple(found[0]) == METRIC_COLUMNS
    assert [row["step"] for row in found] == ["10", "20", "30"]
    assert [row["score"] for row in found] == ["", "0.75", ""]
    assert [float(row["loss"]) for row in found] == [1.25 / step for step in (10, 20, 30)]


def test_a_new_column_joins_on_the_right(tmp_path: Path) -> None:
    table = fill(tmp_path / "metrics.csv")
    table.append({"step": 40, "dice_anterior": 0.5})
    MetricsTable(tmp_path / "metrics.csv").append({"step": 50, "dice_posterior": 0.25, "loss": 3.0})
    found = rows(tmp_path / "metrics.csv")
    assert tuple(found[0]) == (*METRIC_COLUMNS, "dice_anterior", "dice_posterior")
    assert [row["dice_anterior"] for row in found] == ["", "", "", "0.5", ""]
    assert [row["dice_posterior"] for row in found] == ["", "", "", "", "0.25"]
    assert [row["step"] for row in found] == ["10", "20", "30", "40", "50"]


def test_cut_at_any_byte_it_keeps_the_whole_rows_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    fill(path)
    data, whole = path.read_bytes(), rows(path)
    ends = [data[: k + 1].count(b"\n") for k in range(len(data))]
    for length in range(1, len(data) + 1, 2):
        for zeros in (0, 50):  # as a power cut leaves what was not forced to the disk
            path.write_bytes(data[:length] + bytes(zeros))
            table = MetricsTable(path)
            table.trim(20)
            kept = min(max(ends[length - 1] - 1, 0), 2)
            assert rows(path) == whole[:kept], (length, zeros)
            table.append({"step": 21, "loss": 2})
            assert [row["step"] for row in rows(path)] == [*("10", "20")[:kept], "21"]


def test_trimming_keeps_the_bytes_of_the_rows_that_stay(tmp_path: Path) -> None:
    table = fill(tmp_path / "metrics.csv")
    before = (tmp_path / "metrics.csv").read_bytes()
    table.trim(30)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    table.trim(29)
    assert (tmp_path / "metrics.csv").read_bytes() == before[: before.rindex(b"30,")]
    MetricsTable(tmp_path / "absent.csv").trim(3)
    assert not (tmp_path / "absent.csv").exists()


def test_a_disk_that_fails_is_named(tmp_path: Path) -> None:
    table = fill(tmp_path / "metrics.csv")
    table.path.unlink()
    table.path.mkdir()
    with pytest.raises(Medi3dError, match=r"could not be written \(Is a directory\); .* MB are free on the disk"):
        table.append({"step": 40})
