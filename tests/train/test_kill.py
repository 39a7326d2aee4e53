"""The kill test of ``benchmarks/kill_test.py``, in small: real processes, killed and asked to stop."""

from __future__ import annotations

import signal
from types import ModuleType
from typing import Any

import pytest
import yaml
from benchmark_modules import load_benchmark

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kill_test() -> ModuleType:
    return load_benchmark("kill_test")


@pytest.fixture(scope="module")
def test(kill_test: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("kill")
    task, prepared = kill_test.write_task(work)
    values = yaml.safe_load(task.read_text())
    values["train"] |= {"steps": 60, "validations": 3, "save_every": "0.2s"}
    task.write_text(yaml.safe_dump(values))
    return kill_test.KillTest(work / "runs", task, prepared, seed=1)


def test_killed_at_random_moments_it_ends_as_undisturbed(test: Any) -> None:
    rows, differences = test.kill(4)
    assert len(rows) == 4
    assert not differences


def test_another_seed_is_another_run(test: Any, kill_test: ModuleType) -> None:
    """The comparison can fail."""
    values = yaml.safe_load(test.task.read_text())
    other = test.task.with_name("other.yaml")
    other.write_text(yaml.safe_dump(values | {"train": values["train"] | {"seed": 1}}))
    before, test.task = test.task, other
    try:
        test.finish(test.folder("other"))
    finally:
        test.task = before
    differences = kill_test.find_differences(test.whole, test.folder("other"))
    assert any(line.startswith("last.pt/model/") for line in differences)
    assert any(line.startswith("last.pt/optimizer/") for line in differences)
    assert any(line.startswith("metrics.csv") for line in differences)


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGTERM, 143, "cut"), (signal.SIGUSR1, 138, "flipped bit")]
)
def test_a_stopped_run_has_saved_its_last_step_and_survives_a_damaged_checkpoint(
    number: signal.Signals, code: int, how: str, test: Any, kill_test: ModuleType
) -> None:
    run, row = test.stop(number, 20)
    assert row["exit code"] == code
    assert row["steps saved"] == row["steps done"] >= 20
    assert not kill_test.damage(test, run, how)


def test_a_full_disk_ends_the_run_and_loses_nothing(test: Any, kill_test: ModuleType) -> None:
    differences = kill_test.fill_disk(test)
    if differences and differences[0].startswith("not tested"):
        pytest.skip(differences[0])
    assert not differences
