"""One thread for the matrix libraries: products this small are slower, and cost more, on many threads."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[Any]:
    """Hold the matrix libraries that are loaded to one thread within a block.

    Within another such block it costs nothing, so it is also entered around a whole data set: letting the threads
    go and calling them back for every product doubled the CPU time of preparing the hippocampi.
    """
    limit: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return limit


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
