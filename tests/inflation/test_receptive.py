"""Measured receptive fields against those that kernels, strides and dilations add up to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medi3d.inflation import inflate
from medi3d.inflation.receptive import DepthField, measure_depth_fields


class Stages(nn.Sequential):
    """A list of the outputs of all layers."""

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self:
            x = layer(x)
            outputs.append(x)
        return outputs


def expected_fields(layers: list[tuple[int, int, int]]) -> list[int]:
    """Kernel, stride and dilation of each layer → the field after it: 1 + Σ (k − 1) · dilation · strides before it."""
    field, step, fields = 1, 1, []
    for kernel, stride, dilation in layers:
        field += (kernel - 1) * dilation * step
        step *= stride
        fields.append(field)
    return fields


@pytest.mark.parametrize("init", ["mean", "center", "overshoot"])
@pytest.mark.parametrize(
    "layers",
    [
        [(7, 2, 1), (3, 2, 1), (3, 1, 1)],
        [(3, 1, 1), (3, 1, 2), (5, 1, 3)],
        [(4, 4, 1), (7, 1, 1), (2, 2, 1), (7, 1, 1)],
        [(1, 1, 1), (5, 1, 1)],
    ],
)
def test_convolutions(layers: list[tuple[int, int, int]], init: str) -> None:
    """Fresh ``center`` kernels have zeros beside the middle; their fields are those of the kernels nonetheless."""
    torch.manual_seed(0)
    channels = [1, *[3] * len(layers)]
    convolutions = [
        nn.Conv2d(a, b, kernel, stride, 0 if kernel == stride else dilation * (kernel - 1) // 2, dilation)
        for a, b, (kernel, stride, dilation) in zip(channels, channels[1:], layers, strict=False)
    ]
    found = measure_depth_fields(inflate(Stages(*convolutions), init=init), plane=(24, 16))
    assert [field.slices for field in found] == expected_fields(layers)
    assert all(field.is_inside for field in found)


def test_pools_and_the_middle_of_what_was_tried() -> None:
    torch.manual_seed(0)
    net = Stages(nn.Conv2d(2, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    found = measure_depth_fields(inflate(net), in_channels=2, plane=(12, 10))
    assert [field.slices for field in found] == expected_fields([(3, 1, 1), (3, 2, 1), (3, 1, 1), (1, 1, 1)])
    assert found[0] == DepthField(first=31, last=33, depth=64)
    assert str(found[0]) == "3 slices"


def test_what_spans_the_volume_is_told_from_what_ends_beyond_it() -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (field,) = measure_depth_fields(inflate(whole), plane=(8, 8), max_voxels=8 * 8 * 256)
    assert (field.slices, field.is_whole, field.is_inside, str(field)) == (256, True, False, "whole volume")
    local = inflate(nn.Sequential(*(nn.Conv2d(1, 1, 31, padding=15) for _ in range(10))))
    (field,) = measure_depth_fields(local, plane=(4, 4), max_voxels=4 * 4 * 256)
    assert (field.slices, field.is_whole, field.is_inside, str(field)) == (256, False, False, "≥ 256 slices")


def test_no_deeper_volume_is_tried_where_the_first_stage_sees_all() -> None:
    stages = Stages(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    stages[0].register_forward_hook(lambda layer, args, output: output * output.mean((2, 3), keepdim=True).sigmoid())
    found = measure_depth_fields(inflate(stages), plane=(6, 6))
    assert [(field.is_whole, field.depth) for field in found] == [(True, 64), (True, 64)]


def test_deeper_volumes_are_tried_where_the_field_does_not_end() -> None:
    layers = [nn.Conv2d(1, 1, 31, padding=15, bias=False) for _ in range(4)]
    (field,) = measure_depth_fields(inflate(nn.Sequential(*layers)), plane=(4, 4))
    assert (field.slices, field.depth) == (121, 256)


def test_modes_and_gradients_stay() -> None:
    network = inflate(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2).eval())).train()
    network.body[1].eval()
    measure_depth_fields(network, plane=(6, 6))
    assert network.training
    assert not network.body[1].training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert int(network.body[1].num_batches_tracked) == 0
