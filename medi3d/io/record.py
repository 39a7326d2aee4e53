"""What preprocessing did to a case. Every step maps one grid to another, so two grids are all that undoing needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medi3d.volume import Grid


@dataclass(frozen=True)
class Record:
    """The grid a case came on, the grid it was prepared on, and what was done in between.

    Args:
        native: the file's own grid.
        prepared: the grid of the prepared arrays.
        steps: one mapping of plain JSON values a step, for the reader; nothing is computed from it.
    """

    native: Grid
    prepared: Grid
    steps: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types (mappings, lists, numbers, strings)."""
        return {
            "native": _grid_to_json(self.native),
            "prepared": _grid_to_json(self.prepared),
            "steps": [dict(step) for step in self.steps],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Read back what :meth:`to_json` gave; affines come back bit for bit."""
        return cls(
            native=_grid_from_json(values["native"]),
            prepared=_grid_from_json(values["prepared"]),
            steps=tuple(dict(step) for step in values["steps"]),
        )


def _grid_to_json(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _grid_from_json(values: Mapping[str, Any]) -> Grid:
    return Grid(tuple(values["shape"]), values["affine"])
