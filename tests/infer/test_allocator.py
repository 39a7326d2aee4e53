"""What becomes of freed memory: measured on processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc"), pytest.mark.slow]

_FAULTS = """
import resource, sys, torch
from medi3d.infer.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():  # 48 MB: over what glibc learns to keep by itself
    torch.ones(12_000_000).add_(1)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

_HOLES = """
import sys, psutil, torch
from medi3d.infer.allocator import give_back_freed_memory, keep_freed_memory
assert {"keep": keep_freed_memory, "give": give_back_freed_memory}[sys.argv[1]]()
before = psutil.Process().memory_info().rss
blocks = [torch.ones(1_000_000) for _ in range(40)]  # 4 MB each
del blocks[::2]
print(psutil.Process().memory_info().rss - before)
"""


def measure(program: str, how: str) -> int:
    command = [sys.executable, "-c", program, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_kept_memory_is_not_mapped_anew() -> None:
    assert 4 * measure(_FAULTS, "keep") < measure(_FAULTS, "give")


def test_blocks_that_are_given_back_leave_no_holes() -> None:
    assert measure(_HOLES, "keep") > 140e6
    assert 70e6 < measure(_HOLES, "give") < 95e6
