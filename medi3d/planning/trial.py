"""A task's network without values: which sizes it takes, and how much memory a step of training needs.

A whole step (forward, loss, backward) runs on torch's meta device, where tensors have shapes and no values, at the
patch's true size, while every storage that is alive is counted: nothing is computed, and nothing is guessed but what
the kernels themselves need while they run.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medi3d.config import TaskConfig
from medi3d.models.activations import checkpoint_activations
from medi3d.models.build import create_model
from medi3d.planning.rules import RULES
from medi3d.types import IntTriple

_STATES = {"adamw": 2, "sgd": 1}
"""Optimiser → tensors that it keeps for each weight."""

_SAMPLE_EDGE = 32
"""Edge of the patch that is really computed where a network needs values to find its way."""


class TrialNetwork:
    """The network of a task, made with random weights for trials only.

    Args:
        task: the stages and the depth plan may be open; the patch may be too, for a network that takes any size.

    Attributes:
        strides: ``(D, H, W)`` stride of each encoder stage; empty where the network is no inflated one.
        slices: which slices the encoder takes; ``None`` where the network is no inflated one.
    """

    def __init__(self, task: TaskConfig) -> None:
        self.task = replace(task, model=replace(task.model, init="random", weights=None))
        with torch.random.fork_rng(devices=[]):
            self._model = create_model(self.task).train()
        encoder = getattr(self._model, "encoder", None)
        self.strides: tuple[IntTriple, ...] = () if encoder is None else encoder.strides
        self.slices = None if encoder is None else encoder.slices

    @property
    def learned_bytes(self) -> int:
        """Bytes of the weights that are trained."""
        return sum(parameter.nbytes for parameter in self._model.parameters())

    @property
    def fixed_bytes(self) -> int:
        """What stays over the steps: weights, their gradients, the optimiser's state, the moving average."""
        config = self.task.train
        copies = 2 + _STATES[config.optimizer] + bool(config.ema_decay)
        return copies * self.learned_bytes + sum(buffer.nbytes for buffer in self._model.buffers())

    def step_bytes(self, patch_size: Sequence[int], batch_size: int) -> int:
        """Return what a step of training needs beside :attr:`fixed_bytes` at its peak: patches and feature maps.

        Args:
            patch_size: ``(D, H, W)`` in voxels.
            batch_size: patches.
        """
        size = (batch_size, self.task.in_channels, *patch_size)
        try:
            peak = self._peak_bytes(_copy_to_meta(self._model), size, "meta")
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
            # Some networks read positions out of a tensor: a small patch is computed, and counts by its voxels.
            small = (*size[:2], *self._small_patch(patch_size))
            peak = self._peak_bytes(copy.deepcopy(self._model), small, "cpu") * math.prod(size) // math.prod(small)
        half = RULES.half_precision if self.task.train.precision in ("bf16", "fp16") else 1.0
        # Images in float32 and label maps in int64: of this batch, and of the next one that is made meanwhile.
        waiting = 2 * batch_size * math.prod(patch_size) * (4 * self.task.in_channels + 8)
        # AdamW makes the size of all weights once more, when the feature maps are gone.
        return max(int(RULES.kernels * half * peak), self.learned_bytes) + waiting

    def _small_patch(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        depth, *plane = (min(edge, _SAMPLE_EDGE) for edge in patch_size)
        takes = self.slices is None or self.slices.allows(plane)
        return (depth, *(plane if takes else patch_size[1:]))

    def _peak_bytes(self, model: nn.Module, size: Sequence[int], device: str) -> int:
        live = LiveBytes()
        if self.task.train.checkpoint_activations:
            checkpoint_activations(model)
        with torch.random.fork_rng(devices=[]), live:
            for parameter in model.parameters():  # gradients count among what stays
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda weight: live.release(weight.grad)
                )
            outputs = model(torch.zeros(tuple(size), device=device))
            _stand_in_loss(outputs).backward()  # type: ignore[no-untyped-call]
        return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are made while it is active, as long as they are alive.

    Attributes:
        now: bytes alive.
        peak: the most that there were at a time.

    Example:
        >>> with LiveBytes() as live:
        ...     x = torch.zeros(10, device="meta") + 1
        >>> live.now, live.peak
        (40, 80)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation and count what it makes."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def release(self, tensor: Tensor | None) -> None:
        """Count a tensor no more."""
        if tensor is not None:
            self._forget(tensor.untyped_storage()._cdata)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = (storage.nbytes(), weakref.ref(storage, lambda _: self._forget(key)))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        size, _ = self._alive.pop(key, (0, None))
        self.now -= size


def estimate_training_bytes(task: TaskConfig) -> int:
    """Estimate the memory of training: weights, gradients, optimiser, moving average, and a step at its peak.

    Args:
        task: with its patch, batch and stages set.

    Returns:
        Bytes on the training device, without what the program itself takes (on a CPU some 600 MB of libraries, on a GPU
        some 500 MB of context).

    Raises:
        ConfigError: the patch, batch or network is not set or does not exist.
    """
    trial = TrialNetwork(task)
    return trial.fixed_bytes + trial.step_bytes(task.patch_size, task.batch_size)


def _copy_to_meta(model: nn.Module) -> nn.Module:
    """Copy a module with tensors that have no values; the tensors of the module are not copied."""
    memo: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _stand_in_loss(outputs: Any) -> Tensor:
    """Return a loss that keeps what Dice and cross-entropy keep: probabilities, their logarithms and the truth."""
    terms = []
    for logits in tree_leaves(tuple(outputs) if isinstance(outputs, tuple) else outputs):
        if isinstance(logits, Tensor):
            scores = logits.float()
            truth = torch.zeros_like(scores)
            terms.append((torch.softmax(scores, 1) * truth).sum() + (torch.log_softmax(scores, 1) * truth).sum())
    return torch.stack(terms).sum()
