"""Batch norm over processes against batch norm over the whole batch, and statistics against numpy."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import start_processes
from torch import Tensor, distributed, nn

from medi3d.models import create_encoder
from medi3d.train.batch_norm import BatchNormCalls, Moments, synchronize


def make_network() -> nn.Sequential:
    torch.manual_seed(3)
    bare = nn.BatchNorm3d(4, affine=False, track_running_stats=False)
    network = nn.Sequential(
        nn.BatchNorm3d(2), nn.Conv3d(2, 4, 2), bare, nn.ReLU(), nn.Conv3d(4, 3, 1), nn.BatchNorm3d(3)
    )
    for norm in (network[0], network[5]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return network.double().float()


def make_batch() -> tuple[Tensor, Tensor]:
    """Volumes far from zero, with a weight for each output."""
    generator = torch.Generator().manual_seed(4)
    return 50 + torch.randn(6, 2, 4, 5, 6, generator=generator), torch.randn(6, 3, 3, 4, 5, generator=generator)


def take_part(number: int, count: int, folder: Path) -> None:
    distributed.init_process_group("gloo")
    network = make_network()
    batch, weight = make_batch()
    rows = slice(0, 4) if number == 0 else slice(4, 6)  # unequal parts
    part = batch[rows].clone().requires_grad_()
    with BatchNormCalls(synchronize):
        output = network(part)
    # the same way as in training: each process's loss is a part of the sum, and gradients are averaged
    (count * (output * weight[rows]).sum()).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    for gradient in gradients:
        distributed.all_reduce(gradient)
        gradient /= count
    torch.save(
        {"output": output.detach(), "input": part.grad / count, "gradients": gradients, **network.state_dict()},
        folder / f"{number}.pt",
    )
    distributed.destroy_process_group()


def test_two_processes_normalise_as_one(tmp_path: Path) -> None:
    assert start_processes(2, take_part, 2, tmp_path) == [0, 0]
    parts = [torch.load(tmp_path / f"{number}.pt") for number in range(2)]
    network = make_network()
    batch, weight = make_batch()
    batch.requires_grad_()
    output = network(batch)
    (output * weight).sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([part["output"] for part in parts]), output.detach(), **close)
    torch.testing.assert_close(torch.cat([part["input"] for part in parts]), batch.grad, **close)
    for part in parts:
        torch.testing.assert_close(part["gradients"], [p.grad for p in network.parameters()], rtol=1e-4, atol=1e-3)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(part[name], tensor, **close)


def test_calls_that_do_not_normalise_by_their_batch_are_let_be() -> None:
    def refuse(call: object) -> Tensor:
        raise AssertionError

    norm, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 5)
    with BatchNormCalls(refuse):
        torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5)
        F.instance_norm(x)
        with pytest.raises(AssertionError):
            norm.train()(x)


def test_statistics_are_those_of_all_batches() -> None:
    norm = nn.BatchNorm3d(2)
    generator = torch.Generator().manual_seed(0)
    batches = [20 + 3 * torch.randn(2, 2, 3, 4, 5, generator=generator) * scale for scale in (1, 2, 5)]
    moments = Moments()
    before = copy.deepcopy(norm.state_dict())
    with BatchNormCalls(moments.measure):
        outputs = [norm(batch) for batch in batches]
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items() if "running" in name)
    torch.testing.assert_close(outputs[1], F.batch_norm(batches[1], None, None, training=True))
    assert moments.write() == 1
    values = np.concatenate([batch.numpy().transpose(1, 0, 2, 3, 4).reshape(2, -1) for batch in batches], axis=1)
    np.testing.assert_allclose(norm.running_mean.numpy(), values.mean(1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), values.var(1, ddof=1, dtype=np.float64), rtol=1e-5)


def test_norms_inside_an_inflated_network_are_found_as_volumes() -> None:
    """Their 2D modules run under the hidden axis; what they normalise is a volume."""
    encoder = create_encoder("resnet18", init="random", stages=2).train()
    shapes = []

    def note(call: object) -> Tensor:
        shapes.append(tuple(call.input.shape))  # type: ignore[attr-defined]
        return F.batch_norm(*call)  # type: ignore[misc]

    x = torch.randn(2, 1, 6, 32, 40)
    plain = encoder(x)
    with BatchNormCalls(note):
        found = encoder(x)
    assert shapes[0] == (2, 64, 3, 16, 20)
    assert len(shapes) == sum(isinstance(layer, nn.BatchNorm2d) for layer in encoder.modules())
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other)
