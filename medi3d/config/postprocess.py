"""The steps of post-processing: what each takes, and the defaults. :mod:`medi3d.infer.postprocess` does them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from medi3d.config.values import STRICT_KEYS, Positive, PositiveInt
from medi3d.registry import unknown_name_message

Labels: TypeAlias = tuple[PositiveInt, ...]
"""Label values that a step acts on; none named: every label that the map holds."""

Connectivity: TypeAlias = Literal[6, 18, 26]
"""Neighbours of a voxel: those that share a face; or an edge; or a corner."""


@dataclass(frozen=True, kw_only=True)
class LargestComponent:
    """Keep the largest connected piece of each label; of equal ones, all."""

    __pydantic_config__ = STRICT_KEYS
    step: Literal["largest_component"] = "largest_component"
    labels: Labels = ()
    together: bool = False
    """Whether the labels count as one structure, of which one piece is kept, in place of one piece of each."""
    connectivity: Connectivity = 26


@dataclass(frozen=True, kw_only=True)
class RemoveSmall:
    """Remove the connected pieces of each label that are smaller than a volume."""

    __pydantic_config__ = STRICT_KEYS
    step: Literal["remove_small"] = "remove_small"
    min_ml: Positive
    labels: Labels = ()
    together: bool = False
    """As of :class:`LargestComponent`."""
    connectivity: Connectivity = 26


@dataclass(frozen=True, kw_only=True)
class FillHoles:
    """Fill background that the labels enclose; a voxel takes the label that is nearest in millimetres."""

    __pydantic_config__ = STRICT_KEYS
    step: Literal["fill_holes"] = "fill_holes"
    labels: Labels = ()
    """Holes that touch another label than these, or the border of the volume, stay."""
    max_ml: Positive | None = None
    """Larger holes stay; ``None`` fills all."""


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """Smooth the labels' surfaces: each voxel takes what most of a Gaussian neighbourhood has."""

    __pydantic_config__ = STRICT_KEYS
    step: Literal["smooth"] = "smooth"
    sigma_mm: Positive
    labels: Labels = ()


_STEPS: Mapping[str, type] = {
    "largest_component": LargestComponent,
    "remove_small": RemoveSmall,
    "fill_holes": FillHoles,
    "smooth": Smooth,
}


def _check_names(value: object) -> object:
    """Say which steps there are, and what the one that is meant takes."""
    if not isinstance(value, dict):
        return value
    name = str(value.get("step"))
    if name not in _STEPS:
        raise ValueError(f"name a step, as in {{step: fill_holes}}; {unknown_name_message('step', name, _STEPS)}")
    known = [field.name for field in fields(_STEPS[name])]
    unknown = next((str(key) for key in value if key not in known), None)
    if unknown is not None:
        raise ValueError(unknown_name_message(f"key of {name}", unknown, known))
    return value


PostprocessStep: TypeAlias = Annotated[
    LargestComponent | RemoveSmall | FillHoles | Smooth, Field(discriminator="step"), BeforeValidator(_check_names)
]
"""One entry of ``infer.postprocess``: ``{step: remove_small, labels: [1], min_ml: 0.05}``."""
