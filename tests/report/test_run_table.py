"""Several runs on one page: what each held out, how that went, what it took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medi3d.config import TaskConfig
from medi3d.data.splits import Split
from medi3d.report import Material, write_report
from medi3d.report.run_table import describe_runs
from medi3d.report.scores import read_scores
from medi3d.report.training_facts import measure_effort
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import FoldsFolder
from tests.report.conftest import make_label_evaluation, write_run

NAMES = ("fold0", "fold1")


@pytest.fixture
def runs(tiny: Path, segmentation_task: TaskConfig, tmp_path: Path) -> list[RunFolder]:
    """Cases 0 to 2 are held out by the first, 120 s long; case 2 and one without a score by the second, 80 s."""
    prepared, folder = tiny / "prepared" / segmentation_task.name, tmp_path / "tiny" / "folds"
    first = write_run(folder / "fold0", segmentation_task, prepared)
    first.append_metrics({"step": 5, "seconds": 120.0, "cpu_seconds": 250.0, "loss": 0.1})
    first.note_device("A processor")
    second = RunFolder(folder / "fold1")
    second.create(segmentation_task, Split(("case_0", "case_1"), ("case_2", "case_5")), prepared=prepared, fold=1)
    second.append_metrics({"step": 4, "seconds": 80.0, "cpu_seconds": 100.0, "loss": 1.0})
    second.note_device("A GPU")
    return [first, second]


def rows_of(table: dict[str, object] | None) -> list[list[str]]:
    assert table is not None
    return [[row["name"], *(cell["value"] for cell in row["cells"])] for row in table["rows"]]  # type: ignore[attr-defined]


def test_each_run_is_told_with_the_cases_that_it_held_out(runs: list[RunFolder], tmp_path: Path) -> None:
    """Mean Dice of the cases: 0.30, 0.80 and 0.55."""
    scores = [read_scores(make_label_evaluation(tmp_path))]
    table = describe_runs(runs, NAMES, scores)
    assert rows_of(table) == [
        ["fold0", "3", "3", "0.550", "0.300 (case_0)", "2 min", "A processor"],
        ["fold1", "2", "2", "0.550", "0.550 (case_2)", "80 s", "A GPU"],
    ]
    assert table is not None
    assert "mean of these runs" in table["note"]  # case 2 was held out by both
    assert len(rows_of(describe_runs(runs, NAMES, ()))[0]) == 5
    assert describe_runs(runs[:1], NAMES[:1], scores) is None


def test_effort_is_summed_and_unknown_where_one_run_does_not_tell(runs: list[RunFolder]) -> None:
    assert measure_effort(runs) == (200.0, 350.0, "A processor, A GPU")
    runs[1].metrics_file.unlink()
    assert measure_effort(runs) == (None, None, "A processor, A GPU")
    runs[1].environment_file.unlink()
    assert measure_effort(runs).device is None


def test_a_folder_of_folds_is_one_page(runs: list[RunFolder], segmentation_task: TaskConfig, tmp_path: Path) -> None:
    folder = FoldsFolder(runs[0].path.parent)
    entry = {"state": "finished"}
    folder.write({"folds": {"0": entry, "1": entry}})
    material = Material(evaluations=(make_label_evaluation(tmp_path),), viewer=False)
    for paths in ([folder.path], [run.path for run in runs]):
        text = write_report(paths, tmp_path / "page.html", material).read_text(encoding="utf-8")
        assert "Run by run" in text
        assert "0.550 (case_2)" in text
        assert "3 min in all" in text  # 200 s
    others = replace(material, held_out=False)
    assert "0.550 (case_2)" not in write_report([folder.path], tmp_path / "page.html", others).read_text()
