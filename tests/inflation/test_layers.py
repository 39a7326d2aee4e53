"""Layers by themselves: any setting of a 2D layer is exact on equal slices, and agrees with torch's 3D layers."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers import BlurPool2d, DropPath, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from medi3d.errors import InflationError
from medi3d.inflation import PROFILES, inflate


class Mixed(nn.Module):
    """A network whose slices meet, whatever the layer in it does: the layer's output and a dummy pool of the input."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        functional.max_pool2d(x, 3, 1, 1)
        return self.layer(x)


def inflate_layer(layer, **options):
    return inflate(Mixed(layer), **options)


def assert_exact(layer, channels=4, depth=5, size=(9, 10), init="mean"):
    slices = torch.randn(2, channels, *size)
    expected = layer(slices)
    output = inflate_layer(layer, init=init)(slices[:, :, None].repeat(1, 1, depth, 1, 1))
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
    init=st.sampled_from(list(PROFILES)),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    depth=st.integers(1, 8),
)
def test_any_convolution_is_exact(kernel, stride, dilation, padding, groups, bias, init, mode, depth):
    assume(padding != "same" or stride == (1, 1))
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias, mode)
    assert_exact(layer, depth=depth, init=init)


@settings(deadline=None, max_examples=40)
@given(
    kernel=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    groups=st.sampled_from([1, 2]),
    init=st.sampled_from(list(PROFILES)),
    depth=st.integers(1, 5),
)
def test_any_transposed_convolution_is_exact(kernel, stride, padding, groups, init, depth):
    layer = nn.ConvTranspose2d(4, 6, kernel, stride, padding, groups=groups)
    output = assert_exact(layer, depth=depth, init=init)
    assert output.shape[2] == depth * stride


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


def test_max_pool_is_torchs_3d_pool():
    volume = torch.randn(2, 3, 8, 10, 9)
    expected = functional.max_pool3d(volume, 3, 2, 1)
    torch.testing.assert_close(inflate_layer(nn.MaxPool2d(3, 2, 1))(volume), expected)


def test_indices_of_a_pool_are_refused():
    with pytest.raises(InflationError, match="return_indices=True"):
        inflate_layer(nn.MaxPool2d(2, return_indices=True))(torch.zeros(1, 1, 4, 6, 6))


def test_average_pool_is_torchs_3d_pool():
    volume = torch.randn(2, 3, 8, 10, 9)
    torch.testing.assert_close(inflate_layer(nn.AvgPool2d(2, 2))(volume), functional.avg_pool3d(volume, 2, 2))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_zero_padded_convolution_is_torchs_conv3d(groups, stride):
    layer = nn.Conv2d(4, 8, 3, stride, padding=1, groups=groups)
    inflated = inflate_layer(layer, depth_padding="zeros")
    volume = torch.randn(2, 4, 6, 8, 7)
    kernel = inflated.body.layer.weight
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


def test_one_axis_that_an_adaptive_pool_keeps_keeps_depth():
    assert assert_exact(nn.AdaptiveAvgPool2d((None, 1))).shape == (2, 4, 5, 9, 1)


@pytest.mark.parametrize("make", [DropPath, lambda p: StochasticDepth(p, "row")])
def test_stochastic_depth_drops_whole_volumes(make):
    torch.manual_seed(0)
    output = inflate_layer(make(0.5)).train()(torch.ones(16, 3, 4, 5, 6))
    values = output.flatten(1)
    assert (values == values[:, :1]).all()
    assert values.unique().tolist() == [0, 2]


def test_dropout_is_drawn_for_each_voxel_and_for_each_channel():
    torch.manual_seed(0)
    volume = torch.ones(4, 8, 6, 5, 7)
    voxels = inflate_layer(nn.Dropout(0.5)).train()(volume)
    assert 0.4 < float((voxels == 0).float().mean()) < 0.6
    assert (voxels[:, :, 0] != voxels[:, :, 1]).any()
    channels = inflate_layer(nn.Dropout2d(0.5)).train()(volume).flatten(2)
    assert (channels == channels[:, :, :1]).all()
    assert channels.unique().tolist() == [0, 2]


@pytest.mark.parametrize("scale", [{"scale_factor": 2}, {"size": (18, 30)}])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampling_is_torchs_in_three_axes(mode, scale):
    volume = torch.randn(2, 3, 4, 9, 15)
    output = inflate_layer(nn.Upsample(mode=mode, **scale))(volume)
    expected = functional.interpolate(volume, scale_factor=2, mode="trilinear" if mode == "bilinear" else mode)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("factor", [2, 3])
def test_shuffled_pixels_are_exact_and_change_depth_as_the_plane(factor):
    assert assert_exact(nn.PixelUnshuffle(factor), size=(12, 6), depth=6).shape[2] == 6 // factor
    assert assert_exact(nn.PixelShuffle(factor), channels=36, size=(4, 5)).shape[2] == 5 * factor


@pytest.mark.parametrize("init", list(PROFILES))
@pytest.mark.parametrize("make", [StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame])
def test_standardised_convolutions_are_exact_and_stay_so_when_trained(make, init):
    layer = make(4, 6, 3, stride=2, bias=True)
    assert_exact(layer, init=init)
    inflated = inflate_layer(layer, init=init)
    weight = inflated.body.layer.weight
    inflated(torch.randn(1, 4, 5, 8, 9)).square().sum().backward()
    assert (weight.grad.abs().amax((0, 1, 3, 4)) > 0).all()
    with torch.no_grad():
        weight += torch.randn_like(weight)
        layer.weight.copy_(weight.sum(2))
    slices = torch.randn(1, 4, 8, 9)
    output = inflated(slices[:, :, None].expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(output, layer(slices)[:, :, None].expand_as(output), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [4, None])
def test_blur_pools_blur_depth_alike(channels):
    assert assert_exact(BlurPool2d(channels), depth=6).shape[2] == 3


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_are_exact_and_see_their_neighbours(make, batch_first):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make(4, 5, batch_first=batch_first, bidirectional=True)

        def forward(self, x):
            sequences = x.mean(3).permute(0, 2, 1)  # (B, H, C)
            states = self.rnn(sequences if batch_first else sequences.transpose(0, 1))[0]
            return (states if batch_first else states.transpose(0, 1)).permute(0, 2, 1)[..., None]

    assert_exact(Rows())
    inflated = inflate(Rows())
    volume = torch.randn(2, 4, 5, 7, 6)
    changed = volume.clone()
    changed[:, :, 2] += 1
    moved = (inflated(changed) - inflated(volume)).abs().amax((0, 1, 3, 4)) > 1e-6
    assert moved.tolist() == [False, True, True, True, False]
    assert inflated.body.rnn.depth_profile.shape == (3,)


def test_branches_of_unlike_depth_are_aligned():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2, padding=1)

        def forward(self, x):
            return torch.cat([self.conv(x), x[:, :, ::2, ::2]], dim=1)

    assert_exact(Shortcut())
    inflated, volume = inflate(Shortcut()), torch.randn(1, 4, 7, 9, 10)
    torch.testing.assert_close(inflated(volume)[:, 4:], volume[:, :, ::2, ::2, ::2])


def test_wide_stride_one_sided_kernel_takes_depth_from_its_longer_axis():
    net = inflate(nn.Conv2d(1, 2, (1, 5), stride=(1, 2), padding=(0, 2)))
    assert net.body.weight.shape == (2, 1, 5, 1, 5)
    assert net(torch.zeros(1, 1, 8, 6, 8)).shape == (1, 2, 4, 6, 4)
