"""MONAI's networks behind ``model.network``."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from torch import nn

from medi3d.config import TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.models import create_model
from medi3d.models.monai_networks import plan_levels
from medi3d.models.outputs import Outputs
from medi3d.models.padding import Padded

NETWORKS = ["monai/basic_unet", "monai/dynunet"]


def make_task(network: str, name: str = "hippocampus", **model: Any) -> TaskConfig:
    task = load_task(name)
    return replace(task, model=replace(task.model, network=network, init="random", **model))


def count_millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize("network", NETWORKS)
def test_any_size_is_answered_at_that_size(network: str) -> None:
    model = create_model(make_task(network)).eval()
    with torch.inference_mode():
        for shape in ((17, 33, 20), (3, 16, 40)):
            assert model(torch.randn(1, 1, *shape)).shape == (1, 3, *shape)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_size_that_fits_is_not_padded(network: str) -> None:
    model = create_model(make_task(network)).eval()
    volume = torch.randn(1, 1, 16, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(model(volume), model.network(volume))


@pytest.mark.parametrize("network", NETWORKS)
def test_they_have_about_as_many_parameters_as_the_default_network(network: str) -> None:
    assert count_millions(create_model(make_task("inflated"))) == pytest.approx(5.0, abs=0.1)
    assert count_millions(create_model(make_task(network))) == pytest.approx(5.7, abs=0.1)


def test_dynunet_gives_its_coarser_logits_as_they_are() -> None:
    """Enlarged and stacked they are what MONAI's own forward gives."""
    model = create_model(make_task("monai/dynunet", deep_supervision=2))
    volume = torch.randn(2, 1, 16, 24, 32)
    outputs = model(volume)
    assert isinstance(outputs, Outputs)
    assert [tuple(logits.shape[2:]) for logits in outputs.logits] == [(16, 24, 32), (8, 12, 16), (4, 6, 8)]
    inner = model.network.network
    assert isinstance(inner, DynUNet)
    stacked = inner(volume)
    for level, logits in enumerate(outputs.logits):
        enlarged = torch.nn.functional.interpolate(logits, size=(16, 24, 32))
        torch.testing.assert_close(stacked[:, level], enlarged)
    copy.deepcopy(create_model(make_task("monai/dynunet", deep_supervision=1)))


def test_a_network_that_has_trained_can_be_copied() -> None:
    model = create_model(make_task("monai/dynunet", deep_supervision=1))
    model(torch.randn(1, 1, 16, 16, 16))
    copied = copy.deepcopy(model).eval()
    with torch.inference_mode():
        assert copied(torch.randn(1, 1, 9, 16, 16)).shape == (1, 3, 9, 16, 16)


def test_coarser_logits_of_a_padded_volume_lose_what_padding_added() -> None:
    model = create_model(make_task("monai/dynunet", deep_supervision=2))
    outputs = model(torch.randn(1, 1, 9, 17, 22))  # padded to 16 × 24 × 24
    assert [tuple(logits.shape[2:]) for logits in outputs.logits] == [(9, 17, 22), (5, 9, 11), (3, 5, 6)]


def test_padding_repeats_the_far_ends() -> None:
    class Last(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[2:] == (4, 6, 8)
            assert torch.equal(x[:, :, 3], x[:, :, 2])
            assert torch.equal(x[..., 7], x[..., 6])
            return x

    volume = torch.randn(1, 1, 3, 6, 7)
    torch.testing.assert_close(Padded(Last(), (4, 2, 8))(volume), volume)


@pytest.mark.parametrize(
    ("size", "spacing", "kernels", "strides"),
    [
        ((40, 56, 40), (1.0, 1.0, 1.0), [(3, 3, 3)] * 4, [(1, 1, 1)] + [(2, 2, 2)] * 3),
        # 4 mm slices: 1-tap kernels across them until in-plane voxels are as long
        (
            (16, 64, 64),
            (4.0, 1.0, 1.0),
            [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
            [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)],
        ),
        # an axis of few voxels is left whole, and does not hold the others back
        ((5, 32, 16), (1.0, 1.0, 1.0), [(3, 3, 3)] * 4, [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 1)]),
    ],
)
def test_kernels_and_strides_follow_nnunets_rules(
    size: tuple[int, int, int], spacing: tuple[float, float, float], kernels: list[Any], strides: list[Any]
) -> None:
    assert plan_levels(size, spacing) == (kernels, strides)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (make_task("monai/dynunet", name="lung_nodule"), "they segment; classification takes model.network inflated"),
        (make_task("monai/basic_unet", drop_path=0.1), "model.drop_path is stochastic depth of an inflated backbone"),
        (make_task("monai/basic_unet", deep_supervision=1), "it has none"),
        (make_task("monai/dynunet", deep_supervision=3), "has 2 levels that are coarser than its output; got 3"),
        (make_task("dynunet"), "unknown network 'dynunet'; did you mean 'monai/dynunet'"),
    ],
)
def test_what_they_do_not_have_is_refused(task: TaskConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model(task)


def test_a_second_head_is_refused() -> None:
    task = make_task("monai/dynunet")
    with pytest.raises(ConfigError, match=r"no second head for data\.classes"):
        create_model(replace(task, data=replace(task.data, classes=("a", "b"))))
