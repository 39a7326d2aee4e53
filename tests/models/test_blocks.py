"""The decoder's blocks against MONAI's, which they take the weights and the names of."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

from medi3d.models.blocks import ConvBlock, PointConv, normalize_and_activate

SHAPES = [(2, 3, 5, 7, 6), (1, 4, 1, 6, 5), (3, 1, 4, 1, 7), (2, 2, 3, 4, 1)]


def make_pair(in_channels: int, out_channels: int) -> tuple[ConvBlock, nn.Module]:
    torch.manual_seed(0)
    ours = ConvBlock(in_channels, out_channels)
    theirs = Convolution(
        3,
        in_channels,
        out_channels,
        adn_ordering="NA",
        norm=("instance", {"affine": True}),
        act=("leakyrelu", {"negative_slope": 0.01}),
        bias=False,
    )
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(output: Tensor, sources: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    return list(torch.autograd.grad((output * weights).sum(), sources))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("takes_gradient", [True, False])
def test_a_block_is_monais(takes_gradient: bool, layout: torch.memory_format) -> None:
    """Side by side as one, whether the second map takes a gradient or, as the volume, does not."""
    ours, theirs = make_pair(5, 3)
    first = torch.randn(2, 4, 5, 7, 6).contiguous(memory_format=layout).requires_grad_()
    second = torch.randn(2, 1, 5, 7, 6).requires_grad_(takes_gradient)
    found, expected = ours(first, second), theirs(torch.cat([first, second], 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    sources = [first, *([second] if takes_gradient else [])]
    for ours_grad, theirs_grad in zip(
        gradients(found, [*sources, *ours.parameters()]),
        gradients(expected, [*sources, *theirs.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ours(first, second), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_and_activation_are_pytorchs(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    """Axes of one entry make the layout ambiguous."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(shape[1], affine=True)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    expected = nn.functional.leaky_relu(norm(x), 0.01)
    found = normalize_and_activate(x, norm)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    sources = [x, *norm.parameters()]
    for ours_grad, theirs_grad in zip(gradients(found, sources), gradients(expected, sources), strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=1e-4)


def test_maps_stay_in_channels_last_memory() -> None:
    """What the speed on a CPU comes from."""
    x = torch.randn(2, 4, 5, 7, 6).contiguous(memory_format=torch.channels_last_3d)
    for layer in (ConvBlock(4, 3), PointConv(4, 3)):
        assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_point_convolution_is_pytorchs() -> None:
    conv = PointConv(4, 3)
    x = torch.randn(2, 4, 5, 7, 6)
    torch.testing.assert_close(conv(x), nn.functional.conv3d(x, conv.weight, conv.bias))


def test_a_block_runs_under_autocast() -> None:
    ours, theirs = make_pair(4, 3)
    x = torch.randn(2, 4, 5, 7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), theirs(x), rtol=0.05, atol=0.05)
    found.float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in ours.parameters())
