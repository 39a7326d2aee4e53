"""The conversion report: what became of each parameter and buffer of a 2D network.

It compares the two state dicts by name and value, so it knows nothing of how a layer was converted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Fate: TypeAlias = Literal["inflated", "copied", "adapted", "dropped", "added"]
FATES: tuple[Fate, ...] = get_args(Fate)
Shape: TypeAlias = tuple[int, ...]

_LONG_LIST = 8


@dataclass(frozen=True)
class ParameterFate:
    """What became of one parameter or buffer.

    Args:
        name: in the 2D network, or in the 3D one where it was added.
        fate: ``inflated``: a 2D kernel gained a depth axis and sums to itself over it; ``copied``: shape and values
            are equal; ``adapted``: another shape or other values, as a stem's whose channels changed; ``dropped``: the
            3D network has no such name, as a classifier's head in an encoder; ``added``: only the 3D network has it.
        shape_2d: ``None`` where it was added.
        shape_3d: ``None`` where it was dropped.
    """

    name: str
    fate: Fate
    shape_2d: Shape | None
    shape_3d: Shape | None


def compare_parameters(source: Mapping[str, Tensor], inflated: Mapping[str, Tensor]) -> list[ParameterFate]:
    """Say of each tensor of a 2D network what became of it in 3D; names are matched as by `match_names`.

    Args:
        source: state dict of the 2D network, the whole classifier if its head should be accounted for.
        inflated: state dict of the 3D network.

    Returns:
        One entry a tensor, in the order of ``source``, then what was added.

    Example:
        >>> from torch import nn
        >>> from medi3d.inflation import inflate
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False))
        >>> source = {**net.state_dict(), "head.weight": torch.zeros(2, 4)}
        >>> [f"{p.name} {p.fate}" for p in compare_parameters(source, inflate(net).state_dict())][:2]
        ['0.weight inflated', '0.bias copied']
    """
    names = match_names(source, inflated)
    matched = set(names.values())
    prefix = _find_prefix(source, inflated)
    fates = []
    for name, tensor in source.items():
        found = inflated[names[name]] if name in names else None
        shape = None if found is None else tuple(found.shape)
        fates.append(ParameterFate(name, _judge(tensor, found), tuple(tensor.shape), shape))
    for name in (name for name in inflated if name not in matched):
        fates.append(ParameterFate(name.removeprefix(prefix), "added", None, tuple(inflated[name].shape)))
    return fates


def match_names(source: Iterable[str], other: Iterable[str]) -> dict[str, str]:
    """Find the names of one network's tensors among another's, which may wrap it.

    They are compared below the prefix that the wrapper puts before them (``body.``), and with ``.`` and ``_`` taken as
    one, because timm's feature extractors write ``stages.0`` as ``stages_0``.

    Returns:
        Name in ``source`` → name in ``other``, where there is one.

    Example:
        >>> match_names(["stages.0.weight", "head.bias"], ["body.stages_0.weight", "body.extra"])
        {'stages.0.weight': 'body.stages_0.weight'}
    """
    prefix = _find_prefix(source, other)
    names = {_flatten(name.removeprefix(prefix)): name for name in other if name.startswith(prefix)}
    return {name: names[_flatten(name)] for name in source if _flatten(name) in names}


def count_fates(fates: Iterable[ParameterFate]) -> dict[Fate, int]:
    """Count the tensors of each fate, all fates in their order, zeros too."""
    counts = Counter(parameter.fate for parameter in fates)
    return {fate: counts[fate] for fate in FATES}


def name_modules(fates: Iterable[ParameterFate], fate: Fate) -> str:
    """Name the modules whose tensors met a fate, with their number: ``"blocks.6 (36), classifier (2)"``.

    Tensors are counted by the first two parts of their names where the second is a number, else, and where that would
    be a long list, by the first.
    """
    names = [parameter.name for parameter in fates if parameter.fate == fate]
    counts = Counter(_module_of(name) for name in names)
    if len(counts) > _LONG_LIST:
        counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items())


def _module_of(name: str) -> str:
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if len(rest) > 1 and rest[0].isdigit() else first


def _flatten(name: str) -> str:
    return name.replace(".", "_")


def _find_prefix(source: Iterable[str], other: Iterable[str]) -> str:
    """Return the prefix below which most names of the other network are names of the first."""
    known = {_flatten(name) for name in source}
    counts: Counter[str] = Counter()
    for name in other:
        parts = name.split(".")
        for cut in range(len(parts)):
            if _flatten(".".join(parts[cut:])) in known:
                counts["".join(f"{part}." for part in parts[:cut])] += 1
    return counts.most_common(1)[0][0] if counts else ""


def _judge(tensor: Tensor, found: Tensor | None) -> Fate:
    if found is None:
        return "dropped"
    if found.shape == tensor.shape:
        return "copied" if torch.equal(found.cpu(), tensor.cpu()) else "adapted"
    if found.ndim == 5 and (*found.shape[:2], *found.shape[3:]) == tensor.shape:
        error = (found.detach().double().sum(2).cpu() - tensor.cpu()).abs().max()
        return "inflated" if error <= 1e-4 * tensor.abs().max() else "adapted"
    return "adapted"
