"""The fast convolutions against torch's own, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medi3d.inflation.convolve import conv3d

triples = st.tuples(*[st.integers(1, 2)] * 3)


def compare(volume, weight, bias, *arguments):
    tensors = (volume, weight, bias)
    for tensor in tensors:
        tensor.requires_grad_()
    expected = functional.conv3d(volume, weight, bias, *arguments)
    output = conv3d(volume, weight, bias, *arguments)
    gradient = torch.randn_like(expected)
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    gradients = [torch.autograd.grad(result, tensors, gradient) for result in (output, expected)]
    torch.testing.assert_close(*gradients, atol=5e-4, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    taps=st.tuples(*[st.integers(1, 5)] * 3),
    stride=triples,
    padding=st.tuples(*[st.integers(0, 3)] * 3),
    dilation=triples,
    seed=st.integers(0, 99),
)
def test_depthwise(taps, stride, padding, dilation, seed):
    torch.manual_seed(seed)
    volume = torch.randn(2, 6, 11, 10, 9).contiguous(memory_format=torch.channels_last_3d)
    compare(volume, torch.randn(6, 1, *taps), torch.randn(6), stride, padding, dilation, 6)


@settings(deadline=None, max_examples=40)
@given(
    taps=st.tuples(*[st.integers(1, 4)] * 3),
    stride=triples,
    padding=st.tuples(*[st.integers(0, 2)] * 3),
    size=st.sampled_from([(4, 4, 5), (9, 8, 7)]),
    seed=st.integers(0, 99),
)
def test_dense(taps, stride, padding, size, seed):
    torch.manual_seed(seed)
    weight = torch.randn(5, 3, *taps).contiguous(memory_format=torch.channels_last_3d)
    compare(torch.randn(2, 3, *size), weight, torch.randn(5), stride, padding, (1, 1, 1), 1)


@pytest.mark.parametrize(("taps", "size"), [(3, 4), (3, 12), (5, 6), (5, 12)])
def test_every_method_of_the_depthwise_kernel_gradient(taps, size):
    torch.manual_seed(0)
    volume = torch.randn(2, 4, size, size + 1, size + 2)
    for stride in ((1, 1, 1), (2, 2, 2)):
        padding = (taps // 2,) * 3
        compare(volume.clone(), torch.randn(4, 1, *[taps] * 3), torch.randn(4), stride, padding, (1, 1, 1), 4)


def test_frozen_kernel_takes_no_gradient():
    weight = torch.randn(4, 1, 3, 3, 3)
    volume = torch.randn(1, 4, 5, 6, 7, requires_grad=True)
    conv3d(volume, weight, None, (1, 1, 1), (0, 1, 1), (1, 1, 1), 4).sum().backward()
    assert weight.grad is None
    assert volume.grad is not None


def test_under_autocast_the_depthwise_convolution_stays_in_float32():
    torch.manual_seed(0)
    volume = torch.randn(2, 4, 5, 6, 7).bfloat16().requires_grad_()
    weight = torch.randn(4, 1, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = conv3d(volume, weight, None, (1, 1, 1), (1, 1, 1), (1, 1, 1), 4)
    assert output.dtype == torch.float32
    expected = functional.conv3d(volume.float(), weight, None, padding=1, groups=4)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    of_volume, of_weight = torch.autograd.grad(output.square().sum(), (volume, weight))
    exact_volume, exact_weight = torch.autograd.grad(expected.square().sum(), (volume, weight))
    torch.testing.assert_close(of_weight, exact_weight, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(of_volume, exact_volume, atol=1e-2, rtol=1e-2)  # rounded to bfloat16
