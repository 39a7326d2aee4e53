"""Parameter groups: what decays, and how fast each encoder stage learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medi3d.config import TaskConfig, load_task
from medi3d.models import create_encoder
from medi3d.models.build import create_model
from medi3d.train.optimizer import create_optimizer, find_stages, group_parameters

BACKBONES = [
    "test_resnet",
    "tf_efficientnet_lite0",
    pytest.param("mobilenetv3_small_050", marks=pytest.mark.slow),
    pytest.param("regnetx_002", marks=pytest.mark.slow),
    "test_convnext",
    pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    "vit_tiny_patch16_224",
    "torchvision/resnet18",
    pytest.param("torchvision/densenet121", marks=pytest.mark.slow),
    pytest.param("torchvision/vit_b_16", marks=pytest.mark.slow),
]


def make_task(**overrides: object) -> TaskConfig:
    values = {"model.init": "random", "model.depth_plan": "symmetric", "train.learning_rate": 0.5}
    return load_task("hippocampus", overrides=values | overrides)


def rates(model: nn.Module, task: TaskConfig) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = group_parameters(model, task)
    found = {names[id(parameter)]: group["scale"] for group in groups for parameter in group["params"]}
    assert len(found) == len(names) == sum(len(group["params"]) for group in groups)
    return {name: found[name] for name in names.values()}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_has_the_stage_of_the_first_map_that_it_changes(name: str) -> None:
    """Independent of the graph: a gradient of each map, by numbers."""
    encoder = create_encoder(name, init="random").eval()
    size = tuple(encoder.slices.size) if encoder.slices.step is None else (max(32, encoder.slices.step),) * 2
    stages = find_stages(encoder, (8, *size))
    assert stages.keys() == dict(encoder.named_parameters()).keys()
    assert set(stages.values()) == set(range(len(encoder.strides)))
    named = list(encoder.named_parameters())
    assert stages[named[0][0]] == 0 or name.startswith("vit")
    maps = encoder(torch.randn(1, 1, 4, *size))
    for stage, feature in enumerate(maps):
        gradients = torch.autograd.grad(
            feature.square().sum(), [p for _, p in named], allow_unused=True, retain_graph=True
        )
        used = {name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is not None}
        assert {name for name in used if stages[name] == stage} == {name for name in used if stages[name] >= stage}
        assert all(name in used for name, own in stages.items() if own == stage and stage < len(maps) - 1)


def test_rates_fall_from_the_decoder_to_the_stem() -> None:
    task = make_task(**{"model.backbone": "resnet18", "model.stages": 3, "train.layer_decay": 0.5})
    model = create_model(task)
    found = rates(model, task)
    assert {rate for name, rate in found.items() if not name.startswith("encoder.")} == {1.0}
    encoder = {name: rate for name, rate in found.items() if name.startswith("encoder.")}
    assert set(encoder.values()) == {0.5, 0.25, 0.125}
    (stem,) = (rate for name, rate in encoder.items() if name.endswith("conv1.weight") and ".layer" not in name)
    assert stem == 0.125
    assert {rate for name, rate in encoder.items() if "layer2" in name} == {0.5}
    assert [rate for rate in encoder.values()] == sorted(encoder.values())


def test_without_decay_all_rates_are_equal() -> None:
    task = make_task(**{"model.stages": 2})
    assert set(rates(create_model(task), task).values()) == {1.0}


def test_a_network_without_encoder_has_one_rate() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True))
    groups = group_parameters(model, make_task(**{"train.weight_decay": 0.3}))
    decayed, kept = sorted(groups, key=lambda group: -group["weight_decay"])
    assert ([p.ndim for p in decayed["params"]], decayed["weight_decay"]) == ([5], 0.3)
    assert (len(kept["params"]), kept["weight_decay"]) == (3, 0.0)
    assert not any(group["encoder"] for group in groups)


def test_what_a_network_excepts_from_decay_does_not_decay() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed, self.weight = nn.Parameter(torch.zeros(1, 4, 3)), nn.Parameter(torch.zeros(3, 3))

        def no_weight_decay(self) -> set[str]:
            return {"pos_embed"}

    model = nn.ModuleDict({"tokens": Tokens()})
    groups = group_parameters(model, make_task())
    assert {id(p) for group in groups if not group["weight_decay"] for p in group["params"]} == {
        id(model["tokens"].pos_embed)
    }


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_is_that_of_the_plain_loop_in_any_memory_layout(name: str) -> None:
    """Fused kernels walk through memory, so gradients must lie as their weights do."""
    task = make_task(**{"train.optimizer": name, "train.learning_rate": 0.01, "train.weight_decay": 0.1})

    def run(make: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(2, 3, (1, 2, 3)), nn.Conv3d(3, 2, (3, 1, 2)))
        model[0].weight = nn.Parameter(model[0].weight.detach().contiguous(memory_format=torch.channels_last_3d))
        optimizer = make(model)
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            model(torch.randn(2, 2, 5, 6, 7)).square().mean().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    def plain(model: nn.Module) -> torch.optim.Optimizer:
        groups = group_parameters(model, task)
        if name == "sgd":
            return torch.optim.SGD(groups, lr=0.01, momentum=0.99, nesterov=True, foreach=False)
        return torch.optim.AdamW(groups, lr=0.01, foreach=False)

    found, expected = run(lambda model: create_optimizer(model, task)), run(plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
