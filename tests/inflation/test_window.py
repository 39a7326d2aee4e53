import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medi3d.inflation.window import DepthWindow, pad_volume


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 5),
    stride=st.integers(1, 4),
    depth=st.integers(5, 16),
    ceil_mode=st.booleans(),
    padding=st.integers(0, 2),
)
def test_depth_of_pools_is_that_of_max_pool1d(size, stride, depth, ceil_mode, padding):
    padding = min(padding, size // 2)
    window = DepthWindow(size, stride, before=padding, after=padding, ceil_mode=ceil_mode)
    before, after = window.padding(depth)
    expected = functional.max_pool1d(torch.zeros(1, 1, depth), size, stride, padding, ceil_mode=ceil_mode).shape[2]
    assert (depth + before + after - window.extent) // stride + 1 == expected


@pytest.mark.parametrize("depth", [1, 2, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_gives_depth_over_stride_rounded_up(depth, stride):
    window = DepthWindow(3, stride, same=True)
    before, after = window.padding(depth)
    assert (depth + before + after - 3) // stride + 1 == -(-depth // stride)
    assert after - before in (0, 1)


def test_short_volume_is_extended_to_one_window():
    assert DepthWindow(7).padding(2) == (2, 3)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("plane", [((0, 0), (0, 0)), ((0, 1), (2, 1))])
def test_replication_repeats_the_ends_and_has_the_right_gradient(size, plane):
    volume = torch.randn(2, 3, size, 2, 4, dtype=torch.float64, requires_grad=True)

    def pad(x):
        return pad_volume(x, (2, 1), height=plane[0], width=plane[1])

    expected = functional.pad(volume, (0, 0, 0, 0, 2, 1), mode="replicate")
    torch.testing.assert_close(pad(volume), functional.pad(expected, (*plane[1], *plane[0])))
    assert torch.autograd.gradcheck(pad, volume)


def test_zeros():
    padded = pad_volume(torch.ones(1, 1, 2, 1, 1), (1, 2), "zeros")
    assert padded.flatten().tolist() == [0, 1, 1, 0, 0]
