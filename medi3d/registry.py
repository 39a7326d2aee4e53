"""A named table of interchangeable things: converters, readers, losses, initialisations.

A variant is a row, not a branch. An unknown name raises with the nearest match and the whole list.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from medi3d.errors import ConfigError

T = TypeVar("T")


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, which one was probably meant, and which there are.

    Args:
        kind: what the names stand for, for example ``"task"``.
        name: the name that was not found.
        known: all names that there are.

    Examples:
        >>> unknown_name_message("task", "hipocampus", ["demo", "hippocampus"])
        "unknown task 'hipocampus'; did you mean 'hippocampus'? Known: demo, hippocampus"
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}"


class Registry(Generic[T]):
    """A table from names to things of one kind.

    Args:
        kind: what a row is, in the singular; used in error messages.

    Examples:
        >>> shapes: Registry[int] = Registry("shape")
        >>> _ = shapes.add("triangle", 3)
        >>> shapes["triangle"]
        3
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._rows: dict[str, T] = {}

    def add(self, name: str, row: T) -> T:
        """Add a row; a name that is taken raises ``ValueError``."""
        if name in self._rows:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._rows[name] = row
        return row

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds what it decorates under ``name``."""
        return lambda row: self.add(name, row)

    def __getitem__(self, name: str) -> T:
        """Return the row called ``name``.

        Raises:
            ConfigError: there is no such row; the message holds the nearest match and the list.
        """
        if name not in self._rows:
            raise ConfigError(unknown_name_message(self.kind, name, self._rows))
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._rows))

    def __len__(self) -> int:
        return len(self._rows)
