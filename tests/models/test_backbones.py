"""The zoo of 2D backbones: sizes, stages, stems, of timm and of torchvision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medi3d.errors import ConfigError
from medi3d.inflation import anisotropic
from medi3d.models import create_encoder
from medi3d.models.backbone import is_pyramid, run_for_shapes, spread_evenly
from medi3d.models.segmentation import SegmentationNetwork
from medi3d.models.stem import find_stems, fit_input, set_stem_stride
from medi3d.models.zoo import create_backbone, create_network, list_backbones


def test_both_libraries_are_listed_and_a_typo_is_answered() -> None:
    names = list_backbones()
    assert names == sorted(names)
    assert {"resnet18", "torchvision/resnet18", "torchvision/vit_b_16"} <= set(names)
    assert not any("segmentation" in name or "detection" in name for name in names)
    assert list_backbones("torchvision/googl*") == ["torchvision/googlenet"]
    with pytest.raises(ConfigError, match="unknown backbone 'torchvision/resnet81'; did you mean 'torchvision/resnet"):
        create_network("torchvision/resnet81")


@pytest.mark.parametrize("name", ["torchvision/googlenet", "torchvision/inception_v3"])
def test_inception_has_no_auxiliary_heads_and_its_own_statistics(name: str) -> None:
    assert not [key for key in create_network(name).state_dict() if "aux" in key.lower()]
    backbone = create_backbone(name, stages=1)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)


def test_stages_of_torchvision_end_with_its_blocks() -> None:
    """ResNet's known stages: the activations of the stem and of its four layers."""
    torch.manual_seed(0)
    state = create_network("torchvision/resnet18").state_dict()
    network = create_network("torchvision/resnet18").eval()
    network.load_state_dict(state)
    images = torch.randn(1, 3, 64, 45)
    found = create_backbone("torchvision/resnet18", state=state).module.eval()(images)
    expected = [network.relu(network.bn1(network.conv1(images)))]
    expected.append(network.layer1(network.maxpool(expected[0])))
    for layer in (network.layer2, network.layer3, network.layer4):
        expected.append(layer(expected[-1]))
    assert len(found) == 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_tokens_of_a_torchvision_vit_become_maps() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("torchvision/vit_b_32", image_size=(96, 96))
    assert backbone.strides == (32, 32, 32, 32)
    module = backbone.module.eval()
    images = torch.randn(1, 3, 96, 96)
    moved = images.roll(32, dims=3)  # by a patch
    with torch.no_grad():
        first, second = module(images)[0], module(moved)[0]
    assert first.shape == (1, 768, 3, 3)
    assert not torch.allclose(first, second)
    with pytest.raises(
        ConfigError, match=r"vit_b_32 cannot be made for slices of 64 × 96 .*square.* takes 224 × 224 only"
    ):
        create_backbone("torchvision/vit_b_32", image_size=(64, 96))


def test_a_network_of_one_size_is_made_for_another_or_says_which_fits() -> None:
    encoder = create_encoder("test_vit_relpos", init="random", image_size=(64, 96)).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 1, 9, 64, 96))[0].shape[2:] == (3, 16, 24)
    with pytest.raises(ConfigError, match=r"takes slices of 64 × 96 only; got H × W of 96 × 64: crop or pad"):
        encoder(torch.zeros(1, 1, 9, 96, 64))
    with pytest.raises(ConfigError, match=r"efficientformer_l1 cannot be made for slices of 64 × 96 .*224 × 224 only"):
        create_backbone("efficientformer_l1", image_size=(64, 96))


def test_sizes_that_must_be_multiples_are_named() -> None:
    backbone = create_backbone("dla46x_c", stages=2)
    assert backbone.slices.step == 32
    assert str(backbone.slices) == "multiples of 32"
    assert backbone.takes((64, 96))
    assert not backbone.takes((64, 81))
    assert create_backbone("resnet18", image_size=(33, 47)).takes((7, 9))


def test_asking_for_more_stages_than_there_are_names_the_backbone() -> None:
    with pytest.raises(ConfigError, match=r"torchvision/resnet18 has 5 stages \(strides \[2, 4, 8, 16, 32\]\); 6 were"):
        create_backbone("torchvision/resnet18", stages=6)


def test_stages_are_the_finest_ones_whatever_timm_counts_from() -> None:
    """DLA's first level has stride 1 and is not among the stages that timm gives by default."""
    assert create_backbone("dla46x_c", stages=3).strides == (2, 4, 8)
    assert create_backbone("test_vit", stages=2).channels == (64, 64)


