"""What becomes of memory that is freed on a CPU: kept for the next step or window, or given back.

glibc gives large blocks back to the system when they are freed, so every training step and every window maps its
tensors anew, and the system clears each page again: 5 to 12 % of a step on one core, and of a prediction of 20 classes
without its network 40 %. Kept memory is what the next one needs anyway. Only where feature maps are computed again to
save memory is it worth less than what it costs: blocks of many sizes come and go, and holes between those that stay
made up a third of the process (tests/planning/test_trial.py).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1
_OWN_MAPPING = 2**17


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to its peak.

    Returns:
        Whether it could be set: the allocator is glibc's.
    """
    return _set_options({_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: _LARGEST})


def give_back_freed_memory() -> bool:
    """Let this process give each block of over 128 KiB back at once; glibc by itself keeps ever larger ones.

    Returns:
        Whether it could be set: the allocator is glibc's.
    """
    return _set_options({_M_MMAP_THRESHOLD: _OWN_MAPPING, _M_TRIM_THRESHOLD: _OWN_MAPPING})


def _set_options(options: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return all(mallopt(option, value) for option, value in options.items())
