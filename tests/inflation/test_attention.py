"""Joint attention: on real 3D input it is attention over the tokens of all slices, however the network writes it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from medi3d.errors import InflationError
from medi3d.inflation import PROFILES, inflate


class Attention(nn.Module):
    """Attention over the positions of a slice, with a bias of positions, written in one of the usual ways."""

    def __init__(self, way, channels=6, heads=2, size=(3, 4)):
        super().__init__()
        self.way, self.heads = way, heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.bias = nn.Parameter(torch.randn(heads, size[0] * size[1], size[0] * size[1]))

    def forward(self, x):
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        queries, keys, values = self.qkv(tokens).reshape(batch, -1, 3, self.heads, channels // self.heads).unbind(2)
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))  # (B, heads, N, d)
        scale = queries.shape[-1] ** -0.5
        if self.way == "fused":
            out = functional.scaled_dot_product_attention(queries, keys, values, self.bias)
        elif self.way == "matmul":
            out = ((queries * scale) @ keys.transpose(-2, -1) + self.bias).softmax(-1) @ values
        elif self.way == "values first":
            scores = torch.matmul(queries, keys.mT) * scale
            out = (values.mT @ (scores + self.bias).softmax(dim=-1).mT).mT
        elif self.way == "bmm":
            flat = [part.flatten(0, 1) for part in (queries, keys, values)]
            scores = torch.bmm(flat[0], flat[1].mT).mul(scale) + self.bias.repeat(batch, 1, 1)
            out = torch.bmm(torch.softmax(scores, dim=2), flat[2]).unflatten(0, (batch, -1))
        else:
            scores = torch.einsum("bhnc,bhmc->bhnm", queries, keys) * scale + self.bias
            out = torch.einsum("bhnm,bhmc->bhnc", functional.softmax(scores, dim=-1), values)
        return out.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def attend_jointly(layer, volume):
    """The reference: one attention over all D·H·W tokens, the bias repeated for each pair of slices."""
    batch, channels, depth, height, width = volume.shape
    tokens = volume.flatten(2).transpose(1, 2)
    parts = layer.qkv(tokens).reshape(batch, -1, 3, layer.heads, channels // layer.heads).unbind(2)
    parts = [part.transpose(1, 2) for part in parts]
    out = functional.scaled_dot_product_attention(*parts, layer.bias.repeat(1, depth, depth))
    return out.transpose(1, 2).reshape(batch, depth, height, width, channels).permute(0, 4, 1, 2, 3)


WAYS = ["fused", "matmul", "values first", "bmm", "einsum"]


@pytest.mark.parametrize("way", WAYS)
def test_any_way_of_writing_attention_is_joint(way):
    layer = Attention(way)
    volume = torch.randn(2, 6, 5, 3, 4)
    torch.testing.assert_close(inflate(layer)(volume), attend_jointly(layer, volume), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_joint_attention(way):
    layer = Attention(way)
    volume = torch.randn(2, 6, 3, 3, 4)
    expected = torch.autograd.grad(attend_jointly(layer, volume).square().sum(), list(layer.parameters()))
    inflated = inflate(layer)
    gradients = torch.autograd.grad(inflated(volume).square().sum(), list(inflated.parameters()))
    torch.testing.assert_close(gradients, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_equal_slices_are_answered_as_one(way):
    layer = Attention(way)
    image = torch.randn(2, 6, 3, 4)
    output = inflate(layer)(image[:, :, None].expand(-1, -1, 7, -1, -1))
    torch.testing.assert_close(output, layer(image)[:, :, None].expand_as(output))


def test_scores_that_are_mixed_after_the_softmax_stay_exact():
    class TalkingHeads(Attention):
        def __init__(self):
            super().__init__("matmul")
            self.talk = nn.Linear(2, 2)

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            queries, keys, values = self.qkv(tokens).reshape(len(x), -1, 3, 2, 3).unbind(2)
            scores = (queries.transpose(1, 2) @ keys.permute(0, 2, 3, 1)).softmax(-1)
            scores = self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return (scores @ values.transpose(1, 2)).transpose(1, 2).reshape(len(x), 3, 4, 6).permute(0, 3, 1, 2)

    layer, image = TalkingHeads(), torch.randn(2, 6, 3, 4)
    output = inflate(layer)(image[:, :, None].expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(output, layer(image)[:, :, None].expand_as(output))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_pytorchs_own_attention_is_joint(batch_first, mask):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
            self.mask = None if mask is None else torch.rand(12, 12) > 0.8
            if mask == "float":
                self.mask = torch.randn(12, 12)

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            tokens = tokens if batch_first else tokens.transpose(0, 1)
            out = self.attention(tokens, tokens, tokens, need_weights=False, attn_mask=self.mask)[0]
            return (out if batch_first else out.transpose(0, 1)).mT.reshape(x.shape)

    network = Tokens().eval()
    volume = torch.randn(2, 6, 5, 3, 4)
    tokens = volume.flatten(2).transpose(1, 2)
    tokens = tokens if batch_first else tokens.transpose(0, 1)
    joint = None if mask is None else network.mask.repeat(5, 5)
    expected = network.attention(tokens, tokens, tokens, need_weights=False, attn_mask=joint)[0]
    expected = (expected if batch_first else expected.transpose(0, 1)).mT.reshape(volume.shape)
    torch.testing.assert_close(inflate(network)(volume), expected)


def test_weights_of_joint_attention_are_refused():
    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2)

        def forward(self, x):
            tokens = x.flatten(2)
            return self.attention(tokens, tokens, tokens)[0]

    with pytest.raises(InflationError, match="need_weights=True"):
        inflate(Weights())(torch.zeros(1, 3, 2, 2, 3))


def test_linear_attention_averages_over_the_volume():
    class LiteMLA(nn.Module):
        def forward(self, x):
            keys = x.flatten(2)  # (B, C, N)
            moments = keys @ keys.transpose(-2, -1) / keys.shape[-1]
            return (moments @ keys).reshape(x.shape)

    volume = torch.randn(2, 3, 4, 5, 6)
    keys = volume.flatten(2)
    expected = (keys @ keys.mT / keys.shape[-1] @ keys).reshape(volume.shape)
    for init in PROFILES:
        torch.testing.assert_close(inflate(LiteMLA(), init=init)(volume), expected, atol=1e-4, rtol=1e-4)
