"""Encoders in MONAI's own networks: each recipe of the documentation, run."""

from __future__ import annotations

import math

import pytest
import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.networks.nets import FlexibleUNet, NetAdapter
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from smallest_networks import SMALLEST

import medi3d.monai
from medi3d.errors import ConfigError
from medi3d.models import create_encoder
from medi3d.models.backbone import run_for_shapes
from medi3d.models.zoo import list_backbones
from medi3d.monai import EncoderWithFPN, FlexibleUNetEncoder, create_trunk, register_encoder

NAMES = {
    "tf_efficientnet_lite0": (16, 24, 40, 112, 320),
    "resnet18": (64, 64, 128, 256, 512),
    "convnext_atto": (1, 40, 80, 160, 320),  # it begins at stride 4
    "torchvision/resnet18": (64, 64, 128, 256, 512),
    "test_vit": (1, 64, 64),  # maps of one stride, resized
    "medicalnet:resnet10": (64, 64, 512),
    "hassony2:densenet121": (64, 256, 512, 1024, 1024),  # depth is halved later than the plane
}


@pytest.mark.parametrize("name", NAMES)
def test_flexible_unet_takes_an_encoder(name: str) -> None:
    torch.manual_seed(0)
    narrow = (12, 8, 8, 8, 8)
    network = FlexibleUNet(2, 3, backbone=f"medi3d/{name}", spatial_dims=3, decoder_channels=narrow).eval()
    row = FLEXUNET_BACKBONE.register_dict[f"medi3d/{name}"]
    volume = torch.rand(1, 2, 32, 32, 64)
    with torch.inference_mode():
        maps = network.encoder(volume)
        if name != "test_vit":  # its last level is 8, and FlexibleUNet enlarges by as much
            assert network(volume).shape == (1, 3, 32, 32, 64)
    assert tuple(m.shape[1] for m in maps) == tuple(row["feature_channel"])
    assert len(maps) == row["feature_number"]
    for level, feature in zip((2, 4, 8, 16, 32), maps, strict=False):
        assert feature.shape[2:] == (32 // level, 32 // level, 64 // level)


@pytest.mark.filterwarnings("ignore:::timm", "ignore:::torchvision")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "test_efficientnet" else pytest.mark.slow) for n in SMALLEST.values()]
)
def test_every_family_of_backbones_gives_the_levels(name: str) -> None:
    """Shapes alone, on the smallest network of each file of timm's and each family of torchvision's."""
    row = FLEXUNET_BACKBONE.register_dict[f"medi3d/{name}"]
    encoder = row["type"](**row["parameter"])
    step = encoder.encoder.slices.step
    plane = encoder.encoder.slices.size if step is None else (4 * math.lcm(step, 32), 5 * math.lcm(step, 32))
    maps = run_for_shapes(encoder, (1, 1, 32, *plane))
    assert tuple(m.shape[1] for m in maps) == tuple(row["feature_channel"])
    for level, feature in zip((2, 4, 8, 16, 32), maps, strict=False):
        assert feature.shape[2:] == tuple(-(-n // level) for n in (32, *plane))


def test_every_backbone_is_known_by_name_and_none_is_made_for_it() -> None:
    names = FlexibleUNetEncoder.get_encoder_names()
    assert len(names) > 1000
    assert (
        {f"medi3d/{name}" for name in list_backbones("*resnet50*")} < set(names) < set(FLEXUNET_BACKBONE.register_dict)
    )
    assert "resnet50" in FLEXUNET_BACKBONE.register_dict  # MONAI's own stays
    row = FLEXUNET_BACKBONE.register_dict["medi3d/resnet50"]
    assert set(row) == set(FLEXUNET_BACKBONE.register_dict["resnet50"])


def test_pretrained_takes_the_weights_and_two_networks_do_not_share_arguments() -> None:
    name = "medi3d/tf_efficientnet_lite0"
    options = {"backbone": name, "spatial_dims": 3, "decoder_channels": (12, 8, 8, 8, 8)}
    network = FlexibleUNet(1, 2, pretrained=True, **options)
    other = FlexibleUNet(3, 2, **options)
    expected = create_encoder("tf_efficientnet_lite0").state_dict()
    found = network.encoder.encoder.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert other.encoder.encoder.in_channels == 3
    assert FLEXUNET_BACKBONE.register_dict[name]["parameter"]["in_channels"] == 1


def test_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="is an encoder of volumes: give spatial_dims=3; got 2"):
        FlexibleUNet(1, 2, backbone="medi3d/resnet18", spatial_dims=2)


def test_an_encoder_with_a_file_is_registered() -> None:
    name = register_encoder("medicalnet:resnet10@nowhere.pth")
    assert FLEXUNET_BACKBONE.register_dict[name]["feature_channel"] == (64, 64, 512)
    del FLEXUNET_BACKBONE.register_dict[name]


@pytest.mark.parametrize("decoder", ["monai/basic_unet", "monai/unetr"])
def test_monais_decoder_blocks_go_on_an_encoder(decoder: str) -> None:
    encoder = create_encoder("tf_efficientnet_lite0", init="random")
    network = medi3d.create_model(kind="segmentation", encoder=encoder, decoder=decoder, num_classes=3)
    assert network.eval()(torch.rand(1, 1, 17, 40, 33)).shape == (1, 3, 17, 40, 33)


def test_retinanet_detects_on_an_encoder() -> None:
    extractor = EncoderWithFPN(create_encoder("tf_efficientnet_lite0", init="random", stages=4), out_channels=16)
    network = RetinaNet(3, 2, 3, extractor, size_divisible=extractor.size_divisible)
    assert extractor.size_divisible == (32, 32, 32)
    with torch.inference_mode():
        output = network.eval()(torch.rand(1, 1, 32, 64, 32))
    sizes = [tuple(logits.shape[1:]) for logits in output["classification"]]
    assert sizes == [(6, 8, 16, 8), (6, 4, 8, 4), (6, 2, 4, 2), (6, 1, 2, 1)]
    assert [boxes.shape[1] for boxes in output["box_regression"]] == [18] * 4
    with pytest.raises(ConfigError, match="stages: the encoder's are 0 to 3; got"):
        EncoderWithFPN(extractor.encoder, stages=(1, 4))


def test_net_adapter_classifies_on_an_encoder() -> None:
    trunk = create_trunk(create_encoder("tf_efficientnet_lite0", init="random", stages=3))
    pool = ("adaptiveavg", {"output_size": (1, 1, 1)})
    network = NetAdapter(trunk, num_classes=4, dim=3, pool=pool)
    volume = torch.rand(2, 1, 9, 20, 16)
    with torch.inference_mode():
        logits = network.eval()(volume)
        expected = network.fc(trunk.features(volume).mean((2, 3, 4)))
    assert logits.shape == (2, 4)
    torch.testing.assert_close(logits, expected)
