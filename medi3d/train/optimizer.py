"""The optimiser: which weights decay, and how fast each encoder stage learns.

A stage is what the encoder's maps say: a parameter belongs to the first map that depends on it, which the graph of the
gradient tells for any network, whatever its modules are called.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.models.encoder import Encoder
from medi3d.models.multitask import find_encoders


def create_optimizer(model: nn.Module, task: TaskConfig) -> torch.optim.Optimizer:
    """Create the optimiser that ``train.optimizer`` names, for all parameters, those that start frozen included.

    The groups carry ``scale``, the factor of the task's learning rate, and ``encoder``, whether they are the encoder's.
    Layer-wise decay is that of Clark et al. 2020 (ELECTRA, arXiv:2003.10555) and Bao et al. 2022 (BEiT,
    arXiv:2106.08254), by stages: the last of S stages learns by ``layer_decay`` of the decoder's rate, the first one
    and the stem by ``layer_decay`` to the power of S.
    """
    config = task.train
    options: dict[str, Any] = {"lr": task.learning_rate}
    groups = group_parameters(model, task)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.99, nesterov=True, fused=True, **options)
    return torch.optim.AdamW(groups, fused=True, **options)


def group_parameters(model: nn.Module, task: TaskConfig) -> list[dict[str, Any]]:
    """Return the parameters in groups of equal learning rate and weight decay, the decoder's first.

    Of networks that share parameters, each parameter is in one group.
    """
    config = task.train
    encoders = {id(encoder): encoder for encoder in find_encoders(model)}
    count = max((len(encoder.strides) for encoder in encoders.values()), default=0)
    own: dict[str, int] = {}
    for prefix, module in model.named_modules():
        encoder = encoders.get(id(module))
        if encoder is None:
            continue
        stages = find_stages(encoder, task.patch_size) if config.layer_decay < 1 else {}
        own |= {f"{prefix}.{name}": count - stages.get(name, count) for name, _ in encoder.named_parameters()}
    spared = _find_spared(model)
    members: dict[tuple[int, bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and name not in spared
        members[own.get(name, 0), name in own, decays].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "scale": config.layer_decay**steps,
            "encoder": in_encoder,
        }
        for (steps, in_encoder, decays), parameters in sorted(members.items(), key=lambda item: item[0][:2])
    ]


def find_stages(encoder: Encoder, patch_size: Sequence[int]) -> dict[str, int]:
    """Return for each parameter of an encoder the number of its stage, from 0, the finest.

    Args:
        encoder: the encoder.
        patch_size: ``(D, H, W)`` that it takes.

    Returns:
        Name → the first stage whose map depends on the parameter; the last stage where none does.
    """
    size = (1, encoder.in_channels, *patch_size)
    try:
        copied = _copy_to(encoder, "meta")
        maps = copied(torch.zeros(size, device="meta"))
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        copied = _copy_to(encoder, "cpu")  # some networks need values to find their way
        maps = copied(torch.zeros(size))
    stages: dict[int, int] = {}
    for stage, feature in enumerate(maps):
        for parameter in _find_leaves(feature):
            stages.setdefault(id(parameter), stage)
    return {name: stages.get(id(parameter), len(maps) - 1) for name, parameter in copied.named_parameters()}


def _copy_to(module: nn.Module, device: str) -> nn.Module:
    """Copy a module, in evaluation mode and with all parameters trainable."""
    memo: dict[int, Any] = {id(buffer): buffer.detach().to(device) for buffer in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to(device))
    return copy.deepcopy(module, memo).eval()


def _find_leaves(output: Tensor) -> list[Tensor]:
    """Return the leaves of the graph of a gradient: what the output depends on."""
    found, seen, open_nodes = [], set(), [output.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
        open_nodes += [parent for parent, _ in node.next_functions]
    return found


def _find_spared(model: nn.Module) -> set[str]:
    """Return the names of parameters that networks themselves except from weight decay, such as position tables."""
    spared = set()
    for prefix, module in model.named_modules():
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            spared |= {f"{prefix}.{name}" if prefix else name for name in names()}
    return spared
