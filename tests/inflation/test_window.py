import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medi3d.inflation.window import DepthLayer, extend, take_taps


@settings(deadline=None, max_examples=100)
@given(
    size=st.integers(1, 7),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    depth=st.integers(1, 16),
    padding=st.integers(0, 3),
)
def test_any_window_gives_depth_over_stride_rounded_up(size, stride, dilation, depth, padding):
    layer = DepthLayer(size, stride, dilation)
    before, after = layer.margins(depth, padding)
    taps = take_taps(torch.arange(before + depth + after)[None, None], layer)
    assert len(taps) == size
    assert min(before, after) >= 0
    assert {tap.shape[2] for tap in taps} == {-(-depth // stride)}


@pytest.mark.parametrize("depth", [4, 5, 9])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (7, 2), (5, 1)])
def test_windows_begin_where_the_usual_padding_puts_them(size, stride, depth):
    assert DepthLayer(size, stride).margins(depth, size // 2)[0] == size // 2


def test_unpadded_windows_are_centred_as_tensorflows_same_padding_does():
    assert DepthLayer(3, 2).margins(6) == (0, 1)
    assert DepthLayer(3, 2).margins(7) == (1, 1)
    assert DepthLayer(16, 16).margins(40) == (4, 4)
    assert DepthLayer(7).margins(2) == (3, 3)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("plane", [((0, 0), (0, 0)), ((0, 1), (2, 1))])
def test_replication_repeats_the_ends_and_has_the_right_gradient(size, plane):
    volume = torch.randn(2, 3, size, 2, 4, dtype=torch.float64, requires_grad=True)

    def pad(x):
        return extend(x, (2, 1), height=plane[0], width=plane[1])

    expected = functional.pad(volume, (0, 0, 0, 0, 2, 1), mode="replicate")
    torch.testing.assert_close(pad(volume), functional.pad(expected, (*plane[1], *plane[0])))
    assert torch.autograd.gradcheck(pad, volume)


def test_zeros():
    padded = extend(torch.ones(1, 1, 2, 1, 1), (1, 2), "zeros")
    assert padded.flatten().tolist() == [0, 1, 1, 0, 0]
