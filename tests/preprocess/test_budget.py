from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from medi3d.errors import ConfigError
from medi3d.preprocess.scheduling import budget
from medi3d.preprocess.scheduling.budget import Budget, available_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"), [("8G", 8e9), ("500M", 5e8), ("1.5 GB", 1.5e9), ("2GiB", 2e9), ("1000", 1000), ("1t", 1e12)]
)
def test_amounts(text: str, expected: float) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "8X", "1.2.3G", "nan"])
def test_no_amounts(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--memory .*: give an amount such as 8G"):
        parse_bytes(text)


def test_cases_start_while_they_fit_and_one_alone_always() -> None:
    few = Budget(100, 100)
    assert few.admits(40, [])
    assert few.admits(40, [30, 30])
    assert not few.admits(41, [30, 30])
    assert few.admits(500, [])
    assert not few.admits(1, [500])


def test_the_budget_is_a_share_of_what_is_free_unless_it_is_given() -> None:
    assert Budget.of(7) == Budget(7, 7)
    free = psutil.virtual_memory().available
    assert 0.3 * free < Budget.of(None).total_bytes < free
    assert available_bytes() <= psutil.virtual_memory().total


def write_group(root: Path, names: dict[str, str]) -> None:
    for name, content in names.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


def test_a_container_may_have_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_CGROUP", tmp_path)
    machine = available_bytes()
    write_group(tmp_path, {"memory.max": "max", "memory.current": "10", "memory.stat": "inactive_file 4"})
    assert available_bytes() == pytest.approx(machine, rel=0.2)
    write_group(
        tmp_path, {"memory.max": "1000000", "memory.current": "300000", "memory.stat": "anon 1\ninactive_file 4"}
    )
    assert available_bytes() == 700_004
    older = {"limit_in_bytes": "5000", "usage_in_bytes": "6000"}
    write_group(tmp_path, {f"memory/memory.{key}": value for key, value in older.items()})
    write_group(tmp_path, {"memory/memory.stat": "cache 1"})
    assert available_bytes() == 0
