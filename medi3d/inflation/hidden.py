"""The hidden depth axis: a 2D network runs on what it takes for one slice, and every tensor in it carries all slices.

Depth is an axis that the network's own code does not see (one level of `torch.vmap`). Its shapes are those of a slice,
(B, C, H, W), so code that reads them, cuts windows, makes tokens or adds position tables stays right, and whatever it
does is done to each slice: exact on equal slices, whatever the network. Only functions that look at positions are given
a volumetric form (`medi3d.inflation.functions`): they `reveal` the axis, work in 3D and `hide` it again. Depth is a
property of each tensor: it may differ between branches and shrink at strides.

This is the only module that touches PyTorch's functorch internals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_get_bdim, maybe_get_level

if TYPE_CHECKING:
    from medi3d.inflation.window import DepthLayer

try:  # the functions that torch.compile and torch.export know how to trace
    from torch._functorch.predispatch import (
        _add_batch_dim,
        _remove_batch_dim,
        _vmap_decrement_nesting,
        _vmap_increment_nesting,
    )
except ImportError:  # torch < 2.8
    from torch._C._functorch import (  # type: ignore[assignment]
        _add_batch_dim,
        _remove_batch_dim,
        _vmap_decrement_nesting,
        _vmap_increment_nesting,
    )

# Random numbers that a network draws for each sample, as stochastic depth does, are drawn once for a volume.
_RANDOMNESS = "same"


class HiddenDepth:
    """The hidden axes of one network while it runs; it holds no tensor, so deepcopy and pickle keep it.

    Besides depth there is a second axis, *keys*, only between a product of queries and keys and what is done with it:
    such a *pair* tensor has a value for each pair of slices (see `medi3d.inflation.attention`). On a volume of equal
    slices each pair has the 2D network's value, so the mean over keys settles it.
    """

    def __init__(self, init: str, depth_padding: str) -> None:
        self.init = init
        self.depth_padding = depth_padding
        self.last_pool: int | None = None
        """Slices in a window of the global average pools; None is the whole depth."""
        self.layers: list[list[DepthLayer]] = []
        """What the depth plan says of the next calls of each running module that it plans."""
        self.slices = 0
        self.keys: int | None = None
        self.mixes = False
        self.contracts_positions = False
        """Whether products sum over positions, as in linear attention, and not over channels."""
        self.within_slice = False
        """Whether functions act within their slice, in a module that moves positions in its own way."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Open the hidden axis for one run of the network."""
        self.layers, self.mixes, self.contracts_positions, self.within_slice = [], False, False, False
        self.slices = _vmap_increment_nesting(1, _RANDOMNESS)
        try:
            yield
        finally:
            _vmap_decrement_nesting()
            if self.keys is not None:
                _vmap_decrement_nesting()
            self.slices, self.keys = 0, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the hidden axes for a while, for what works on revealed tensors only and not under `torch.vmap`."""
        levels = [] if is_compiling() else [level for level in (self.slices, self.keys) if level is not None]
        for _ in levels:
            _vmap_decrement_nesting()
        try:
            yield
        finally:
            for _ in levels:
                _vmap_increment_nesting(1, _RANDOMNESS)

    def hide(self, tensor: Tensor, axis: int) -> Tensor:
        """Hide ``axis`` as depth: the network sees the tensor without it."""
        hidden: Tensor = _add_batch_dim(tensor, axis, self.slices)
        return hidden

    def reveal(self, tensor: Tensor, axis: int) -> Tensor:
        """Return a tensor with its depth at ``axis``, a view; depth is 1 where it has none."""
        if is_compiling() and not torch.compiler.is_dynamo_compiling() and self.is_hidden(tensor):
            own = maybe_get_bdim(tensor)  # torch.export loses a tensor whose axis moves in the same step
            return _remove_batch_dim(tensor, self.slices, 1, own).movedim(own, axis)
        revealed: Tensor = _remove_batch_dim(tensor, self.slices, 1, axis)
        return revealed

    def reveal_in_place(self, tensor: Tensor) -> tuple[Tensor, int]:
        """Return the tensor that a hidden one stands for, and the axis of its depth; no view, so writing is cheap."""
        return get_unwrapped(tensor), maybe_get_bdim(tensor)

    def fold(self, tensor: Tensor) -> Tensor:
        """Return (B, …) with depth as slices (B·D, …), a view where memory is channels-last."""
        return self.reveal(tensor, 1).flatten(0, 1)

    def unfold(self, slices: Tensor, like: Tensor) -> Tensor:
        """Undo `fold`: hide the depth of slices (B·D, …) that belong to as many volumes as ``like`` has."""
        return self.hide(slices.reshape(like.shape[0], -1, *slices.shape[1:]), 1)

    def is_hidden(self, value: Any) -> bool:
        """Whether a value is a tensor with a hidden axis."""
        return isinstance(value, Tensor) and is_batchedtensor(value)

    def is_pair(self, value: Any) -> bool:
        """Whether a value is a tensor with the second hidden axis, keys."""
        return self.keys is not None and self.is_hidden(value) and maybe_get_level(value) == self.keys

    def size(self, tensor: Tensor) -> int:
        """Return the depth of a hidden tensor."""
        return int(self.reveal(get_unwrapped(tensor) if self.is_pair(tensor) else tensor, 0).shape[0])

    def as_keys(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose depth is the axis of keys."""
        if self.keys is None:
            self.keys = _vmap_increment_nesting(1, _RANDOMNESS)
        keyed: Tensor = _add_batch_dim(self.reveal(tensor, 0), 0, self.keys)
        return keyed

    def reveal_keys(self, tensor: Tensor, axis: int) -> Tensor:
        """Return a pair tensor with its keys at ``axis``; its depth stays hidden."""
        assert self.keys is not None
        revealed: Tensor = _remove_batch_dim(tensor, self.keys, 1, axis)
        return revealed

    def hide_keys(self, tensor: Tensor, axis: int) -> Tensor:
        """Undo `reveal_keys`."""
        assert self.keys is not None
        hidden: Tensor = _add_batch_dim(tensor, axis, self.keys)
        return hidden

    def settle(self, value: Any) -> Any:
        """Return the mean over keys of a pair tensor; anything else as it is."""
        return self.reveal_keys(value, 0).mean(0) if self.is_pair(value) else value

    def next_layer(self, default: DepthLayer) -> DepthLayer:
        """Return what the next layer does along depth: what the depth plan says, else ``default``."""
        return self.layers[-1].pop(0) if self.layers and self.layers[-1] else default

    def average(self, tensor: Tensor) -> Tensor:
        """Return the average over depth of a hidden tensor, as global average pools take it."""
        revealed = self.reveal(tensor, 0)
        if self.last_pool is not None and revealed.shape[0] > self.last_pool:
            revealed = revealed.unfold(0, self.last_pool, 1).mean(-1)
        return revealed.mean(0)


def is_compiling() -> bool:
    """Whether PyTorch traces the network, so that only what it can trace may be used."""
    return bool(torch.compiler.is_compiling())
