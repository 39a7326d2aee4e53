"""Statistics of batch norms over all processes of a run, and over many batches.

Batch norms are found as they are called: inside an inflated network, whose 2D norms act on whole volumes, in a head or
in any other network, all of them end in ``F.batch_norm``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class Call(NamedTuple):
    """The arguments of ``F.batch_norm``."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class BatchNormCalls(TorchFunctionMode):
    """While it is active, batch norms that normalise by their batch are done by a function.

    Args:
        answer: gets the arguments of the call and returns the normalised batch.
    """

    def __init__(self, answer: Callable[[Call], Tensor]) -> None:
        super().__init__()
        self._answer = answer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer a call of batch norm, and let every other function be."""
        if func is F.batch_norm:
            call = Call(*args, **(kwargs or {}))
            if call.training:
                return self._answer(call)
        return func(*args, **(kwargs or {}))


def synchronize(call: Call) -> Tensor:
    """Normalise by the statistics of the batches of all processes, as one process with the whole batch would.

    Moments are added up around the running mean, which all processes have alike, so that no digits cancel out; the
    gradient takes part in it (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3).
    """
    normalized: Tensor = _SynchronizedBatchNorm.apply(*call[:5], call.momentum, call.eps)
    return normalized


class _SynchronizedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        count, mean, variance = _pool_moments(*_measure(x), running_mean)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        mean, variance = mean.float(), variance.float()
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps = float(count), eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        scale = inverse if weight is None else inverse * weight.float()
        # As if the statistics were constants; of the weight Σ g·x̂, of the bias Σ g, over this process's batch.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            *(grads[0], x, weight if weight is not None else torch.ones_like(mean), mean, variance, mean, inverse),
            *(False, ctx.eps, [True, True, True]),
        )
        if ctx.needs_input_grad[0]:
            sums = torch.stack([of_bias, of_weight]).double()
            distributed.all_reduce(sums)
            along_one, along_x = (sums / ctx.count).float() * scale
            of_x -= (x - _spread(mean, x)) * _spread(along_x * inverse, x) + _spread(along_one, x)
        return (
            of_x,
            None,
            None,
            of_weight if weight is not None else None,
            of_bias if weight is not None else None,
            *[None] * 2,
        )


class Moments:
    """Mean and variance of what each batch norm gets, over all batches that are shown to it.

    "Precise" statistics of Wu & Johnson 2021 (arXiv:2105.07576, section 3): the norms normalise by their batch
    meanwhile, and their running statistics are left as they are.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def measure(self, call: Call) -> Tensor:
        """Take in a batch and normalise it."""
        if call.running_mean is not None and call.running_var is not None:
            count, mean, variance = _measure(call.input)
            new = torch.stack([count.expand_as(mean), count * mean, count * (variance + mean.square())])
            key = id(call.running_mean)
            known = self._sums.get(key)
            total = new if known is None else known[2] + new
            self._sums[key] = (call.running_mean, call.running_var, total)
        return F.batch_norm(*call._replace(running_mean=None, running_var=None))

    def write(self, *, processes: int = 1) -> int:
        """Write the statistics over all batches, of all processes, to the norms; return how many norms got some."""
        for running_mean, running_var, total in self._sums.values():
            if processes > 1:
                distributed.all_reduce(total)
            count, first, second = total
            mean = first / count
            running_mean.copy_(mean)
            running_var.copy_((second / count - mean.square()) * (count / (count - 1)))
        return len(self._sums)


def _measure(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count (), mean (C,) and variance (C,) of (B, C, …) in double precision."""
    variance, mean = torch.var_mean(x.detach().float(), [0, *range(2, x.ndim)], correction=0)
    count = torch.tensor(x.numel() / x.shape[1], dtype=torch.float64, device=x.device)
    return count, mean.double(), variance.double()


def _pool_moments(
    count: Tensor, mean: Tensor, variance: Tensor, reference: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean and variance over all processes."""
    origin = torch.zeros_like(mean) if reference is None else reference.double()
    shift = mean - origin
    sums = torch.cat([count[None], count * shift, count * (variance + shift.square())])
    distributed.all_reduce(sums)
    total = sums[0]
    shift, square = (sums[1:] / total).chunk(2)
    return total, origin + shift, square - shift.square()


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """(C,) → (1, C, 1, …), in the precision of ``x``."""
    return values.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
