from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from medi3d.errors import InputError
from medi3d.evaluate import Evaluation, evaluate_classification

CLASSES = ("benign", "malignant")


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return write(
        tmp_path / "p.csv",
        "case_id,malignant,benign",
        *(f"c{index},{p},{1 - p:.2f}" for index, p in enumerate((0.1, 0.2, 0.7, 0.8, 0.6, 0.3))),
        "stray,0.5,0.5",
    )


@pytest.fixture
def references(tmp_path: Path) -> Path:
    targets = ("benign", "benign", "malignant", "malignant", "0", "")
    rows = [f"c{index},p{index // 2},{target}" for index, target in enumerate(targets)]
    return write(tmp_path / "r.csv", "case_id,patient_id,label", *rows, "c9,p9,malignant")


def evaluate(predictions: Path, references: Path) -> Evaluation:
    return evaluate_classification(
        predictions, references, CLASSES, target_column="label", group_column="patient_id", bootstrap=200
    )


def test_scores_missing_and_unlabelled_cases(predictions: Path, references: Path) -> None:
    result = evaluate(predictions, references)
    assert result.cases == 5
    assert result.missing == ("c9",)
    assert result.unmatched == ("stray",)
    assert result.settings["unlabelled"] == 1
    assert result.scores["malignant"]["auc"].value == 1.0
    assert result.scores["malignant"]["accuracy"].value == pytest.approx(0.8)
    assert result.rows[4]["predicted"] == "malignant"


def test_tables_are_written(predictions: Path, references: Path, tmp_path: Path) -> None:
    cases, summary = evaluate(predictions, references).write(tmp_path / "out")
    with cases.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[2] == {
        "case_id": "c2",
        "target": "malignant",
        "predicted": "malignant",
        "benign": "0.3",
        "malignant": "0.7",
    }
    content = json.loads(summary.read_text())
    assert content["scores"]["malignant"]["accuracy"]["value"] == pytest.approx(0.8)
    assert content["missing"] == ["c9"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cases.csv", "curves.json", "summary.json"]


def test_a_bad_row_is_a_problem_and_the_others_count(predictions: Path, references: Path, tmp_path: Path) -> None:
    text = predictions.read_text().replace("c0,0.1,0.90", "c0,0.1,0.2")
    result = evaluate(write(tmp_path / "bad.csv", text), references)
    assert result.cases == 4
    assert result.missing == ("c9",)
    assert "c0: " in result.problems[0]
    assert "sum to 1" in result.problems[0]


def test_a_cell_without_a_number_is_a_problem(predictions: Path, references: Path, tmp_path: Path) -> None:
    text = predictions.read_text().replace("c1,0.2,", "c1,often,")
    result = evaluate_classification(
        write(tmp_path / "bad.csv", text), references, CLASSES, target_column="label", bootstrap=50
    )
    assert "['0.80', 'often']" in result.problems[0]


def test_an_unknown_class_is_a_problem(predictions: Path, references: Path, tmp_path: Path) -> None:
    text = references.read_text().replace("c3,p1,malignant", "c3,p1,malign")
    result = evaluate(predictions, write(tmp_path / "bad.csv", text))
    assert result.problems == (
        f"c3: {tmp_path / 'bad.csv'} holds the class 'malign'; the classes are benign, malignant",
    )
    assert result.unmatched == ("stray",)


def test_missing_columns_double_rows_and_disjoint_tables_are_refused(
    predictions: Path, references: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no column 'malignant'; the columns are case_id, benign"):
        evaluate(write(tmp_path / "a.csv", "case_id,benign", "c0,1"), references)
    with pytest.raises(InputError, match="case 'c0' stands in 2 rows"):
        evaluate(write(tmp_path / "b.csv", "case_id,benign,malignant", "c0,1,0", "c0,1,0"), references)
    with pytest.raises(InputError, match="no case could be evaluated: 6 references have no prediction"):
        evaluate(write(tmp_path / "c.csv", "case_id,benign,malignant", "z,1,0"), references)
    with pytest.raises(InputError, match="not a readable CSV table"):
        evaluate(tmp_path / "absent.csv", references)
