from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from medi3d import io
from medi3d.cli.preprocess import preprocess
from medi3d.cli.spacing import SpacingCommand, join_numbers, parse_spacing
from medi3d.errors import ConfigError, InputError
from medi3d.io import PreparedStore
from medi3d.volume import LabelMap, Volume

app = typer.Typer()
app.command(cls=SpacingCommand)(preprocess)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments, "--workers", "1"], terminal_width=200)
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "raw" / "hippocampus"
    for seed, name in enumerate("ab"):
        array = np.random.default_rng(seed).normal(9, 2, (1, 5, 6, 7)).astype("f4")
        io.write_volume(Volume(array, np.diag([2.0, 1, 1, 1])), folder / f"imagesTr/{name}.nii.gz")
        label = LabelMap((array > 9).astype("uint8"), np.diag([2.0, 1, 1, 1]))
        io.write_label_map(label, folder / f"labelsTr/{name}.nii.gz")
    return folder


@pytest.mark.parametrize("arguments", [(), ("--task", "hippocampus")])
def test_it_works_as_typed(raw: Path, arguments: tuple[str, ...]) -> None:
    code, output = run("--spacing", "1.0", *arguments)
    assert code == 0
    assert "hippocampus" in output
    cases = PreparedStore(Path("data/prepared/hippocampus")).cases()
    assert [case.case_id for case in cases] == ["a", "b"]
    code, output = run("--spacing", "1.0")
    assert code == 0


def test_problems_are_lines_and_exit_one(raw: Path, tmp_path: Path) -> None:
    (raw / "imagesTr/a.nii.gz").write_bytes(b"")
    code, output = run("--task", "hippocampus", "--data", str(raw), "--output", str(tmp_path / "out"))
    assert code == 1
    assert "problem: a: " in output
    assert "the file is empty" in output
    assert len(PreparedStore(tmp_path / "out").cases()) == 1


def test_three_spacings_and_settings(raw: Path, tmp_path: Path) -> None:
    run("--task", "hippocampus", "--spacing", "2.0,0.5,1", "--set", "preprocess.interpolation=bspline")
    store = PreparedStore(Path("data/prepared/hippocampus"))
    assert store.cases()[0].record.prepared.spacing_mm == pytest.approx((2.0, 0.5, 1.0))
    assert store.task_values["preprocess"]["interpolation"] == "bspline"


def test_without_raw_data_it_says_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no folder data/raw/<task> here .*data/raw/hippocampus.*`medi3d demo`"):
        run("--spacing", "1.0")
    with pytest.raises(InputError, match=r"data/raw/hippocampus does not exist; expected .*imagesTr"):
        run("--task", "hippocampus")


def test_flags_that_contradict(raw: Path) -> None:
    with pytest.raises(ConfigError, match="--data needs --task"):
        run("--data", str(raw))
    with pytest.raises(ConfigError, match="--data and --output go with a single --task"):
        run("--task", "hippocampus", "--task", "demo", "--output", "x")
    with pytest.raises(ConfigError, match="did you mean 'hippocampus'"):
        run("--task", "hipocampus")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.0", 1.0),
        ("2.5,0.8,0.8", [2.5, 0.8, 0.8]),
        ("2 1 1", [2, 1, 1]),
        ("0.8 0.8 2.5", [2.5, 0.8, 0.8]),
        ("0.7 0.8 2.5", [2.5, 0.8, 0.7]),
        ("1, 1, 1", [1, 1, 1]),
        ("2 1 2", [2, 1, 2]),
        ("2 2 1", [2, 2, 1]),
        ("median", "median"),
        ("native", "native"),
    ],
)
def test_parse_spacing(text: str, expected: object) -> None:
    assert parse_spacing(text) == expected


@pytest.mark.parametrize("text", ["1,2", "a", "0", "1,1,-1", "", "1 2 3 4", "inf", "nan", "medium"])
def test_wrong_spacing(text: str) -> None:
    with pytest.raises(ConfigError, match="give millimetres above 0, one number or three"):
        parse_spacing(text)


def test_an_order_of_axes_that_nobody_writes() -> None:
    with pytest.raises(
        ConfigError, match=r"the middle number is the largest, but the through-plane spacing comes first"
    ):
        parse_spacing("0.8 2.5 0.8")


def test_three_words_are_one_value() -> None:
    assert join_numbers(["--spacing", "1", "--workers", "2"]) == ["--spacing", "1", "--workers", "2"]
    assert join_numbers(["-v", "--spacing", "1", "1", "2"]) == ["-v", "--spacing", "1 1 2"]
    assert join_numbers(["--spacing", "median", "3"]) == ["--spacing", "median", "3"]
    assert join_numbers(["--workers", "1", "3"]) == ["--workers", "1", "3"]


@pytest.mark.parametrize("words", [["0.5", "1", "2"], ["2,1,0.5"], ["2", "1", "0.5"]])
def test_three_spacings_as_typed(raw: Path, words: list[str]) -> None:
    code, output = run("--task", "hippocampus", "--spacing", *words)
    assert code == 0
    cases = PreparedStore(Path("data/prepared/hippocampus")).cases()
    assert cases[0].record.prepared.spacing_mm == pytest.approx((2.0, 1.0, 0.5))
    assert "native spacing D H W, mm" in output
