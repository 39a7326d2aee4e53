"""Layers by themselves: any setting of a 2D layer is exact on equal slices, and agrees with torch's 3D layers."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from medi3d.inflation import inflate
from medi3d.inflation.convert import _convert
from medi3d.inflation.converters import Conversion
from medi3d.inflation.fold import Inflated


def inflate_layer(layer, **options):
    conversion = Conversion(options.get("init", "mean"), options.get("depth_padding", "replicate"))
    return Inflated(_convert(layer, "", conversion), conversion.stack)


def assert_exact(layer, channels=4, depth=5, size=(9, 10)):
    slices = torch.randn(2, channels, *size)
    expected = layer(slices)
    output = inflate_layer(layer)(slices[:, :, None].repeat(1, 1, depth, 1, 1))
    torch.testing.assert_close(output, expected[:, :, None].expand_as(output), atol=1e-4, rtol=1e-4)
    return output


# The 2D reference warns where it copies its input to pad it unevenly.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(deadline=None, max_examples=80)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    padding=st.one_of(st.sampled_from(["same", "valid"]), st.integers(0, 3)),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    depth=st.integers(1, 8),
)
def test_any_convolution_is_exact(kernel, stride, dilation, padding, groups, bias, mode, depth):
    assume(padding != "same" or stride == (1, 1))
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias, mode)
    assert_exact(layer, depth=depth)


@settings(deadline=None, max_examples=60)
@given(
    pool=st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]),
    kernel=st.integers(1, 4),
    stride=st.one_of(st.none(), st.integers(1, 3)),
    padding=st.integers(0, 2),
    ceil_mode=st.booleans(),
    depth=st.integers(1, 7),
)
def test_any_pool_is_exact(pool, kernel, stride, padding, ceil_mode, depth):
    assert_exact(pool(kernel, stride, min(padding, kernel // 2), ceil_mode=ceil_mode), depth=depth)


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_average_pool_counts_padding_in_plane_as_the_2d_pool(count_include_pad):
    assert_exact(nn.AvgPool2d(3, 2, 1, count_include_pad=count_include_pad))


@pytest.mark.parametrize("ceil_mode", [True, False])
def test_max_pool_is_torchs_3d_pool(ceil_mode):
    volume = torch.randn(2, 3, 8, 10, 9)
    expected = functional.max_pool3d(volume, 3, 2, 1, ceil_mode=ceil_mode)
    torch.testing.assert_close(inflate_layer(nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode))(volume), expected)


def test_average_pool_is_torchs_3d_pool():
    volume = torch.randn(2, 3, 8, 10, 9)
    torch.testing.assert_close(inflate_layer(nn.AvgPool2d(2, 2))(volume), functional.avg_pool3d(volume, 2, 2))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_zero_padded_convolution_is_torchs_conv3d(groups, stride):
    layer = nn.Conv2d(4, 8, 3, stride, padding=1, groups=groups)
    inflated = inflate_layer(layer, depth_padding="zeros")
    volume = torch.randn(2, 4, 6, 8, 7)
    kernel = inflated.body.weight
    assert kernel.shape == (8, 4 // groups, 3, 3, 3)
    expected = functional.conv3d(volume, kernel, layer.bias, stride, 1, 1, groups)
    torch.testing.assert_close(inflated(volume), expected, atol=1e-5, rtol=1e-4)


def test_padding_modes_differ_at_the_ends_only():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    volume = torch.randn(1, 2, 5, 6, 7)
    replicate, zeros = (inflate_layer(layer, depth_padding=mode)(volume) for mode in ("replicate", "zeros"))
    torch.testing.assert_close(replicate[:, :, 1:-1], zeros[:, :, 1:-1])
    for end in (0, -1):
        assert (replicate[:, :, end] - zeros[:, :, end]).abs().max() > 0.01


@pytest.mark.parametrize("depth", [5, 6])
def test_strided_pointwise_convolution_keeps_step_with_its_sibling(depth):
    volume = torch.randn(1, 2, depth, 6, 7)
    pointwise, sibling = nn.Conv2d(2, 3, 1, stride=2), nn.Conv2d(2, 3, 3, stride=2, padding=1)
    output = inflate_layer(pointwise)(volume)
    assert output.shape == inflate_layer(sibling)(volume).shape
    torch.testing.assert_close(output, functional.conv3d(volume, pointwise.weight[:, :, None], pointwise.bias, 2))


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
def test_statistics_are_those_of_the_volume(layer):
    volume = torch.randn(2, 4, 3, 5, 6) * torch.arange(1, 4).view(3, 1, 1)
    expected = functional.group_norm(volume, 2 if isinstance(layer, nn.GroupNorm) else 4)
    torch.testing.assert_close(inflate_layer(layer)(volume), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("pool", "reduce"), [(nn.AdaptiveAvgPool2d, "mean"), (nn.AdaptiveMaxPool2d, "amax")])
def test_adaptive_pools_span_depth(pool, reduce):
    volume = torch.randn(2, 3, 4, 6, 8)
    output = inflate_layer(pool(1))(volume)
    torch.testing.assert_close(output, getattr(volume, reduce)((2, 3, 4), keepdim=True))
    assert inflate_layer(pool((3, 2)))(volume).shape == (2, 3, 1, 3, 2)


def test_drop_path_drops_whole_volumes():
    class DropPath(nn.Module):
        def forward(self, x):
            return x * torch.tensor([0.0, 2.0]).view(-1, *[1] * (x.ndim - 1))

    output = inflate_layer(DropPath())(torch.ones(2, 3, 4, 5, 6))
    assert output.flatten(1).unique(dim=1).tolist() == [[0], [2]]


def test_wide_stride_one_sided_kernel_takes_depth_from_its_longer_axis():
    net = inflate(nn.Conv2d(1, 2, (1, 5), stride=(1, 2), padding=(0, 2)))
    assert net.body.weight.shape == (2, 1, 5, 1, 5)
    assert net(torch.zeros(1, 1, 8, 6, 8)).shape == (1, 2, 4, 6, 4)
