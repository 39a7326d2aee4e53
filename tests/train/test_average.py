"""The moving average against its sum written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medi3d.train.average import WeightAverage, warmed_decay


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, (1, 2, 3)), nn.BatchNorm3d(2))


def change(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def test_the_average_is_the_weighted_sum_of_all_weights() -> None:
    model = make()
    average = WeightAverage(model, 0.5)
    seen = [{name: tensor.clone() for name, tensor in model.state_dict().items()}]
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 13):
        change(model, generator)
        average.update(step)
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    shares = [1.0]
    for step in range(1, 13):
        decay = min(0.5, (1 + step) / (10 + step))
        shares = [share * decay for share in shares] + [1 - decay]
    assert sum(shares) == pytest.approx(1)
    trained = seen[-1]
    with average.applied():
        found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in found.items():
        if tensor.is_floating_point():
            expected = sum(share * one[name].double() for share, one in zip(shares, seen, strict=True))
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
        else:
            assert tensor == 12
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


def test_an_average_is_taken_over_from_a_state_and_the_weights_stay() -> None:
    model = make()
    average = WeightAverage(model, 0.9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: torch.full_like(tensor, 3) for name, tensor in before.items()}
    average.load_state_dict(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with average.applied():
        assert all((tensor == 3).all() for tensor in model.state_dict().values())


def test_the_weights_come_back_after_an_error() -> None:
    model = make()
    average = WeightAverage(model, 0.9)
    average.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})

    def fail() -> None:
        assert not model[0].weight.any()
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"), average.applied():
        fail()
    assert model[0].weight.any()


def test_an_optimizer_goes_on_with_the_weights_that_it_knows() -> None:
    """Swapping puts other memory under the same parameters, and takes it away again."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    average = WeightAverage(model, 0.9)
    with average.applied():
        pass
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    assert torch.equal(model[0].weight, before - 1)


def test_the_decay_warms_up() -> None:
    assert [warmed_decay(0.99, step) for step in (0, 8, 10_000)] == [0.1, 0.5, 0.99]
