"""Trial runs leave out what keeps shapes; the shapes, refusals and networks are those of runs that compute."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medi3d.models import backbone, create_encoder, timm_backbones
from medi3d.models.backbone import run_for_shapes, try_run
from medi3d.models.shapes_only import _ACTIVATIONS


class _Every(nn.Module):
    """Every function that is left out, between convolutions that tell its shape on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 5, (1, 2))
        self.norms = nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(6))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norms(self.first(x))
        maps = [activation(x) for activation in _ACTIVATIONS]
        return [*maps, self.last(functional.relu(input=maps[-1]))]


def test_shapes_are_those_of_a_run_that_computes() -> None:
    network, shape = _Every().eval(), (2, 3, 9, 13)
    expected = [map_.shape for map_ in network(torch.rand(shape))]
    assert expected[0] == (2, 4, 4, 6)
    assert [map_.shape for map_ in run_for_shapes(network, shape)] == expected


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.LayerNorm(7), nn.LayerNorm(4)])
def test_a_norm_of_another_size_still_refuses(norm: nn.Module) -> None:
    assert try_run(norm, (2, 3, 4, 8)) is None
    with pytest.raises(RuntimeError, match=r"running_mean|normalized_shape"):
        norm.eval()(torch.zeros(2, 3, 4, 8))


def test_a_norm_without_statistics_is_run() -> None:
    assert run_for_shapes(nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 4, 5)).shape == (2, 3, 4, 5)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "torchvision/mobilenet_v3_small"])
def test_networks_are_the_same_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> tuple[list[Tensor], object]:
        torch.manual_seed(3)
        encoder = create_encoder(name, init="random", stages=3).eval()
        with torch.no_grad():
            maps = encoder(torch.rand(1, 1, 8, 64, 32, generator=torch.Generator().manual_seed(1)))
        return maps, (encoder.channels, encoder.strides, encoder.slices, encoder.is_resized)

    timm_backbones._plan.cache_clear()
    maps, facts = make()
    monkeypatch.setattr(backbone, "ShapesOnly", nullcontext)
    timm_backbones._plan.cache_clear()
    expected, expected_facts = make()
    assert facts == expected_facts
    assert all(torch.equal(map_, other) for map_, other in zip(maps, expected, strict=True))
