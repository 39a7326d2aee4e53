"""Options that several commands share, and where things lie unless a flag says otherwise."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from medi3d.errors import ConfigError

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
RUNS = Path("runs")


class Checkpoint(str, Enum):
    """Which of a run's checkpoints is used."""

    best = "best"
    last = "last"


def parse_assignments(assignments: list[str]) -> dict[str, object]:
    """Turn ``--set train.steps=100`` into dotted keys and YAML values.

    Raises:
        ConfigError: one of them holds no ``=``.
    """
    pairs = [text.partition("=") for text in assignments]
    wrong = next((text for text, (_, sign, _) in zip(assignments, pairs, strict=True) if not sign), None)
    if wrong is not None:
        raise ConfigError(f"--set {wrong}: write section.key=value, for example --set train.steps=100")
    return {key.strip(): value for key, _, value in pairs}
