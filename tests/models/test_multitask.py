"""Networks on one encoder: what they share, what they do not, and the encoder that is made of all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.models.build import create_model
from medi3d.models.multitask import create_networks, find_encoders, merge_encoders


def with_model(task: TaskConfig, **options: object) -> TaskConfig:
    return replace(task, model=replace(task.model, **options))  # type: ignore[arg-type]


@pytest.fixture
def two_channels(segmentation_task: TaskConfig) -> TaskConfig:
    data = replace(segmentation_task.data, channels=("T1", "T2"))
    return with_model(replace(segmentation_task, name="two_channels", data=data), stages=3)


@pytest.fixture
def tasks(segmentation_task: TaskConfig, classification_task: TaskConfig, two_channels: TaskConfig) -> list[TaskConfig]:
    """Two and three stages, one and two channels."""
    return [segmentation_task, classification_task, two_channels]


def norms(encoder: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in encoder.named_modules() if hasattr(module, "running_var")}  # type: ignore[misc]


def test_a_step_on_one_task_changes_the_others_encoders_and_no_other_head(tasks: list[TaskConfig]) -> None:
    torch.manual_seed(0)
    networks = create_networks(tasks)
    x = torch.randn(2, 1, 8, 10, 9)
    others = [networks[1], networks[2]]
    before = [network.eval().encoder(x.repeat(1, network.encoder.in_channels, 1, 1, 1))[-1] for network in others]
    statistics = [{name: norm.running_mean.clone() for name, norm in norms(n.encoder).items()} for n in others]
    heads = [{k: v.clone() for k, v in n.state_dict().items() if not k.startswith("encoder.")} for n in others]

    optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-2, weight_decay=0.1)
    networks[0].train()(x).square().mean().backward()
    optimizer.step()

    for network, was, own, head in zip(others, before, statistics, heads, strict=True):
        now = network.eval().encoder(x.repeat(1, network.encoder.in_channels, 1, 1, 1))[-1]
        assert (now - was).abs().max() > 1e-3
        assert all(torch.equal(norm.running_mean, own[name]) for name, norm in norms(network.encoder).items())
        assert all(torch.equal(value, head[name]) for name, value in network.state_dict().items() if name in head)


def test_only_the_first_layer_is_apart_and_only_for_other_channels(tasks: list[TaskConfig]) -> None:
    first, second, third = find_encoders(create_networks(tasks))
    for fewer in (first, second):
        shared = {id(parameter) for parameter in third.parameters()}
        own = [name for name, parameter in fewer.named_parameters() if id(parameter) not in shared]
        assert own == ["body.body.conv_stem.weight"]
    # two tasks of one channel have the same first layer, too
    assert (
        dict(first.named_parameters())["body.body.conv_stem.weight"]
        is (dict(second.named_parameters())["body.body.conv_stem.weight"])
    )
    assert len(list(third.parameters())) > len(list(first.parameters()))


def test_the_first_network_is_that_of_its_task_alone(segmentation_task: TaskConfig, two_channels: TaskConfig) -> None:
    torch.manual_seed(5)
    alone = create_model(segmentation_task).state_dict()
    torch.manual_seed(5)
    together = create_networks([segmentation_task, with_model(two_channels, stages=2)])[0].state_dict()
    assert all(torch.equal(alone[name], value) for name, value in together.items())


@pytest.mark.parametrize("change", [{"network": "monai/basic_unet"}, {"depth_plan": "slicewise"}])
def test_encoders_that_cannot_be_shared_are_refused(change: dict[str, object], tasks: list[TaskConfig]) -> None:
    match = "has no encoder" if "network" in change else "cannot be shared: body.body.conv_stem.weight is"
    with pytest.raises(ConfigError, match=match):
        create_networks([tasks[0], with_model(replace(tasks[0], name="other"), **change)])


def test_a_merged_encoder_has_all_stages_and_the_statistics_of_the_mixture(tasks: list[TaskConfig]) -> None:
    """Against the moments of the pooled values, computed directly."""
    networks = create_networks(tasks)
    shares = [1.0, 2.0, 1.0]
    name, drawn = "body.body.bn1", []
    for number, share in enumerate(shares):
        values = torch.randn(int(share) * 500, 32, dtype=torch.float64) * (number + 1) + 3 * number
        drawn.append(values)
        norm = norms(networks[number].encoder)[name]
        norm.running_mean.copy_(values.mean(0))
        norm.running_var.copy_(values.var(0, correction=0))
    pooled = torch.cat(drawn)
    state = {key: value.clone() for key, value in networks.state_dict().items()}
    for channels, own in ((1, 0), (2, 2)):
        merged = merge_encoders(tasks, state, shares, channels=channels)
        assert (merged.in_channels, len(merged.channels)) == (channels, 3)
        found = norms(merged)[name]
        torch.testing.assert_close(found.running_mean.double(), pooled.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.running_var.double(), pooled.var(0, correction=0), rtol=1e-5, atol=1e-5)
        # normalised by its batch, it answers as the task's own network does
        x = torch.randn(2, channels, 8, 10, 9)
        for mine, theirs in zip(networks[own].train().encoder(x), merged.train()(x), strict=False):
            assert torch.equal(mine, theirs)
