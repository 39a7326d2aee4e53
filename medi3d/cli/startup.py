"""How a command that is over in seconds begins: nothing is searched for garbage while libraries are loaded."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Import torch and what goes with it without Python's collector, which would find nothing.

    The imports make 0.6 million objects that it looks after, and all of them stay. Searching them again and again while
    they come, and once more when the process ends, took 1.7 s of the 4.9 s of ``import torch, timm``. What is there at
    the end of the block is never searched again (`gc.freeze`); what is made later is, as always. In a process that has
    torch already nothing is to be spared, and nothing is done.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
