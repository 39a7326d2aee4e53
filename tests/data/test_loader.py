from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from medi3d.config import AugmentConfig, TaskConfig, parse_task
from medi3d.data.augment import Augmenter
from medi3d.data.loader import PatchLoader, default_workers
from medi3d.data.patches import PatchDataset
from medi3d.data.phantom_store import write_prepared_phantom
from medi3d.errors import InputError, Medi3dError
from medi3d.io.prepared import PreparedCase

SIZE = (8, 12, 10)
AUGMENT = AugmentConfig(mirror_axes=("H", "W"), low_resolution=2.0)


def make_task() -> TaskConfig:
    data = {
        "layout": "csv",
        "channels": ["T1", "T2"],
        "labels": {1: "one", 2: "two"},
        "classes": ["a", "b"],
        "columns": {"label": "label", "target": "class"},
    }
    return parse_task({"name": "phantom", "kind": "segmentation", "data": data}, where="test")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    return write_prepared_phantom(tmp_path_factory.mktemp("store"), make_task(), cases=5)


def make_dataset(cases: list[PreparedCase], **options: object) -> PatchDataset:
    defaults = {"patch_size": SIZE, "seed": 1, "foreground_fraction": 0.5, "augment": AUGMENT}
    return PatchDataset(cases, **(defaults | options))  # type: ignore[arg-type]


@contextmanager
def loading(cases: list[PreparedCase], **options: Any) -> Iterator[PatchLoader]:
    augmenter = Augmenter(AUGMENT, patch_size=SIZE, seed=1)
    with closing(PatchLoader(make_dataset(cases), augmenter, **({"batch_size": 2} | options))) as loader:
        yield loader


def take(cases: list[PreparedCase], batches: int, **options: Any) -> list[dict[str, Any]]:
    with loading(cases, **options) as loader:
        return [next(loader) for _ in range(batches)]


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(one) == set(other)
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_a_batch_is_as_agreed(cases: list[PreparedCase]) -> None:
    (batch,) = take(cases, 1, batch_size=3)
    assert {key: (value.shape, value.dtype) for key, value in batch.items() if key != "case_id"} == {
        "image": ((3, 2, *SIZE), torch.float32),
        "label": ((3, *SIZE), torch.int64),
        "target": ((3,), torch.int64),
        "number": ((3,), torch.int64),
    }
    assert batch["number"].tolist() == [0, 1, 2]
    dataset = make_dataset(cases)
    assert batch["case_id"] == [dataset.case_of(number).case_id for number in range(3)]
    assert batch["target"].tolist() == [dataset.case_of(number).target for number in range(3)]


def test_processes_share_out_what_one_process_sees(cases: list[PreparedCase]) -> None:
    whole = take(cases, 3, batch_size=4, first=8)
    parts = [take(cases, 3, batch_size=2, first=8, process=process, processes=2) for process in (0, 1)]
    for step, batch in enumerate(whole):
        assert batch["number"].tolist() == list(range(8 + 4 * step, 12 + 4 * step))
        for key in ("image", "label", "number"):
            assert torch.equal(batch[key], torch.cat([parts[0][step][key], parts[1][step][key]]))


def test_a_resumed_run_goes_on_where_it_stopped(cases: list[PreparedCase]) -> None:
    whole = take(cases, 5)
    for one, other in zip(whole[3:], take(cases, 2, first=6), strict=True):
        assert_equal(one, other)


def test_workers_change_nothing_and_leave_no_process(cases: list[PreparedCase]) -> None:
    alone = take(cases, 6)
    state = torch.get_rng_state()
    with loading(cases, workers=2) as loader:
        for batch in alone:
            assert_equal(batch, next(loader))
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        pids = [worker.pid for worker in workers]
    assert torch.equal(torch.get_rng_state(), state)
    assert not multiprocessing.active_children()
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)
    assert [worker.exitcode for worker in workers] == [0, 0]  # told to end, and not killed


def test_a_closed_loader_gives_no_more(cases: list[PreparedCase]) -> None:
    with loading(cases) as loader:
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


def test_what_the_consumer_waited_is_counted(cases: list[PreparedCase]) -> None:
    with loading(cases) as loader:
        assert loader.waited_s == 0
        begun = time.perf_counter()
        for _ in range(5):
            next(loader)
        elapsed = time.perf_counter() - begun
        assert 0.8 * elapsed < loader.waited_s <= elapsed
        waited = loader.waited_s
        time.sleep(0.05)
        assert loader.waited_s == waited


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_case_is_an_error_that_names_it(tmp_path: Path, workers: int) -> None:
    cases = write_prepared_phantom(tmp_path, make_task(), cases=2)
    (cases[1].folder / "image.b2nd").write_bytes(b"torn")
    with loading(cases, workers=workers) as loader, pytest.raises(InputError, match=r"case_001.*medi3d preprocess"):
        list(islice(loader, 3))
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_an_error_that_names_the_cases(cases: list[PreparedCase]) -> None:
    with loading(cases, workers=2) as loader:
        next(loader)
        worker, _ = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(Medi3dError, match=r"died.*were being read: .*case_00.*train\.workers: 0"):
            list(islice(loader, 20))
    assert not multiprocessing.active_children()


def test_workers_leave_signals_to_the_training_process(cases: list[PreparedCase]) -> None:
    """A scheduler signals the whole group; training saves, and reads on until it has."""
    with loading(cases, workers=1) as loader:
        next(loader)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid, number)
        for _ in range(6):
            next(loader)


def test_exact_patches_come_as_they_are_stored(cases: list[PreparedCase]) -> None:
    dataset = make_dataset(cases, augment=None)
    with closing(PatchLoader(dataset, None, batch_size=2)) as loader:
        batch = next(loader)
    for row in range(2):
        assert torch.equal(batch["image"][row], dataset[row]["image"])
        assert torch.equal(batch["label"][row], dataset[row]["label"].long())


def test_workers_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers(torch.device("cpu")) == 0
    for cores, processes, expected in ((1, 1, 1), (3, 1, 2), (64, 1, 4), (16, 8, 1), (24, 8, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_workers(torch.device("cuda"), processes=processes) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # 8 processes on two machines
    assert default_workers(torch.device("cuda"), processes=8) == 4
