"""Attention over volumes: the queries of a slice meet the keys and values of all slices.

Joint attention over D·N tokens gives on D equal slices what attention over N tokens gives on one, because a softmax
over D copies of each key has the same average. Position tables act within a slice and so repeat along depth.

Attention that is written out, as ``softmax(q @ k.mT) @ v``, is joined in steps. A product of two tensors with hidden
depth is a *pair* tensor: depth of the left one, and the depth of the right one as a second hidden axis, keys. What the
network does to its scores, such as adding position biases, it does to each pair of slices. ``softmax`` is taken over
the keys of all slices (times D, so that each pair has the 2D network's value), and the next product averages over
pairs. Linear attention, whose first product sums over positions, averages over the volume there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medi3d.errors import InflationError
from medi3d.inflation.functions import Function, volumetric
from medi3d.inflation.hidden import HiddenDepth


@volumetric(F.scaled_dot_product_attention, takes_any=True)
def attend(
    depth: HiddenDepth,
    func: Function,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """Attend from (B, heads, N, d) hidden queries to (B, heads, M, d) keys of all slices."""
    if is_causal:
        raise InflationError("causal attention (is_causal=True): the tokens of a volume have no order along depth")
    if not depth.is_hidden(key):
        return func(query, key, value, attn_mask, dropout_p, is_causal, **options)
    depth.mixes = True
    slices, keys = (depth.size(tensor) if depth.is_hidden(tensor) else 1 for tensor in (query, key))
    tokens = [_join(depth, tensor) for tensor in (query, key, value)]
    if attn_mask is not None:
        attn_mask = _join_mask(depth, attn_mask, slices, keys)
    with depth.paused():
        output = func(*tokens, attn_mask, dropout_p, is_causal, **options)
    if not depth.is_hidden(query):
        return output
    return depth.hide(output.unflatten(-2, (slices, -1)), -3 % (output.ndim + 1))


def _join(depth: HiddenDepth, tensor: Tensor) -> Any:
    """Return tokens (…, N, d) of all slices as (…, D·N, d)."""
    return depth.reveal(tensor, tensor.ndim - 2).flatten(-3, -2) if depth.is_hidden(tensor) else tensor


def _join_mask(depth: HiddenDepth, mask: Tensor, slices: int, keys: int) -> Any:
    """Repeat a mask or bias (…, N, M) for each slice's queries and each slice's keys: (…, D·N, D·M)."""
    revealed = depth.reveal(mask, mask.ndim - 2) if depth.is_hidden(mask) else mask.unsqueeze(-3)  # (…, D or 1, N, M)
    shape = (*revealed.shape[:-3], slices, revealed.shape[-2], keys, revealed.shape[-1])
    return revealed.unsqueeze(-2).expand(shape).flatten(-4, -3).flatten(-2, -1)


@volumetric(
    *(torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm),
    takes_any=True,
    takes_pairs=True,
)
def multiply(depth: HiddenDepth, func: Function, left: Tensor, right: Tensor) -> Any:
    """Multiply what was computed from slices by what was computed from other slices."""
    return _multiply(depth, func, left, right)


@volumetric(torch.einsum, takes_any=True, takes_pairs=True)
def sum_products(depth: HiddenDepth, func: Function, equation: str, *operands: Any) -> Any:
    """Multiply two tensors by an equation; more than two act within their slice."""
    factors = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if len(factors) != 2:
        return func(equation, *map(depth.settle, factors))
    return _multiply(depth, lambda left, right: func(equation, left, right), *factors)


def _multiply(depth: HiddenDepth, func: Function, left: Tensor, right: Tensor) -> Any:
    pairs = [depth.is_pair(factor) for factor in (left, right)]
    hidden = [depth.is_hidden(factor) for factor in (left, right)]
    if not all(hidden):
        return func(left, right)
    depth.mixes = True
    if any(pairs):
        factors = zip((left, right), pairs, strict=True)
        return depth.settle(func(*(factor if pair else depth.as_keys(factor) for factor, pair in factors)))
    if depth.contracts_positions:
        return depth.reveal(func(left, right), 0).mean(0)
    return func(left, depth.as_keys(right))


@volumetric(torch.softmax, torch.Tensor.softmax, F.softmax, takes_pairs=True)
def take_softmax(depth: HiddenDepth, func: Function, input: Tensor, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """Take the softmax of pair scores over the keys of all slices, times the number of slices."""
    if not depth.is_pair(input):
        return func(input, dim, *args, **kwargs)
    axis = dim % input.ndim
    scores = depth.reveal_keys(input, axis)  # (…, D, M, …), with the depth of queries still hidden
    slices = scores.shape[axis]
    weights = func(scores.flatten(axis, axis + 1), axis, *args, **kwargs) * slices
    return depth.hide_keys(weights.unflatten(axis, (slices, -1)), axis)
