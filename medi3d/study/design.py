"""Which runs a comparison of initialisations consists of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from medi3d.config import TaskConfig, dump_task, load_task
from medi3d.errors import ConfigError
from medi3d.models.inits import parse_init

SLICEWISE = "slicewise"
"""The arm that is inflated like the first one but never looks across slices: what the third dimension is worth."""

INITS = ("random", "imagenet-inflated", "imagenet-center", "imagenet-overshoot", SLICEWISE)
"""The arms of a comparison unless others are named."""

ARM_KEYS = ("model.init", "train.seed", "train.cases")
"""What cells differ in; ``model.depth_plan`` too in the arm :data:`SLICEWISE`."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        init: its arm.
        cases: number of training cases; ``None`` is all.
        seed: of split, subset, patches, order and everything that is random in the network: equal seeds are paired.
    """

    init: str
    cases: int | None
    seed: int

    @property
    def name(self) -> str:
        """Of the cell's folder."""
        arm = re.sub(r"[^A-Za-z0-9._-]+", "_", self.init)
        return f"{arm}-{self.cases or 'all'}-{self.seed}"


@dataclass(frozen=True)
class StudyDesign:
    """A comparison of initialisations: every init with every number of training cases and every seed.

    Args:
        task: what all cells share; steps, patch and all else are the same in every cell.
        inits: arms; the first is the one that others are compared with.
        fractions: numbers of training cases, ``None`` for all.
        seeds: how many.

    Raises:
        ConfigError: an unknown init, an arm or fraction named twice, or nothing to compare.
    """

    task: TaskConfig
    inits: tuple[str, ...] = INITS
    fractions: tuple[int | None, ...] = (8, 16, 32, None)
    seeds: int = 5

    def __post_init__(self) -> None:
        for title, values in (("inits", self.inits), ("fractions", self.fractions)):
            if len(set(values)) != len(values) or not values:
                raise ConfigError(f"{title}: give each once and at least one; got {', '.join(map(str, values))}")
        if len(self.inits) < 2:
            raise ConfigError(f"inits: there is nothing to compare {self.inits[0]} with; give two or more")
        if self.seeds < 1:
            raise ConfigError(f"seeds: at least 1; got {self.seeds}")
        for init in self.inits:
            if init != SLICEWISE:
                parse_init(init)

    def cells(self) -> Iterator[Cell]:
        """Yield all cells, seed by seed, so that whatever is finished is paired as far as it goes."""
        for seed in range(self.seeds):
            for cases in self.fractions:
                for init in self.inits:
                    yield Cell(init, cases, seed)

    def configure(self, cell: Cell) -> TaskConfig:
        """Return the configuration of one cell."""
        return load_task(self.task.name, values=dump_task(self.task), overrides=dict(_overrides(cell)))


def _overrides(cell: Cell) -> Mapping[str, object]:
    arm: dict[str, object] = {"model.init": cell.init}
    if cell.init == SLICEWISE:
        arm = {"model.init": "imagenet-inflated", "model.depth_plan": "slicewise"}
    return arm | {"train.seed": cell.seed, "train.cases": cell.cases}
