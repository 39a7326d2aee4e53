"""Memory: how much there is, and which cases may be under way together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medi3d.errors import ConfigError

SHARE = 0.8
"""Share of the available memory that is used unless the user says how much."""

_CGROUP = Path("/sys/fs/cgroup")
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Budget:
    """Memory that all cases under way may use together, and the most that one of them may use.

    Args:
        total_bytes: for all processes together.
        case_bytes: for one case: what one process (of a cluster: one machine) has.

    Example:
        >>> Budget(100, 100).admits(60, [50]), Budget(100, 100).admits(300, [])
        (False, True)
    """

    total_bytes: int
    case_bytes: int

    @classmethod
    def of(cls, memory_bytes: int | None) -> Budget:
        """Return this machine's: so many bytes, or else the share of what is free."""
        return cls(memory_bytes, memory_bytes) if memory_bytes else cls(*[available_bytes()] * 2).reduced()

    def reduced(self) -> Budget:
        """Return the share of it that is used unless the user says how much."""
        return Budget(int(SHARE * self.total_bytes), int(SHARE * self.case_bytes))

    def admits(self, needed_bytes: int, under_way_bytes: Iterable[int]) -> bool:
        """Tell whether a case may start beside others; alone, it always may."""
        used = list(under_way_bytes)
        return not used or sum(used) + needed_bytes <= self.total_bytes


def available_bytes() -> int:
    """Return how much memory is free: of the machine, or of the container (control group) where that has less."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_free_in_control_group(_CGROUP)])


def parse_bytes(text: str) -> int:
    """Read an amount of memory.

    Raises:
        ConfigError: no number with K, M, G or T behind it.

    Example:
        >>> parse_bytes("8G"), parse_bytes("1.5 GB")
        (8000000000, 1500000000)
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        amount = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    except ValueError:
        amount = 0.0
    if amount < 1:
        raise ConfigError(f"--memory {text}: give an amount such as 8G or 500M")
    return int(amount)


def _free_in_control_group(root: Path) -> list[int]:
    """Return what is left to this process's control group, version 2 or 1; nothing where there is no limit."""
    found = []
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, used = (root / limit).read_text().strip(), (root / usage).read_text().strip()
            # pages of files that were read count as used, but the system drops them when memory is asked for
            statistics = dict(line.split() for line in (root / limit).with_name("memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdecimal():
            found.append(max(int(most) - int(used) + int(statistics.get("inactive_file", 0)), 0))
    return found
