"""A file's tensors brought to a network's: by name below whatever prefix they have, with what became of each.

Nothing is left out in silence: a tensor without a place that no rule explains, or a place without a tensor, is an error
unless a partial load is asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from torch import Tensor

from medi3d.errors import WeightsError

Shape: TypeAlias = tuple[int, ...]
TensorFate: TypeAlias = Literal["mapped", "dropped", "missing", "unexpected"]

_COUNTER = "num_batches_tracked"
_NAMED = 4


@dataclass(frozen=True)
class Rules:
    """How names in files differ from names here.

    Args:
        renames: pattern → replacement, in their order, for what comes below the prefix.
        drops: pattern of the whole name below the prefix → why the network has no use for it.
    """

    renames: tuple[tuple[str, str], ...] = ()
    drops: tuple[tuple[str, str], ...] = ()

    def rename(self, name: str) -> str:
        """Return the name that a tensor has here."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def explain(self, name: str) -> str | None:
        """Return why a tensor is dropped; ``None`` where no rule says so."""
        return next((reason for pattern, reason in self.drops if re.match(pattern, name)), None)


@dataclass(frozen=True)
class TensorRow:
    """What became of one tensor.

    Args:
        source: its name in the file; ``None`` where the file lacks it.
        target: its name in the network; ``None`` where the network lacks it.
        fate: ``mapped``, ``dropped`` (a rule says why), ``missing`` from the file, or ``unexpected`` in it.
        how: what was done, or why not.
        shape: in the file, else in the network.
    """

    source: str | None
    target: str | None
    fate: TensorFate
    how: str
    shape: Shape


@dataclass(frozen=True)
class MatchReport:
    """Every tensor of a file and of a network, and what became of it.

    Args:
        where: the file, or what else the tensors came from.
        rows: in the file's order, then what it lacks.
    """

    where: str
    rows: tuple[TensorRow, ...] = field(repr=False)

    def count(self, fate: TensorFate) -> int:
        """Return how many tensors met a fate."""
        return sum(row.fate == fate for row in self.rows)

    def __str__(self) -> str:
        counts = [
            f"{count} {fate}" for fate in ("mapped", "dropped", "missing", "unexpected") if (count := self.count(fate))
        ]
        reasons = Counter(row.how for row in self.rows if row.fate == "dropped")
        dropped = "; dropped: " + ", ".join(f"{reason} ({n})" for reason, n in reasons.items()) if reasons else ""
        return f"{self.where}: {len(self.rows)} tensors: {', '.join(counts)}{dropped}"

    def lines(self) -> Iterator[str]:
        """Yield a line a tensor."""
        for row in self.rows:
            shape = "×".join(map(str, row.shape)) or "scalar"
            yield f"{row.fate}: {row.source or '–'} → {row.target or '–'} ({shape}): {row.how}"

    def after(self, change: Callable[[TensorRow], TensorRow]) -> MatchReport:
        """Return the report after something else was done to the network's tensors."""
        return replace(self, rows=tuple(change(row) for row in self.rows))


def match_tensors(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    where: str,
    rules: Rules | None = None,
    allow_partial: bool = False,
) -> tuple[dict[str, Tensor], MatchReport]:
    """Find for each tensor of a network the one in a file.

    Args:
        source: name → tensor in the file.
        target: name → tensor in the network: its state dict.
        where: names the file in messages.
        rules: how names differ.
        allow_partial: take what fits, and leave the rest of the network as it is.

    Returns:
        Name in the network → tensor of the file, in the network's type; and the report.

    Raises:
        WeightsError: nothing fits; or, unless a partial load is allowed, tensors are missing, unexpected or of another
            shape.

    Example:
        >>> import torch
        >>> found, report = match_tensors({"net.a": torch.ones(1)}, {"a": torch.zeros(1)}, where="file")
        >>> found["a"], str(report)
        (tensor([1.]), 'file: 1 tensors: 1 mapped')
    """
    rules = rules or Rules()
    prefix = _find_prefix(source, target, rules)
    rows, found = [], {}
    for name, tensor in source.items():
        row = _judge(name, tensor, target, prefix, rules)
        rows.append(row)
        if row.fate == "mapped" and row.target is not None:
            found[row.target] = tensor.to(target[row.target].dtype).reshape(target[row.target].shape)
    placed = {row.target for row in rows}
    rows += [_missing(name, tensor) for name, tensor in target.items() if name not in placed]
    report = MatchReport(where, tuple(rows))
    _check(report, bool(found), allow_partial)
    return found, report


def _find_prefix(source: Iterable[str], target: Mapping[str, Tensor], rules: Rules) -> str:
    """Return the prefix below which most names of the file are names of the network."""
    counts: Counter[str] = Counter()
    for name in source:
        parts = name.split(".")
        for cut in range(len(parts)):
            if rules.rename(".".join(parts[cut:])) in target:
                counts["".join(f"{part}." for part in parts[:cut])] += 1
    return counts.most_common(1)[0][0] if counts else ""


def _judge(name: str, tensor: Tensor, target: Mapping[str, Tensor], prefix: str, rules: Rules) -> TensorRow:
    shape = tuple(tensor.shape)
    if not name.startswith(prefix):
        return TensorRow(name, None, "dropped", f"another part of the checkpoint than {prefix[:-1]}", shape)
    own = name.removeprefix(prefix)
    renamed = rules.rename(own)
    place = target.get(renamed)
    if place is None:
        reason = rules.explain(own)
        if reason is None:
            return TensorRow(name, None, "unexpected", "the network has no such tensor", shape)
        return TensorRow(name, None, "dropped", reason, shape)
    if _squeeze(shape) != _squeeze(tuple(place.shape)):
        return TensorRow(name, renamed, "unexpected", f"the network's is {_product(place.shape)}", shape)
    done = [
        "" if renamed == name else "renamed",
        "" if shape == tuple(place.shape) else f"reshaped to {_product(place.shape)}",
        "" if tensor.dtype == place.dtype else f"{tensor.dtype} as {place.dtype}".replace("torch.", ""),
    ]
    return TensorRow(name, renamed, "mapped", ", ".join(filter(None, done)) or "as it is", shape)


def _missing(name: str, tensor: Tensor) -> TensorRow:
    if name.rpartition(".")[2] == _COUNTER:  # older files have none, and it only serves averages without momentum
        return TensorRow(None, name, "dropped", "counters of batches that the file lacks stay 0", tuple(tensor.shape))
    return TensorRow(None, name, "missing", "the file has no such tensor", tuple(tensor.shape))


def _check(report: MatchReport, any_found: bool, allow_partial: bool) -> None:
    problems = [row for row in report.rows if row.fate in ("missing", "unexpected")]
    if not any_found:
        raise WeightsError(
            f"{report.where}: none of its tensors is one of the network's; is it another network's file?"
        )
    if problems and not allow_partial:
        named = "; ".join(f"{row.source or row.target}: {row.how}" for row in problems[:_NAMED])
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise WeightsError(
            f"{report.where}: its encoder is of another architecture: {report.count('mapped')} tensors fit and "
            f"{len(problems)} do not ({named}{more}); --set model.allow_partial_init=true takes those that fit"
        )


def _squeeze(shape: Shape) -> Shape:
    """Return a shape without axes of one entry at its end, as a linear layer's beside a 1×1×1 kernel's."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _product(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
