"""What a case is before it is prepared: where its files lie, or why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RawCase:
    """Where the files of one case lie.

    Args:
        case_id: the case's name; a folder of the store is called so.
        patient_id: whose case it is; it is hashed before anything is written.
        images: one path a channel, or one with all channels.
        label: its label map.
        target: its class index.
        center: a mask whose centre of mass is where the cube is cut.
        frame: which entry of the files' fourth axis it is, where that is time.
    """

    case_id: str
    patient_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    target: int | None = None
    center: Path | None = None
    frame: int | None = None


@dataclass(frozen=True)
class CaseProblem:
    """Why a case cannot be used: one line."""

    case_id: str
    message: str


@dataclass
class RawCases:
    """What a raw folder holds: usable cases, problems, and how many rows were left out for having no label or class."""

    cases: list[RawCase] = field(default_factory=list)
    problems: list[CaseProblem] = field(default_factory=list)
    left_out: int = 0
