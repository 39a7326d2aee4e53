"""How many threads a run takes: what it may have, and what it finds out."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from medi3d.train import threads
from medi3d.train.threads import Threads, count_cores, restored_threads


@pytest.fixture(autouse=True)
def _leave_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Clock:
    """A machine on which a step takes so many seconds with so many threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.now = 0.0
        self.seconds = {int(name[1:]): value for name, value in seconds.items()}
        self.used: list[int] = []
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)

    def run(self, steps: int, of: Threads) -> list[int]:
        for _ in range(steps):
            with of.step():
                self.used.append(torch.get_num_threads())
                self.now += self.seconds[self.used[-1]]
        return self.used[-steps:]


@pytest.mark.parametrize(("one", "four", "chosen"), [(1.0, 0.4, 4), (1.0, 40.0, 1)])
def test_the_faster_number_is_found_in_the_first_steps(
    one: float, four: float, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, t1=one, t4=four)
    found = Threads(None, most=4)
    assert clock.run(6, found) == [4, 1, 4, 1, 4, 1]
    assert found.chosen == chosen
    assert clock.run(3, found) == [chosen] * 3


def test_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, t1=1.0, t2=100.0)
    found = Threads(None, most=2)
    clock.run(2, found)
    clock.seconds = {1: 1.0, 2: 0.5}
    clock.run(4, found)
    assert found.chosen == 2


def test_a_given_number_is_taken_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, t3=1.0)
    given = Threads(3, most=4)
    assert clock.run(8, given) == [3] * 8
    clock.seconds = {3: 90.0}
    assert clock.run(8, given) == [3] * 8


def test_a_run_that_goes_on_takes_what_was_found_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, t2=1.0)
    assert clock.run(5, Threads(None, most=4, found=2)) == [2] * 5
    assert Threads(None, most=1, found=2).chosen == 1


def test_much_slower_steps_put_it_into_question(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch, t1=1.0, t2=0.6)
    found = Threads(None, most=2)
    clock.run(6, found)
    clock.run(10, found)
    clock.seconds = {1: 2.0, 2: 30.0}  # another process has come
    with caplog.at_level(logging.WARNING):
        clock.run(3, found)
    assert found.chosen is None
    assert "steps take 30.0 s in place of 0.6 s" in caplog.text
    clock.run(6, found)
    assert found.chosen == 1
    clock.seconds = {1: 9.0, 2: 0.1}
    assert clock.run(8, found) == [1] * 8  # one thread is as few as there are


def test_single_slow_steps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, t1=1.0, t2=0.6)
    found = Threads(None, most=2)
    clock.run(6, found)
    for seconds in (30.0, 30.0, 0.6) * 4:
        clock.seconds = {2: seconds}
        assert clock.run(1, found) == [2]


def test_threads_are_restored_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        torch.set_num_threads(before + 1)
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"), restored_threads():
        fail()
    assert torch.get_num_threads() == before


def test_cores_are_those_that_nobody_denies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert count_cores() == 12
    assert count_cores(processes=4) == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert count_cores() == 2
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)  # OMP_NUM_THREADS=5
    assert count_cores() == 5


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 1 << 16),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 1 << 16),
        ({}, 1 << 16),
    ],
)
def test_a_containers_quota_is_read(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert threads._read_quota(tmp_path) == cores
