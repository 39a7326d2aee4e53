"""Where the work of many cases runs: in this process, in several, or on a Dask cluster.

:func:`run_all` keeps no more cases under way than memory allows, and names the case whose process was killed, so that
the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar

from medi3d._version import __version__
from medi3d.errors import InputError, MissingDependencyError
from medi3d.preprocess.scheduling.budget import Budget

T = TypeVar("T")
R = TypeVar("R")

_PRELOADED = ("__main__", "medi3d.preprocess.scheduling.jobs")
_ANSWER_SECONDS = 20


@dataclass(frozen=True, eq=False)
class Piece(Generic[T]):
    """One piece of work and the memory that it needs."""

    what: T
    needed_bytes: int


class Pool(Protocol):
    """A place to work in."""

    @property
    def budget(self) -> Budget:
        """Memory of the place."""

    @property
    def width(self) -> int:
        """Most pieces handed out at a time: two for each process, so that none waits for this one."""

    @property
    def killed(self) -> type[BaseException]:
        """What a future raises where its process was killed."""

    def open(self, pieces: int) -> AbstractContextManager[Executor]:
        """Start what it takes to work on so many pieces."""


@dataclass(frozen=True)
class Processes:
    """Processes of this machine.

    Args:
        workers: how many.
        budget: their memory.
    """

    workers: int
    budget: Budget
    killed: type[BaseException] = BrokenExecutor

    @property
    def width(self) -> int:
        """Two pieces a process."""
        return 2 * self.workers

    @contextmanager
    def open(self, pieces: int) -> Iterator[Executor]:
        """Start a process for each piece, at most ``workers``."""
        method = start_method()
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(list(_PRELOADED))
        executor = ProcessPoolExecutor(
            min(self.workers, pieces), mp_context=context, initializer=_start_worker, initargs=(method,)
        )
        with warnings.catch_warnings(), _interrupts_held():  # warnings of threads beside a fork, see start_method
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
            executor.submit(_started)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Cluster:
    """A Dask cluster; its machines see the raw data and the store under the same paths.

    Args:
        address: of its scheduler, ``tcp://host:port``.

    Raises:
        MissingDependencyError: the extra ``dask`` is not installed.
        InputError: nobody answers, there is no worker, or the workers have another medi3d.
    """

    address: str

    @cached_property
    def _workers(self) -> list[dict[str, Any]]:
        with self._connect() as client:
            workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
            versions = set(client.run(_installed_version).values())
        if not workers:
            raise InputError(f"the Dask scheduler {self.address} has no workers; start some with `dask worker`")
        if versions != {__version__}:
            raise InputError(
                f"the workers of {self.address} have medi3d {', '.join(sorted(versions))}, this is {__version__}; "
                "install the same version everywhere"
            )
        return workers

    @property
    def budget(self) -> Budget:
        """What the workers may use: in all, and the least of them for a single case."""
        limits = [int(worker["memory_limit"]) or sys.maxsize for worker in self._workers]  # 0 is no limit
        return Budget(sum(limits), min(limits)).reduced()

    @property
    def width(self) -> int:
        """Two pieces a thread of a worker."""
        return 2 * sum(int(worker["nthreads"]) for worker in self._workers)

    @property
    def killed(self) -> type[BaseException]:
        """What Dask raises for a piece that has killed several workers."""
        from distributed import KilledWorker

        killed: type[BaseException] = KilledWorker
        return killed

    @contextmanager
    def open(self, pieces: int) -> Iterator[Executor]:
        """Connect; what is still under way when the block ends is cancelled."""
        with self._connect() as client, client.get_executor(pure=False) as executor:
            yield executor

    def _connect(self) -> Any:
        try:
            from distributed import Client
        except ImportError:
            raise MissingDependencyError("--scheduler needs Dask: pip install 'medi3d[dask]'") from None
        try:
            return Client(self.address, timeout=_ANSWER_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"--scheduler {self.address}: no Dask scheduler answers there ({error})") from None


def run_all(
    function: Callable[[T], R], pieces: Sequence[Piece[T]], pool: Pool | None
) -> Generator[tuple[T, R | None], None, None]:
    """Do all pieces of work.

    Args:
        function: a module's function, so that other processes find it; what it raises ends the run.
        pieces: the work.
        pool: where it is done, the largest first; ``None`` is this process, in the order given.

    Yields:
        Each piece and its result, in order of completion; ``None`` in place of the result where the process that worked
        on it was killed, twice: once beside others, then alone.
    """
    if pool is None:
        yield from ((piece.what, function(piece.what)) for piece in pieces)
        return
    waiting = sorted(pieces, key=lambda piece: -piece.needed_bytes)
    while waiting:
        suspects: list[Piece[T]] = []
        yield from _run_until_killed(function, waiting, pool, suspects)
        for piece in suspects:
            again: list[Piece[T]] = []
            yield from _run_until_killed(function, [piece], pool, again)
            yield from ((lost.what, None) for lost in again)


def _run_until_killed(
    function: Callable[[T], R], waiting: list[Piece[T]], pool: Pool, suspects: list[Piece[T]]
) -> Generator[tuple[T, R | None], None, None]:
    """Work off ``waiting`` until it is empty or a process was killed; ``suspects`` gets what was under way then."""
    under_way: dict[Future[R], Piece[T]] = {}
    with pool.open(len(waiting)) as executor:
        while (waiting and not suspects) or under_way:
            for piece in [] if suspects else _take_admitted(waiting, under_way.values(), pool):
                try:
                    under_way[executor.submit(function, piece.what)] = piece
                except pool.killed:
                    suspects.append(piece)
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                piece = under_way.pop(future)
                if isinstance(future.exception(), pool.killed):
                    suspects.append(piece)
                else:
                    yield piece.what, future.result()


def _take_admitted(waiting: list[Piece[T]], under_way: Collection[Piece[T]], pool: Pool) -> list[Piece[T]]:
    """Take from ``waiting`` what may start now: the largest that fits beside what is under way, and so on."""
    needed = [piece.needed_bytes for piece in under_way]
    admitted: list[Piece[T]] = []
    for piece in waiting:
        if len(needed) >= pool.width:
            break
        if pool.budget.admits(piece.needed_bytes, needed):
            needed.append(piece.needed_bytes)
            admitted.append(piece)
    for piece in admitted:
        waiting.remove(piece)
    return admitted


def start_method() -> Literal["fork", "forkserver", "spawn"]:
    """Return the cheapest safe way to start processes.

    A fork shares what is imported (two workers, 200 small cases: 0.2 CPU-s; ``spawn`` took 1.7), but a child inherits
    the locks that other threads hold. So it is taken on Linux only, where Python runs one thread and PyTorch, with its
    pools of threads, is not there; the idle threads that OpenBLAS and blosc2's numexpr start do no harm, because no
    worker waits for them. Elsewhere a server imports once and forks; Windows imports anew in every process.
    """
    if sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules:
        return "fork"
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait until the workers that are started meanwhile are set to ignore it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(method: str) -> None:
    """Leave Ctrl-C to the parent, end with it, and use one thread of numerical libraries."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    if "SimpleITK" in sys.modules:
        sys.modules["SimpleITK"].ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _started() -> None:
    """Do nothing: the first piece of work starts the processes."""


def _end_with_parent() -> None:
    """Keep no process, its memory and the store's lock alive after a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _installed_version() -> str:
    return __version__
