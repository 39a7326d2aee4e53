"""Computing feature maps again in the backward pass in place of keeping them (Chen et al. 2016, arXiv:1604.06174).

What is computed again are blocks: the innermost modules in a network's sequences and lists that hold several kernels,
as a residual block or a level of a decoder. A part without any, as torchvision's traced networks are, is one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Context: TypeAlias = Callable[[], AbstractContextManager[Any]]


def checkpoint_activations(model: nn.Module, *, around: Context = nullcontext) -> list[str]:
    """Let a network keep no feature maps inside its blocks.

    Args:
        model: it is changed, and its state dict is not.
        around: entered around each block when it is computed again, as it is around the network's own run.

    Returns:
        The names of the blocks.
    """
    blocks = [name for part, child in model.named_children() for name in _find_blocks(child, part)]
    for name in blocks:
        block = model.get_submodule(name)
        block.forward = _Checkpointed(block, around)
    return blocks


def _find_blocks(module: nn.Module, name: str) -> list[str]:
    found = list(_walk(module, name))
    return found or ([name] if _is_block(module) else [])


def _walk(module: nn.Module, name: str) -> Iterator[str]:
    in_sequence = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    for part, child in module.named_children():
        inner = list(_walk(child, f"{name}.{part}"))
        yield from inner or ([f"{name}.{part}"] if in_sequence and _is_block(child) else [])


def _is_block(module: nn.Module) -> bool:
    """Whether a module can be called and has several kernels."""
    kernels = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    return len(kernels) > 1 and not isinstance(module, nn.ModuleList | nn.ModuleDict)


class _Checkpointed:
    """The forward of a block: hooks on the block run in the first pass and in the second."""

    def __init__(self, block: nn.Module, around: Context) -> None:
        self._block, self._forward, self._around = block, block.forward, around
        self._inside = False

    def __call__(self, *args: Any) -> Any:
        if self._inside or not torch.is_grad_enabled():
            return self._forward(*args)
        return checkpoint(self._run, *args, use_reentrant=False, context_fn=self._contexts)

    def _run(self, *args: Any) -> Any:
        self._inside = True
        try:
            return self._block(*args)
        finally:
            self._inside = False

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self._again()

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Leave running statistics as the first pass made them."""
        buffers = [(buffer, buffer.detach().clone()) for buffer in self._block.buffers()]
        try:
            with self._around():
                yield
        finally:
            for buffer, value in buffers:
                buffer.data.copy_(value)
