"""What a command costs: CPU seconds and peak memory of it and all its children."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "BLOSC_NTHREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    )
}
"""Environment in which every library keeps to one thread."""

_SAMPLE_S = 0.05


@dataclass(frozen=True)
class Cost:
    """CPU and wall seconds, and MiB: of the process tree (the sum of what its processes hold at one time)."""

    cpu_s: float
    wall_s: float
    peak_mib: float

    def __str__(self) -> str:
        return f"{self.cpu_s:.2f} | {self.wall_s:.1f} | {self.peak_mib:.0f}"


def processor_name() -> str:
    """Return the name of the processor."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None) -> Cost:
    """Run a command with one thread a process and return what it cost.

    CPU seconds are the kernel's, of the process and of every child that was waited for. Memory is sampled 20 times a
    second: the sum of what the processes hold, pages that several share counted once; and no less than what the largest
    of them held, which the kernel knows exactly (but for what the caller held itself: a child starts as its parent's
    copy, so call this from a small process). Linux only.

    Args:
        command: program and arguments.
        log: file for its output.
        env: further environment variables.

    Raises:
        RuntimeError: the command failed; the message ends with the end of its output.
    """
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=output,
            env={**os.environ, **ONE_THREAD, **(env or {})},
        )
        peak = [0]
        sampler = threading.Thread(target=_sample_memory, args=(process.pid, peak), daemon=True)
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.join()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {process.returncode}\n{tail}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, max(peak[0], usage.ru_maxrss * 1024) / 2**20)


def _sample_memory(pid: int, peak: list[int]) -> None:
    """Keep the largest sum of memory of a process and its descendants in ``peak[0]`` until it ends."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            held = 0
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # a zombie is one too
                    held += process.memory_full_info().pss
            peak[0] = max(peak[0], held)
            time.sleep(_SAMPLE_S)


def medians(runs: Mapping[str, Callable[[], Cost]], repeats: int) -> dict[str, Cost]:
    """Run each of several things in turns and return the medians of their costs."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            costs[name].append(run())
    return {
        name: Cost(
            *(statistics.median(getattr(cost, part) for cost in found) for part in ("cpu_s", "wall_s", "peak_mib"))
        )
        for name, found in costs.items()
    }
