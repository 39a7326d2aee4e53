"""The processes of a run and their device: one on this machine, or many that a launcher starts on one or several.

``accelerate launch``, ``torchrun`` and ``scripts/slurm_train`` tell each process its number in ``RANK``,
``LOCAL_RANK``, ``WORLD_SIZE`` and where the first one is in ``MASTER_ADDR`` and ``MASTER_PORT``; accelerate joins them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object, patch_environment
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError, Medi3dError
from medi3d.planning.machine import find_bf16, find_device

logger = logging.getLogger(__name__)

T = TypeVar("T")

GROUP_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for another one, which may be predicting a large case, before it takes it for dead."""

_BUCKET_BYTES = 25 * 2**20

_GROUP_SIGNS = ("gloo", "nccl", "connection closed by peer", "connection reset", "timed out waiting", "broken pipe")
"""How torch's backends say that another process is gone."""


def create_accelerator(task: TaskConfig, device: str) -> Accelerator:
    """Join the run's processes.

    Args:
        task: says the precision; float32 before it is planned.
        device: as :func:`medi3d.planning.machine.find_device` takes it.

    Raises:
        ConfigError: there is no such device, or it cannot do what the task asks for.
    """
    found = find_device(device)
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if launched and found.index is not None:
        raise ConfigError(f"--device {device}: a launcher gives each process its own GPU; give cuda, cpu or auto")
    if task.train.precision == "fp16" and found.type == "cpu":
        raise ConfigError("train.precision: fp16 needs a GPU; take bf16, or no")
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        logger.warning(
            "`accelerate launch --cpu` starts a single process, whatever --num_processes says; for several on CPUs, "
            "torchrun --nproc-per-node N -m medi3d train ..., or accelerate launch --multi_gpu with --device cpu"
        )
    _check_bf16(task, found)
    # accelerate keeps one state a process; this run may want another precision or, by itself, device than the last one
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    if found.index is not None:
        torch.cuda.set_device(found)
    named = {"ACCELERATE_TORCH_DEVICE": str(found)} if found.index is not None else {}
    with patch_environment(**named):
        return Accelerator(
            cpu=found.type == "cpu",
            mixed_precision=task.train.precision or "no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=GROUP_TIMEOUT)],
        )


def _check_bf16(task: TaskConfig, device: torch.device) -> None:
    """Say where a run, planned elsewhere or told so, computes in a number format that this device does not have."""
    if task.train.precision == "bf16" and not find_bf16(device):
        logger.warning(
            "train.precision: bf16 is computed in software on this %s, slower than float32; the run keeps to it, as "
            "other rounding leads to other weights: begin a new one with --precision no for speed",
            "GPU" if device.type == "cuda" else "CPU",
        )


def ask_main(question: Callable[[], T]) -> T:
    """Return in every process what the first one answers, as to what lies on a disk that it is about to change.

    Args:
        question: asked in the first process alone.
    """
    if not torch.distributed.is_initialized():
        return question()
    answers: list[T | None] = [question() if torch.distributed.get_rank() == 0 else None]
    broadcast_object_list(answers)
    return cast(T, answers[0])


def count_local_processes(accelerator: Accelerator) -> int:
    """Return how many processes of the run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Average the gradients over processes, after the last backward pass of a step.

    DistributedDataParallel would send parts of them while the backward pass goes on, which hides most of the time that
    it takes between machines. It would also have to be told of weights that are frozen, unfrozen or unused and of parts
    of a batch that are not to be sent; sending all at once needs none of that.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sending = []
    for bucket in _fill_buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        sending.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sending:
        work.wait()
        parts = (flat / accelerator.num_processes).split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(one) for part, one in zip(parts, bucket, strict=True)])


def _fill_buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Put gradients together up to a size, so that none is sent by itself and sending begins before all are copied."""
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        if gradient.nbytes > room:
            buckets.append([])
            room = _BUCKET_BYTES
        buckets[-1].append(gradient)
        room -= gradient.nbytes
    return buckets


def check_alike(model: nn.Module, accelerator: Accelerator) -> None:
    """Check that all processes begin with the same weights, as they do where all find the same files.

    Raises:
        Medi3dError: they do not.
    """
    if accelerator.num_processes == 1:
        return
    own = float(torch.stack([tensor.detach().double().abs().sum() for tensor in model.state_dict().values()]).sum())
    sums = gather_object([own])
    if any(abs(other - sums[0]) > 1e-6 * abs(sums[0]) for other in sums):
        raise Medi3dError(
            f"the processes of the run begin with different weights (sums {', '.join(f'{one:.9g}' for one in sums)}); "
            "give all machines the same files, packages and cache of weights"
        )


def seed_process(seed: int, process: int) -> None:
    """Seed the random numbers of a process: others in each, so that dropout differs between the parts of a batch."""
    torch.manual_seed((seed << 16) + process)


def collect_random_states(accelerator: Accelerator) -> list[dict[str, Tensor]]:
    """Return the states of the random numbers of all processes, in all processes."""
    own = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    states: list[dict[str, Tensor]] = gather_object([own])
    return states


def restore_random_state(accelerator: Accelerator, states: Sequence[dict[str, Tensor]]) -> None:
    """Take up this process's random numbers where they were; those of a device of another kind begin anew."""
    own = states[accelerator.process_index] if accelerator.process_index < len(states) else {}
    if "cpu" in own:
        torch.set_rng_state(own["cpu"])
    if "cuda" in own and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], accelerator.device)


def gather_names(accelerator: Accelerator, names: list[str]) -> list[str]:
    """Return the names of all processes, in all processes."""
    gathered: list[str] = gather_object(names)
    return gathered


def agree_on(accelerator: Accelerator, value: float) -> float:
    """Return the first process's value in all processes."""
    if accelerator.num_processes == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    torch.distributed.broadcast(shared, 0)
    return float(shared)


@contextmanager
def named_losses(accelerator: Accelerator, run: Path) -> Iterator[None]:
    """Say of an error of the group's that another process is gone.

    Raises:
        Medi3dError: in place of it.
    """
    try:
        yield
    except Exception as error:
        cause = next((cause for cause in list_causes(error) if _is_of_group(cause)), None)
        if accelerator.num_processes == 1 or cause is None:
            raise
        raise _describe(accelerator, run, cause) from error


def _is_of_group(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _GROUP_SIGNS)


def _describe(accelerator: Accelerator, run: Path, error: BaseException) -> Medi3dError:
    reason = str(error).splitlines()[0][:160]
    return Medi3dError(
        f"{run}: process {accelerator.process_index} of {accelerator.num_processes} has lost another one ({reason}); "
        f"that one's own message says why; `medi3d train --resume {run}` under the same launcher goes on"
    )


def list_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from: layers wrap errors to say where they happened."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__
