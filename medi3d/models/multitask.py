"""Networks of several tasks on one encoder: its weights are one set, what is measured of a task is each task's own.

Each task has a whole network. The parameters of their encoders are the same tensors; a task with fewer stages has the
first ones, and a task with another number of channels has a first layer of its own, which starts from the same weights.
Input scaling and the running statistics of batch norms stay apart: a batch is of one task and is normalised by itself,
so a prediction must be normalised by statistics of that task and not of all (domain-specific batch norm, Chang et al.
2019, arXiv:1906.03950). An encoder that goes elsewhere gets the statistics of all tasks together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.models.build import create_model
from medi3d.models.encoder import Encoder

State = Mapping[str, Tensor]


def create_networks(tasks: Sequence[TaskConfig]) -> nn.ModuleList:
    """Create a network for each task, on one encoder.

    Args:
        tasks: with the same backbone, init and depth plan.

    Returns:
        The networks in the tasks' order. Each has its weights drawn, or loaded, as `create_model` does for its task
        alone; then those of the encoder with the most stages replace those of the others.

    Raises:
        ConfigError: a network without an encoder, or encoders that differ in more than stages and channels.
    """
    networks = nn.ModuleList([create_model(task) for task in tasks])
    for task, network in zip(tasks, networks, strict=True):
        if not isinstance(getattr(network, "encoder", None), Encoder):
            raise ConfigError(f"{task.name}: model.network {task.model.network} has no encoder that tasks could share")
    encoders = find_encoders(networks)
    deepest = _find_deepest(encoders)
    for task, encoder in zip(tasks, encoders, strict=True):
        alike = _find_deepest([other for other in encoders if other.in_channels == encoder.in_channels])
        _share_parameters(encoder, deepest, alike, task.name)
    return networks


def _find_deepest(encoders: Sequence[Encoder]) -> Encoder:
    return max(encoders, key=lambda encoder: len(encoder.channels))


def find_networks(model: nn.Module) -> list[nn.Module]:
    """Return the networks of :func:`create_networks`, or the single one that a model is."""
    return list(model) if isinstance(model, nn.ModuleList) else [model]


def find_encoders(model: nn.Module) -> list[Encoder]:
    """Return the encoders of a model's networks; of networks that have one."""
    found = [getattr(network, "encoder", None) for network in find_networks(model)]
    return [encoder for encoder in found if encoder is not None]


def _share_parameters(encoder: Encoder, common: Encoder, alike: Encoder, task: str) -> None:
    """Put the parameters of a common encoder in the place of an encoder's own.

    Args:
        encoder: it is changed.
        common: with all stages.
        alike: with as many channels as ``encoder``; its first layer is taken where that of ``common`` has others.
        task: named in messages.
    """
    shared = dict(common.named_parameters(remove_duplicate=False))
    first = dict(alike.named_parameters(remove_duplicate=False))
    for prefix, module in encoder.named_modules():
        for name, own in module.named_parameters(recurse=False, remove_duplicate=False):
            key = f"{prefix}.{name}" if prefix else name
            other = shared.get(key)
            if other is not None and other.shape == own.shape:
                setattr(module, name, other)
            elif other is not None and _is_first_layer(own, other, encoder, common):
                setattr(module, name, first[key])
            else:
                found = "none" if other is None else "×".join(map(str, other.shape))
                raise ConfigError(
                    f"{task}: its encoder cannot be shared: {key} is {'×'.join(map(str, own.shape))} here and {found} "
                    "in the encoder with the most stages; give all tasks the same backbone, model.depth_plan and, for "
                    "a backbone that takes slices of one size, the same plane of train.patch_size"
                )


def _is_first_layer(own: Tensor, other: Tensor, encoder: Encoder, common: Encoder) -> bool:
    """Whether two kernels differ because their volumes have different numbers of channels, and in nothing else."""
    if encoder.in_channels == common.in_channels or own.ndim != other.ndim:
        return False
    return own.shape[0] == other.shape[0] and own.shape[2:] == other.shape[2:]


def merge_encoders(tasks: Sequence[TaskConfig], state: State, shares: Sequence[float], *, channels: int) -> Encoder:
    """Make one encoder of those of several tasks.

    Args:
        tasks: as :func:`create_networks` got them.
        state: of the networks; of a single task, of its network.
        shares: of each task, by which its running statistics count.
        channels: of its volumes; a task must have as many.

    Returns:
        The encoder with the stages of the deepest one, as a task with so many channels has it, and with the running
        statistics of all tasks together: means average, and variances are those of the mixture of all tasks.
    """
    places = [f"{number}." for number in range(len(tasks))] if len(tasks) > 1 else [""]
    parts = [_part(state, f"{place}encoder.") for place in places]
    own = next(number for number, task in enumerate(tasks) if task.in_channels == channels)
    deepest = max(tasks, key=lambda task: task.model.stages or 0)
    model = replace(tasks[own].model, init="random", weights=None, stages=deepest.model.stages)
    encoder = create_model(replace(tasks[own], model=model)).encoder
    assert isinstance(encoder, Encoder)
    wanted = encoder.state_dict()
    merged: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        fitting = [(part[name], share) for part, share in _first(parts, shares, own) if name in part]
        fitting = [(value, share) for value, share in fitting if value.shape == tensor.shape]
        merged[name] = fitting[0][0]
        if name.endswith(("running_mean", "running_var")):
            prefix = name.rpartition(".")[0]
            merged |= _mix_statistics(prefix, [(part, share) for part, share in zip(parts, shares, strict=True)])
    encoder.load_state_dict(merged)
    return encoder


def _part(state: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _first(parts: Sequence[State], shares: Sequence[float], own: int) -> list[tuple[State, float]]:
    """Return the parts with their shares, one of them first."""
    pairs = list(zip(parts, shares, strict=True))
    return [pairs[own], *pairs[:own], *pairs[own + 1 :]]


def _mix_statistics(norm: str, parts: Sequence[tuple[State, float]]) -> dict[str, Tensor]:
    """Return mean and variance of the mixture of tasks: the variance within tasks, and that between their means."""
    mean_name, variance_name = f"{norm}.running_mean", f"{norm}.running_var"
    having = [(part, share) for part, share in parts if mean_name in part]
    weights = torch.tensor([share for _, share in having], dtype=torch.float64)
    weights = (weights / weights.sum())[:, None]
    means = torch.stack([part[mean_name].double() for part, _ in having])
    variances = torch.stack([part[variance_name].double() for part, _ in having])
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    kept = having[0][0][mean_name].dtype
    return {mean_name: mean.to(kept), variance_name: variance.to(kept)}
