"""Value types of the schema: what a key takes, checked when a task is loaded."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from medi3d.errors import ConfigError

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


def _name_no(value: object) -> object:
    """Take YAML's ``no``, which it reads as false, as the word."""
    return "no" if value is False else value


Precision = Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_name_no)]
"""Number format of the forward pass; ``no`` stays in float32."""


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``10m``, ``1h30m``, ``45s``.

    Raises:
        ConfigError: it is none.

    Examples:
        >>> parse_duration("1h30m")
        5400.0
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if not match or not any(match.groups()):
        raise ConfigError(f"{text!r} is no duration; write 45s, 10m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ConfigError(f"{text!r} is no time at all")
    return total


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


Duration = Annotated[str, AfterValidator(_check_duration)]
"""A length of time, kept as it was written; :func:`parse_duration` gives its seconds."""
