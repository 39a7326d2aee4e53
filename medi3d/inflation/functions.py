"""Which functions of PyTorch get a volumetric form, and the mode that gives it to them while a network runs.

A row of `FUNCTIONS` is a function as the network calls it and its form on tensors with hidden depth, which gets the
`HiddenDepth`, the function and its arguments. What has no row acts on each slice. To teach the table a function, write
its form so that on equal slices it gives the 2D function's answer at every depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch.overrides import TorchFunctionMode

from medi3d.inflation.hidden import HiddenDepth

Function: TypeAlias = Callable[..., Any]
VolumetricForm: TypeAlias = Callable[..., Any]

FUNCTIONS: dict[Function, VolumetricForm] = {}
_TAKES_ANY: set[Function] = set()
_TAKES_PAIRS: set[Function] = set()


def volumetric(
    *functions: Function, takes_any: bool = False, takes_pairs: bool = False
) -> Callable[[VolumetricForm], VolumetricForm]:
    """Register the volumetric form of some functions.

    Args:
        functions: as they are called: ``torch.mean`` and ``torch.Tensor.mean`` are two.
        takes_any: call the form always, not only where the function's first argument is a tensor with hidden depth.
        takes_pairs: the form works on pair tensors itself; others get them settled.
    """

    def register(form: VolumetricForm) -> VolumetricForm:
        FUNCTIONS.update(dict.fromkeys(functions, form))
        _TAKES_ANY.update(functions if takes_any else ())
        _TAKES_PAIRS.update(functions if takes_pairs else ())
        return form

    return register


class Volumetric(TorchFunctionMode):
    """The mode under which functions with a row in the table act on volumes.

    Args:
        depth: the hidden axes of the network that runs.
    """

    def __init__(self, depth: HiddenDepth) -> None:
        super().__init__()
        self.depth = depth

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the volumetric form of ``func`` where it has one and gets a hidden tensor."""
        kwargs = kwargs or {}
        form = FUNCTIONS.get(func)
        if form is None or self.depth.within_slice:
            return func(*args, **kwargs)
        if func not in _TAKES_ANY and not (args and self.depth.is_hidden(args[0])):
            return func(*args, **kwargs)
        if func not in _TAKES_PAIRS and self.depth.keys is not None:
            args = tuple(self.depth.settle(value) for value in args)
            kwargs = {name: self.depth.settle(value) for name, value in kwargs.items()}
        return form(self.depth, func, *args, **kwargs)
