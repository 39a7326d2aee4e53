"""Batches on the training device, read ahead by processes of their own where there is an accelerator to keep busy.

Processes and not threads: blosc2 unpacks chunks under the interpreter's lock, 4 ms for a patch of 96³ voxels.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medi3d.data.augment import Augmenter
from medi3d.data.patches import PatchDataset, collate_patches, stack_patches
from medi3d.errors import Medi3dError

_AHEAD = 2
"""Batches that each worker reads ahead."""
_MOST_WORKERS = 4
"""One worker reads 50 to 100 patches of 96³ voxels a second, far more than a network takes."""
_DYING_S = 5.0
_PRELOADED = ["medi3d.data.loader"]


class PatchLoader:
    """An endless iterator over batches on the training device.

    Process p of P takes, of the k-th batch of all, ``batch_size`` numbers from ``first + (k·P + p)·batch_size`` on, so
    that P processes see what one process would see with batches P times as large.

    Args:
        dataset: the patches.
        augmenter: augments each batch on the device; ``None`` for exact patches as they are.
        batch_size: patches a batch and process.
        first: number of the run's, or resumed run's, first patch.
        process: rank of this process.
        processes: how many there are.
        workers: processes that read; 0 reads in this one. ``None``: none beside a CPU, where they would fight with the
            training for its cores; beside an accelerator one for each core that this process may use but one, at most
            four.
        device: where batches go.

    Attributes:
        waited_s: seconds that the consumer has waited for batches so far, reading and, on a CPU, augmenting included.

    Example:
        ``with closing(PatchLoader(dataset, augmenter, batch_size=2)) as batches: batch = next(batches)``
    """

    def __init__(
        self,
        dataset: PatchDataset,
        augmenter: Augmenter | None,
        *,
        batch_size: int,
        first: int = 0,
        process: int = 0,
        processes: int = 1,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset, self.augmenter = dataset, augmenter
        self.device = torch.device(device)
        self.workers = default_workers(self.device, processes=processes) if workers is None else workers
        self.waited_s = 0.0
        self._numbers = (
            range(begin, begin + batch_size)
            for begin in itertools.count(first + process * batch_size, processes * batch_size)
        )
        self._due: list[range] = []
        earlier = multiprocessing.active_children()
        self._batches: Iterator[Any] | None = self._read_ahead() if self.workers else self._read()
        self._processes = [child for child in multiprocessing.active_children() if child not in earlier]

    def __iter__(self) -> PatchLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        """Return the next batch.

        Returns:
            ``image`` ``(B, C, D, H, W)`` float32, ``label`` ``(B, D, H, W)`` int64 and ``target`` ``(B,)`` int64 where
            the cases have them, ``case_id``, ``number`` ``(B,)`` int64; with mixup what
            :class:`~medi3d.data.augment.Augmenter` adds.

        Raises:
            Medi3dError: a case cannot be read, or a process that reads died; the message names the cases.
            StopIteration: the loader was closed.
        """
        if self._batches is None:
            raise StopIteration
        begun = time.perf_counter()
        read = self._next_read()
        if isinstance(read, Medi3dError):
            self.close()
            raise read
        batch = _move(read, self.device)
        batch = stack_patches(batch) if self.augmenter is None else self.augmenter(batch)
        self.waited_s += time.perf_counter() - begun
        return batch

    def close(self) -> None:
        """End the processes that read; the loader gives no more batches."""
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        if shut_down is not None:  # else they live as long as anything, such as a traceback, refers to the iterator
            shut_down()
        self._batches = None
        for process in self._processes:  # one that hangs in a read: they do not listen to SIGTERM
            process.kill()
            process.join()
        self._processes = []

    def _next_read(self) -> Any:
        assert self._batches is not None
        try:
            read = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            # its connection may break a moment before its end is known
            if not wait([process.sentinel for process in self._processes], timeout=_DYING_S):
                raise
            due = [number for numbers in self._due for number in numbers]
            names = list(dict.fromkeys(self.dataset.case_of(number).case_id for number in due))
            self.close()
            raise Medi3dError(
                f"a process that reads patches died ({error}) while these cases were being read: {', '.join(names)}; "
                "it may have run out of memory (train.workers: 0 reads in the training process)"
            ) from error
        if self._due:
            self._due.pop(0)
        return read

    def _read(self) -> Iterator[Any]:
        reader = _BatchReader(self.dataset)
        for numbers in self._numbers:
            yield reader[numbers]

    def _read_ahead(self) -> Iterator[Any]:
        # A server that has imported everything and has no threads forks workers in no time, and without what this
        # process holds (an accelerator's context, threads that hold locks).
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload(_PRELOADED)
        loader = DataLoader(
            _BatchReader(self.dataset),
            batch_size=None,
            collate_fn=_leave,
            sampler=self._recorded(),
            num_workers=self.workers,
            prefetch_factor=_AHEAD,
            multiprocessing_context=context,
            worker_init_fn=_begin_worker,
            pin_memory=self.device.type == "cuda",
            # Its own, so that starting leaves the state that a checkpoint has restored (dropout) as it is.
            generator=torch.Generator(),
        )
        return iter(loader)

    def _recorded(self) -> Iterator[range]:
        """Yield the numbers of batches and remember those that have not come back."""
        for numbers in self._numbers:
            self._due.append(numbers)
            yield numbers


class _BatchReader(Dataset[Any]):
    """Whole batches, as a map from patch numbers to a batch or to the error that kept it from being read."""

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, Any] | Medi3dError:
        try:
            return collate_patches([self.dataset[number] for number in numbers])
        except Medi3dError as error:  # passed on as it is: torch's loader would put a traceback into the message
            return error


def default_workers(device: torch.device, *, processes: int = 1) -> int:
    """Return how many processes read ahead where the configuration leaves it open, see :class:`PatchLoader`."""
    if device.type == "cpu":
        return 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // local - 1, 1), _MOST_WORKERS)


def _leave(batch: Any) -> Any:
    """Return a batch as it was read; torch's own function would turn tuples into lists."""
    return batch


def _begin_worker(_: int) -> None:
    """Leave it to the training process what a signal to the whole group means: it saves before it ends its workers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    """End this worker when the training process is gone, killed for instance.

    torch's own watch does not see it: it looks at the worker's parent, which is the server that forked it, and that one
    waits for its workers.
    """
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


def _move(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Copy a batch's tensors to the device, from pinned memory without waiting."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [one.to(device, non_blocking=True) for one in value]
        return value

    # numbers stay here: they are read to draw from, and reading them back would wait for the device
    return {key: value if key == "number" else moved(value) for key, value in batch.items()}