def test_copies_of_a_torchvision_network_are_in_its_mode() -> None:
    module = create_backbone("torchvision/shufflenet_v2_x0_5", stages=2).module.eval()
    images = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        for one, other in zip(module(images), copy.deepcopy(module)(images), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert all(part.training for part in copy.deepcopy(module.train()).modules())


# --- stems


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet18", [(64, 3, 7, 7)]),
        ("fastvit_t8", [(48, 3, 1, 1), (48, 3, 3, 3)]),  # parallel branches, the first registered is not the first run
        ("tresnet_m", [(64, 48, 3, 3)]),  # behind a space-to-depth of 4 × 4 pixels
        ("csatv2", []),  # behind a cosine transform
        ("torchvision/shufflenet_v2_x0_5", [(24, 3, 3, 3)]),
    ],
)
def test_the_layers_that_see_the_image_are_found(name: str, shapes: list[tuple[int, ...]]) -> None:
    backbone = create_backbone(name, stages=1)
    before = {key: tensor.clone() for key, tensor in backbone.module.state_dict().items()}
    assert [tuple(stem.layer.weight.shape) for stem in find_stems(backbone)] == shapes
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.module.state_dict().items())


@pytest.mark.parametrize("name", ["csatv2", "crossvit_tiny_240", "test_nfnet"])
def test_where_weights_cannot_be_shared_out_channels_are_mixed_to_colours(name: str) -> None:
    """A cosine transform, a second branch on a resized image, weights normalised over the inputs."""
    backbone = create_backbone(name, stages=1)
    before = {key: tensor.clone() for key, tensor in backbone.module.state_dict().items()}
    scaling = fit_input(backbone, ("unit",) * 4)
    assert scaling.out_channels == 3
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.module.state_dict().items())
    pixels = torch.rand(1, 1, 2, 3, 4)
    rgb = scaling(pixels.expand(-1, 4, -1, -1, -1))
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1, 1) for values in (backbone.mean, backbone.std))
    torch.testing.assert_close(rgb, (pixels - mean) / std)
    rgb.sum().backward()
    assert all(parameter.grad is not None for parameter in scaling.parameters())


def test_every_branch_of_a_stem_takes_the_new_stride() -> None:
    backbone = create_backbone("fastvit_t8", stages=1)
    assert set_stem_stride(backbone, "fastvit_t8", 1) == 2
    (fine,) = run_for_shapes(backbone.module, (1, 3, 64, 64))
    assert fine.shape[2:] == (32, 32)
    with pytest.raises(
        ConfigError, match=r"tresnet_m: no single convolution of pixels begins it.*cannot take stride 1"
    ):
        set_stem_stride(create_backbone("tresnet_m", stages=1), "tresnet_m", 1)


# --- maps of one stride, depth plans


def test_maps_of_one_stride_are_spread_over_the_blocks() -> None:
    assert spread_evenly(12) == [2, 5, 8, 11]
    assert spread_evenly(2) == [0, 1]
    assert is_pyramid((4, 8, 32))
    assert not is_pyramid((16, 16))
    assert not is_pyramid((7, 14))


@pytest.mark.parametrize(
    ("plan", "depth_strides"),
    [("symmetric", (4, 8, 16, 32)), ("i3d", (1, 2, 4, 8)), ("slicewise", (1, 1, 1, 1))],
)
def test_a_unet_on_a_plain_vit_follows_the_plan(plan: str, depth_strides: tuple[int, ...]) -> None:
    encoder = create_encoder("test_vit", init="random", plan=plan)
    assert encoder.strides == tuple((d, s, s) for d, s in zip(depth_strides, (4, 8, 16, 32), strict=True))
    model = SegmentationNetwork(encoder, num_classes=2, decoder_channels=(4, 6, 8)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 5, 48, 33)).shape == (1, 2, 5, 48, 33)


def test_strides_along_depth_are_measured() -> None:
    aniso = create_encoder("resnet18", init="random", stages=3, plan=anisotropic((5.0, 1.25, 1.25)))
    assert aniso.strides == ((1, 2, 2), (1, 4, 4), (2, 8, 8))
    with torch.no_grad():
        found = aniso.eval()(torch.randn(1, 1, 9, 32, 48))
    assert [f.shape[2:] for f in found] == [(9, 16, 24), (9, 8, 12), (5, 4, 6)]


def test_trial_runs_leave_shared_layers_as_they_are() -> None:
    shared = nn.Conv2d(3, 3, 1)
    module = nn.Sequential(shared, nn.BatchNorm2d(3), shared).train()
    assert run_for_shapes(module, (1, 3, 4, 5)).shape == (1, 3, 4, 5)
    assert not any(parameter.is_meta for parameter in module.parameters())
    assert module[1].num_batches_tracked == 0
    assert module.training
