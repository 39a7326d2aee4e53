from __future__ import annotations

from pathlib import Path

import pytest

from medi3d.errors import InputError
from medi3d.runs.folds import FoldsFolder, find_runs


@pytest.fixture
def folds(tmp_path: Path) -> FoldsFolder:
    folder = FoldsFolder(tmp_path / "all")
    folder.write({"task": {"name": "tiny"}, "folds": {0: {"state": "finished"}, 1: {"state": "open"}, 10: {}, 2: {}}})
    return folder


def begin(*runs: Path) -> None:
    for run in runs:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text("")


def test_the_record_is_read_back_with_numbers_for_folds(folds: FoldsFolder) -> None:
    record = folds.read()
    assert record["task"] == {"name": "tiny"}
    assert record["folds"][1] == {"state": "open"}
    assert list(folds.path.iterdir()) == [folds.record_file]


def test_a_folder_of_folds_stands_for_the_runs_that_have_begun(folds: FoldsFolder, tmp_path: Path) -> None:
    numbers = (0, 2, 10)
    begin(*(folds.fold(number).path for number in numbers), tmp_path / "one", folds.path / "fold7")
    expected = [folds.path / f"fold{number}" for number in numbers]
    assert find_runs([folds.path]) == expected
    assert find_runs([tmp_path / "one", folds.path]) == [tmp_path / "one", *expected]
    assert find_runs([tmp_path / "absent"]) == [tmp_path / "absent"]  # whoever reads it says that it is no run


def test_a_folder_without_a_fold_says_how_to_go_on(folds: FoldsFolder) -> None:
    with pytest.raises(InputError, match=r"no fold has begun; `medi3d train --resume .*/all` goes on"):
        find_runs([folds.path])


def test_a_folder_that_is_taken_is_refused(folds: FoldsFolder, tmp_path: Path) -> None:
    begin(tmp_path / "one")
    for path in (folds.path, tmp_path / "one"):
        with pytest.raises(InputError, match="already holds a run; give another --name, or --resume it"):
            FoldsFolder(path).check_free()
    FoldsFolder(tmp_path / "new").check_free()


def test_no_record_and_a_damaged_one_are_named(folds: FoldsFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run here"):
        FoldsFolder(tmp_path / "none").read()
    for content in ("{", "[]", '{"task": {}}', '{"folds": {"first": {}}}'):
        folds.record_file.write_text(content)
        with pytest.raises(InputError, match=r"cross_validation\.json: not the record of a cross-validation"):
            folds.read()
