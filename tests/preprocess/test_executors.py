"""Functions here are given to other processes, so they are the module's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medi3d.errors import InputError
from medi3d.preprocess.scheduling import executors
from medi3d.preprocess.scheduling.budget import Budget
from medi3d.preprocess.scheduling.executors import Cluster, Piece, Pool, Processes, run_all

PLENTY = Budget(1000, 1000)


def square(number: int) -> int:
    return number * number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return number


def die_once(place: tuple[str, int]) -> int:
    """Die in company, as the one who asked for memory last; alone, there is enough."""
    folder, number = place
    mark = Path(folder) / "died"
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def raise_at_two(number: int) -> int:
    if number == 2:
        raise ZeroDivisionError("two")
    return number


def span(seconds: float) -> tuple[float, float]:
    """Take some time; return when it began and ended."""
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


def threads_and_mask(_: int) -> tuple[str, object]:
    return os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"], signal.getsignal(signal.SIGINT)


def pieces(*numbers: int) -> list[Piece[int]]:
    return [Piece(number, needed_bytes=10) for number in numbers]


@pytest.fixture(params=["none", "fork", "forkserver"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pool | None:
    if request.param == "none":
        return None
    monkeypatch.setattr(executors, "start_method", lambda: request.param)
    return Processes(2, PLENTY)


def test_everything_is_done_once(pool: Pool | None) -> None:
    assert sorted(run_all(square, pieces(*range(9)), pool)) == [(n, n * n) for n in range(9)]
    assert list(run_all(square, [], pool)) == []


def test_an_error_of_the_function_ends_the_run(pool: Pool | None) -> None:
    with pytest.raises(ZeroDivisionError, match="two"):
        list(run_all(raise_at_two, pieces(1, 2, 3), pool))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_killed_process_costs_its_own_piece_only(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "start_method", lambda: method)
    done = dict(run_all(die_at_three, pieces(*range(12)), Processes(2, PLENTY)))
    assert done == {n: None if n == 3 else n for n in range(12)}


def test_a_piece_that_died_beside_others_may_do_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "start_method", lambda: "fork")
    work = [Piece((str(tmp_path), n), needed_bytes=10) for n in range(6)]
    assert sorted(done for _, done in run_all(die_once, work, Processes(2, PLENTY))) == list(range(6))


def test_no_more_under_way_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "start_method", lambda: "fork")
    needs = {0.41: 50, 0.42: 60, 0.35: 40, 0.43: 500}
    work = [Piece(seconds, needed_bytes) for seconds, needed_bytes in needs.items()]
    spans = {
        needs[seconds]: result for seconds, result in run_all(span, work, Processes(4, Budget(100, 100))) if result
    }
    for one, (start, _) in spans.items():
        beside = [other for other, (first, last) in spans.items() if first <= start < last]
        assert sum(beside) <= 100 or beside == [500], (one, beside)
    assert max(sum(a <= b[0] < c for a, c in spans.values()) for b in spans.values()) == 2


def test_workers_leave_interrupts_to_the_parent_and_use_one_thread(pool: Pool | None) -> None:
    if pool is None:
        pytest.skip("no worker")
    assert [done for _, done in run_all(threads_and_mask, pieces(1), pool)] == [("1", signal.SIG_IGN)]


@pytest.mark.skipif(sys.platform != "linux", reason="forks are not safe elsewhere")
def test_a_fork_only_where_no_other_thread_runs() -> None:
    code = """
from medi3d.preprocess.scheduling.executors import start_method
import sys, threading
print(start_method())
sys.modules["torch"] = sys
print(start_method())
del sys.modules["torch"]
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(start_method())
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["fork", "forkserver", "forkserver"]


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_parent_that_was_killed(method: str, tmp_path: Path) -> None:
    code = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from medi3d.preprocess.scheduling import executors
from test_executors import write_pid
executors.start_method = lambda: {method!r}
pool = executors.Processes(2, executors.Budget(9, 9))
if __name__ == "__main__":
    list(executors.run_all(write_pid, [executors.Piece(({str(tmp_path)!r}, n), 1) for n in range(2)], pool))
"""
    (tmp_path / "run.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "run.py"])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)


def write_pid(place: tuple[str, int]) -> None:
    (Path(place[0]) / f"{os.getpid()}.pid").touch()
    time.sleep(60)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# --- a Dask cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit="400MB"
    ) as running:
        yield running.scheduler_address


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_does_it_all(cluster: str) -> None:
    pool = Cluster(cluster)
    assert pool.width == 4
    assert pool.budget == Budget(640_000_000, 320_000_000)
    assert sorted(run_all(square, pieces(*range(9)), pool)) == [(n, n * n) for n in range(9)]
    with pytest.raises(ZeroDivisionError, match="two"):
        list(run_all(raise_at_two, pieces(1, 2, 3), pool))


def test_no_scheduler_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "_ANSWER_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        _ = Cluster("tcp://127.0.0.1:9").budget
