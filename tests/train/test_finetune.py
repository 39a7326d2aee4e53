"""Freezing and norm statistics of a pretrained encoder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig, load_task
from medi3d.models.build import create_model
from medi3d.train.finetune import STATISTICS_PATCHES, FineTuning, find_norms, reestimate


def make(**overrides: object) -> tuple[nn.Module, FineTuning, TaskConfig]:
    values: dict[str, object] = {
        "model.init": "random",
        "model.backbone": "resnet18",
        "model.stages": 2,
        "model.depth_plan": "symmetric",
        "model.dropout": 0.5,
    }
    task = load_task("hippocampus", overrides=values | overrides)
    torch.manual_seed(0)
    model = create_model(task)
    return model, FineTuning(model, task), task


def batches() -> Iterator[dict[str, Any]]:
    for number in itertools.count():
        generator = torch.Generator().manual_seed(number)
        yield {"image": (1 + number % 3) * torch.randn(8, 1, 6, 16, 20, generator=generator) + number % 2}


def step(model: nn.Module) -> None:
    model(next(batches())["image"][:2]).square().mean().backward()


def test_a_frozen_encoder_takes_no_gradient_and_answers_as_in_prediction() -> None:
    model, finetuning, _ = make(**{"train.freeze": 0.3})
    finetuning.update(0.0)
    finetuning.set_modes()
    statistics = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    x = next(batches())["image"][:2]
    with torch.no_grad():
        expected = model.eval().encoder(x)
    finetuning.set_modes()
    step(model)
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "encoder" not in name)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.encoder.named_buffers())
    for one, other in zip(model.encoder(x), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert model.training
    assert model.head.training


def test_it_is_trained_once_its_share_of_the_schedule_is_over() -> None:
    model, finetuning, _ = make(**{"train.freeze": 0.3})
    for progress in (0.0, 0.29):
        finetuning.update(progress)
        assert finetuning.frozen
    finetuning.update(0.3)
    finetuning.set_modes()
    assert not finetuning.frozen
    step(model)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_what_the_network_itself_froze_stays_so() -> None:
    model, _, task = make(**{"train.freeze": 0.3})
    first = next(model.encoder.parameters())
    first.requires_grad_(False)
    finetuning = FineTuning(model, task)
    finetuning.update(0.0)
    finetuning.update(0.5)
    assert not first.requires_grad
    assert sum(not parameter.requires_grad for parameter in model.parameters()) == 1


def test_the_encoder_warms_up_again() -> None:
    _, finetuning, _ = make(**{"train.freeze": 0.4, "train.warmup": 0.2})
    assert [finetuning.rate_factor(progress) for progress in (0.1, 0.4, 0.5, 0.6, 0.9)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
    _, plain, _ = make()
    assert plain.rate_factor(0.0) == 1.0


def test_frozen_statistics_survive_training_mode_while_weights_learn() -> None:
    model, finetuning, _ = make(**{"train.norm_statistics": "frozen"})
    before = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    for _ in range(2):
        model.train()  # as after a validation
        finetuning.set_modes()
        step(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.encoder.named_buffers())
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
    assert {module.training for module in find_norms(model.encoder)} == {False}
    assert model.encoder.body.training
    assert finetuning.find_updated_norms() == []


def test_reestimated_statistics_are_exact_averages_over_the_patches() -> None:
    """Of the first norm, whose input is a plain convolution; and the same again, whatever the running means were."""
    model, _, _ = make(**{"train.norm_statistics": "reestimate"})
    norm = find_norms(model.encoder)[0]
    seen: list[Tensor] = []
    images = [batch["image"] for batch in itertools.islice(batches(), STATISTICS_PATCHES // 8)]
    model.eval()
    hook = model.encoder.body.body.conv1.register_forward_hook(
        lambda module, args, output: seen.append(_reveal(output))
    )
    with torch.no_grad():
        for image in images:
            model.encoder(image)
    hook.remove()
    modes = [module.training for module in model.modules()]
    count = reestimate(model, batches(), batch_size=8, processes=1)
    assert count == len(find_norms(model.encoder))
    assert [module.training for module in model.modules()] == modes
    values = torch.cat(seen).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), values.var(1), rtol=1e-4, atol=1e-5)
    first = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    for layer in find_norms(model.encoder):
        layer.reset_running_stats()
    reestimate(model, batches(), batch_size=8, processes=1)
    assert all(torch.equal(buffer, first[name]) for name, buffer in model.encoder.named_buffers() if "num" not in name)
    assert all(parameter.grad is None for parameter in model.parameters())


def _reveal(output: Tensor) -> Tensor:
    """Return a map with its hidden depth shown: (B, C, H, W) → (B, C, D, H, W)."""
    from torch._C._functorch import get_unwrapped, maybe_get_bdim

    return get_unwrapped(output).movedim(maybe_get_bdim(output), 2).detach().clone()


def test_a_network_without_encoder_is_trained_as_it_is() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    finetuning = FineTuning(model, load_task("hippocampus"))
    finetuning.update(0.0)
    finetuning.set_modes()
    assert all(module.training for module in model.modules())
    assert finetuning.find_updated_norms() == [model[1]]
    assert reestimate(model, batches(), batch_size=8, processes=1) == 0
