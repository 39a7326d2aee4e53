"""Value types of the schema: what a key takes, checked when a task is loaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

STRICT_KEYS = ConfigDict(extra="forbid")

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Percentage = Annotated[float, Field(ge=0, le=100)]


def as_triple(value: object) -> object:
    """Let a scalar stand for three equal entries, as in ``--spacing 1.0``."""
    return (value, value, value) if isinstance(value, int | float) else value


SpacingTriple = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(as_triple)]
Spacing = SpacingTriple | Literal["median", "native"]
"""Millimetres along (D, H, W); or the data set's median, or each case's own spacing."""
SizeTriple = Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], BeforeValidator(as_triple)]
