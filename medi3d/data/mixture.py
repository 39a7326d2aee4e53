"""Batches of several tasks in turn: each batch is of one task, and every task has its share of them.

Which task a batch is of follows from the shares and the batch's number alone, so that a resumed run, and every process
of a run, goes through the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from medi3d.data.loader import PatchLoader


def order_tasks(shares: Mapping[str, float]) -> Iterator[str]:
    """Yield the task of each batch, without end.

    Each task earns its share with every batch, and the one that has earned most is due: equal shares take turns, and
    the number of a task's batches stays within one or two of its share (with two tasks, within a half).

    Args:
        shares: task → share of the batches, above 0; only their proportions count.

    Example:
        >>> list(islice(order_tasks({"a": 2, "b": 1}), 6))
        ['a', 'b', 'a', 'a', 'b', 'a']
    """
    total = sum(shares.values())
    earned = dict.fromkeys(shares, 0.0)
    while True:
        for task, share in shares.items():
            earned[task] += share
        due = max(earned, key=lambda task: earned[task])
        earned[due] -= total
        yield due


def count_batches(shares: Mapping[str, float], batches: int) -> Counter[str]:
    """Return how many of the first batches are each task's."""
    return Counter(islice(order_tasks(shares), batches))


class MixedLoader:
    """An endless iterator over batches of several tasks.

    Args:
        loaders: task → its batches, from the first that has not been taken.
        shares: see :func:`order_tasks`.
        first: batches that have been taken, of all tasks.
    """

    def __init__(self, loaders: Mapping[str, PatchLoader], shares: Mapping[str, float], *, first: int = 0) -> None:
        self._loaders = loaders
        self._order = islice(order_tasks(shares), first, None)

    def __iter__(self) -> MixedLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        """Return the next batch, as :class:`PatchLoader` gives it, with the name of its ``task``."""
        task = next(self._order)
        return next(self._loaders[task]) | {"task": task}

    @property
    def waited_s(self) -> float:
        """Seconds that the consumer has waited for batches so far."""
        return sum(loader.waited_s for loader in self._loaders.values())

    def close(self) -> None:
        """End the processes that read."""
        for loader in self._loaders.values():
            loader.close()
