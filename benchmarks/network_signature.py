"""Tells whether two names of a library stand for the very same network, without drawing its weights."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

# Below this, parameters are real while a network is built: constructors compute with small ones.
_SMALL = 1 << 16

# What a module holds beside its settings: its parts, signed by themselves, and notes about published weights.
_NO_SETTINGS = ("_parameters", "_buffers", "_modules", "pretrained_cfg", "default_cfg", "pretrained_cfg_overlay")


def build_unfilled(build: Callable[[], nn.Module]) -> nn.Module:
    """Call ``build`` with every large parameter on the meta device as soon as it is registered.

    Buffers are real. It takes hardly any memory, and of the time that a network takes to build, a tenth or less.
    """

    def leave_unfilled(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.numel() < _SMALL:
            return None  # as it is
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(leave_unfilled)
    try:
        return build()
    finally:
        hook.remove()


def sign_network(network: nn.Module) -> str:
    """Return a hash of all that decides what a network computes, but for the values of its parameters.

    That is, of each module, in order: its name, its class, its settings (plain values, functions by their names, other
    objects by what they hold), the shapes of its parameters and the values of its buffers.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        settings = {key: value for key, value in vars(module).items() if key not in _NO_SETTINGS and "hooks" not in key}
        parts = (
            name,
            _describe(type(module)),
            _describe(settings),
            [(key, tuple(value.shape)) for key, value in module._parameters.items() if value is not None],
            [(key, _describe(value)) for key, value in module._buffers.items()],
        )
        digest.update(repr(parts).encode())
    return digest.hexdigest()


def _describe(value: Any) -> Any:
    """Return something whose ``repr`` is equal where values mean the same."""
    if isinstance(value, nn.Module):
        return "module"  # it is signed under its own name
    if isinstance(value, Tensor):
        content = None if value.is_meta else hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        return (str(value.dtype), tuple(value.shape), None if isinstance(value, nn.Parameter) else content)
    if isinstance(value, Mapping):
        return [(_describe(key), _describe(entry)) for key, entry in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return [_describe(entry) for entry in value]
    if isinstance(value, functools.partial):
        return ("partial", _describe(value.func), _describe(value.args), _describe(value.keywords))
    if isinstance(value, types.MethodType):
        return _describe(value.__func__)
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__"):
        return (_describe(type(value)), _describe(vars(value)))
    return repr(value)
