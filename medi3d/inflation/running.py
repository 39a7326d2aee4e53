"""What trying a network takes: evaluation mode for a while, and the tensors of whatever its output is nested in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and every module back into its own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def iterate_tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a network's output, whatever lists and mappings they are nested in."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from iterate_tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from iterate_tensors(value)


def map_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor of nested lists, tuples and mappings; anything else stays."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping):
        return {key: map_tensors(value, change) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):  # a namedtuple
        return type(output)(*(map_tensors(value, change) for value in output))
    if isinstance(output, (list, tuple)):
        return type(output)(map_tensors(value, change) for value in output)
    return output
