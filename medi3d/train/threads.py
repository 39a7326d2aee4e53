"""How many threads the tensor library takes on a CPU, found out while training.

Where other processes want the same cores, threads wait for each other at every small operation, and one thread alone is
many times faster. So the first steps are taken with one thread and with all that this process may have, in turn, and
the faster number stays. Where steps become far slower later, the question is asked again.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")
_WARM_UP, _ROUNDS = 1, 2
_MUCH_SLOWER = 3.0
"""Times the usual step from which the number of threads is put into question."""
_SLOW_STEPS = 3
"""In a row: single steps are slow for many reasons."""


class Threads:
    """The number of threads of a run's steps.

    Steps with other numbers of threads differ in their last bits, so a resumed run takes over what was found.

    Args:
        given: ``train.threads``; it is not put into question.
        most: what this process may have, see :func:`count_cores`.
        found: what was found before, for a run that goes on.
    """

    def __init__(self, given: int | None, *, most: int, found: int | None = None) -> None:
        self._given = given
        self._candidates = [most, 1] if most > 1 else [1]
        self.chosen = given or (min(found, most) if found else None) or (1 if most == 1 else None)
        self._times: dict[int, list[float]] = {number: [] for number in self._candidates}
        self._usual: float = math.inf
        self._steps, self._slow = 0, 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run one step with the number that is due, and learn from how long it takes."""
        number = self.chosen or self._candidates[self._steps % len(self._candidates)]
        if torch.get_num_threads() != number:
            torch.set_num_threads(number)
        begun = time.perf_counter()
        yield
        self._learn(number, time.perf_counter() - begun)

    def _learn(self, number: int, seconds: float) -> None:
        self._steps += 1
        if self.chosen is None:
            if self._steps > _WARM_UP * len(self._candidates):
                self._times[number].append(seconds)
            if all(len(times) == _ROUNDS for times in self._times.values()):
                self._choose()
        elif self._given is None and len(self._candidates) > 1:
            self._usual = min(self._usual, seconds)
            self._slow = self._slow + 1 if seconds > _MUCH_SLOWER * self._usual else 0
            if self._slow >= _SLOW_STEPS and self.chosen > 1:
                logger.warning(
                    "steps take %.1f s in place of %.1f s, as when other processes want the same cores; trying one "
                    "thread in place of %d",
                    *(seconds, self._usual, self.chosen),
                )
                self._ask_again()

    def _choose(self) -> None:
        best = {number: min(times) for number, times in self._times.items()}
        self.chosen = min(best, key=lambda number: best[number])
        self._usual = best[self.chosen]
        told = ", ".join(f"{seconds:.2f} s with {number}" for number, seconds in best.items())
        logger.info("a step takes %s threads; going on with %d", told, self.chosen)
        if torch.get_num_threads() != self.chosen:
            torch.set_num_threads(self.chosen)

    def _ask_again(self) -> None:
        self.chosen, self._steps, self._slow, self._usual = None, 0, 0, math.inf
        self._times = {number: [] for number in self._candidates}


@contextmanager
def restored_threads() -> Iterator[None]:
    """Bring the number of threads back to what it was when the block ends."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def count_cores(*, processes: int = 1) -> int:
    """Return how many threads a process may have: those of its cores that neither system nor user has denied it.

    Counted are the cores that it is bound to, a container's quota of processor time, what SLURM has given to the task,
    and the library's own number, which follows ``OMP_NUM_THREADS``.

    Args:
        processes: of the run on this machine, which share what is not divided among them already.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = min(bound, _read_quota(_CGROUP)) // processes
    own = [int(text) for text in [os.environ.get("SLURM_CPUS_PER_TASK", "")] if text.isdecimal()]
    return max(1, min([shared, torch.get_num_threads(), *own]))


def _read_quota(root: Path) -> int:
    """Return a container's quota in whole cores; a large number where it has none (control groups, version 2 and 1)."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return 1 << 16
    return max(1, int(quota) // int(period)) if quota.isdecimal() and int(quota) > 0 else 1 << 16
