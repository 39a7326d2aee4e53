"""Feature maps that are computed again: the same step, with less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from medi3d.config import load_task
from medi3d.models.activations import checkpoint_activations
from medi3d.models.build import create_model
from medi3d.planning.trial import LiveBytes

NETWORKS = ["test_resnet", "tf_efficientnet_lite0", "test_convnext", "torchvision/resnet18"]


def make(backbone: str) -> nn.Module:
    task = load_task(
        "hippocampus",
        overrides={
            "model.init": "random",
            "model.backbone": backbone,
            "model.stages": 3,
            "model.depth_plan": "symmetric",
            "model.dropout": 0.5,
            "model.decoder_channels": [8, 12, 16],
        },
    )
    torch.manual_seed(0)
    return create_model(task).train()


def run(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and gradients; dropout draws the same each time."""
    x = torch.randn(2, 1, 16, 32, 40, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    loss = take_step(model, x)
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def take_step(model: nn.Module, x: Tensor) -> Tensor:
    outputs = model(x)
    loss = (outputs if isinstance(outputs, Tensor) else outputs.logits[0]).square().mean()
    loss.backward()
    return loss


def count_bytes(model: nn.Module) -> int:
    """Return the most bytes that are alive in a step on larger patches, which is not computed."""
    hollow = model.to("meta")
    with LiveBytes() as live:
        take_step(hollow, torch.zeros(2, 1, 24, 64, 64, device="meta"))
    return live.peak


@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_step_is_the_same_and_takes_less(backbone: str) -> None:
    plain = make(backbone)
    names = set(plain.state_dict())
    changed = copy.deepcopy(plain)
    blocks = checkpoint_activations(changed)
    assert any(name.startswith("encoder") for name in blocks)
    assert any(name.startswith("blocks.") for name in blocks)
    assert set(changed.state_dict()) == names
    (expected, gradients), (found, others) = run(plain), run(changed)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)
    for (name, one), other in zip(plain.named_buffers(), changed.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=f"{name} was updated twice")
    for model in (plain, changed):
        model.zero_grad(set_to_none=True)
    assert count_bytes(changed) < 0.85 * count_bytes(plain)


def test_in_prediction_blocks_are_as_they_were() -> None:
    model = make("test_resnet").eval()
    x = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected = model(x)
        checkpoint_activations(model)
        assert torch.equal(model(x), expected)


def test_a_frozen_part_is_not_computed_again() -> None:
    model = make("test_resnet")
    calls = []
    model.encoder.body.body.layer1[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(model)
    run(model)
    assert len(calls) == 2
    model.encoder.requires_grad_(False)
    calls.clear()
    run(model)
    assert len(calls) == 1
