"""Sums over all processes of a run, through which gradients flow back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up ``values`` over all processes; with one process they are returned as they are.

    The gradient is that of DistributedDataParallel's average. With S = Σ_q s_q over P processes, a loss L(S) that all
    of them compute alike, and parameters θ, DDP gives (1/P) Σ_q g_q, where g_q is what flows back in process q. The
    gradient of L is Σ_q L'(S) ∂s_q/∂θ, so g_q has to be P · L'(S) ∂s_q/∂θ: the incoming gradient times P.

    Args:
        values: (n,), of the same n in all processes, and looked at only in ways that are the same in all of them.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return values
    summed: Tensor = _SumOverProcesses.apply(values)
    return summed


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.detach().clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * distributed.get_world_size()
