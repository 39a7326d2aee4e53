"""Signals become a request, and are what they were afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medi3d.train.stop import STOP_SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def _hear_interrupts() -> Any:
    """A shell's background ignores Ctrl-C; and each test finds and leaves the handlers that it must."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_each_signal_is_heard_and_its_handler_restored(number: signal.Signals, code: int) -> None:
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    with StopRequest() as stop:
        assert (stop.requested, stop.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (stop.requested, stop.signal, stop.exit_code) == (True, number, code)
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


def test_handlers_are_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="in between"), StopRequest():
        raise RuntimeError("in between")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_interrupt_interrupts_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_termination_changes_nothing() -> None:
    """Batch systems repeat it."""
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.requested


def test_outside_the_main_thread_it_says_that_it_hears_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
    assert "training runs outside the main thread: signals do not reach it" in caplog.text


def test_processes_forked_meanwhile_leave_the_stop_to_the_first() -> None:
    with StopRequest() as stop:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            for number in STOP_SIGNALS:
                signal.raise_signal(number)
            os.write(writer, b"heard" if stop.requested else b"alive")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.read(reader, 9) == b"alive"
        os.close(reader)
        os.close(writer)


def test_one_process_agrees_with_itself() -> None:
    accelerator: Any = SimpleNamespace(num_processes=1)
    with StopRequest() as stop:
        assert not stop.agreed(accelerator)
        signal.raise_signal(signal.SIGTERM)
        assert stop.agreed(accelerator)


def test_all_stop_when_one_has_heard() -> None:
    others = torch.tensor([0, int(signal.SIGTERM), 0])
    accelerator: Any = SimpleNamespace(
        num_processes=4, device="cpu", gather=lambda number: torch.cat([others, number[None]])
    )
    with StopRequest() as stop:
        assert stop.agreed(accelerator)
        assert stop.signal == signal.SIGTERM
        assert stop.exit_code == 143
        others.zero_()
    with StopRequest() as stop:
        assert not stop.agreed(accelerator)
        assert not stop.requested
        signal.raise_signal(signal.SIGUSR1)
        assert stop.agreed(accelerator)
        assert stop.signal == signal.SIGUSR1


_TWO_PROCESSES = """
import os, signal, sys
from accelerate import Accelerator
from medi3d.train.stop import StopRequest

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
with StopRequest() as stop:
    for step in range(10):
        if step == 4 and accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        if stop.agreed(accelerator):
            break
    print(accelerator.process_index, step, stop.exit_code, flush=True)
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_real_processes_stop_at_the_same_step() -> None:
    command = [sys.executable, "-c", _TWO_PROCESSES]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"}
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert [output.split() for output, _ in answers] == [["0", "4", "138"], ["1", "4", "138"]]
