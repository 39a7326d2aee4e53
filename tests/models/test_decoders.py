"""Decoders on encoders: sizes, levels, strides that differ between axes, and the one-line way to make them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import medi3d
from medi3d.config import load_task
from medi3d.errors import ConfigError
from medi3d.inflation import anisotropic
from medi3d.models import Encoder, create_encoder, create_model
from medi3d.models.outputs import Outputs
from medi3d.models.padding import crop_back, pad_to
from medi3d.models.pyramid import describe_pyramid
from medi3d.models.segmentation import DECODERS, SegmentationNetwork

LITE0 = "tf_efficientnet_lite0"
ENCODERS = {
    "strides 2 to 32": (LITE0, {}),
    "strides 4 to 32": ("convnext_atto", {}),
    "depth kept at first": ("resnet18", {"stages": 3, "plan": anisotropic((5.0, 1.25, 1.25))}),
    "full resolution": (LITE0, {"stem_stride": 1, "stages": 3}),
    "one stage": (LITE0, {"stem_stride": 1, "stages": 1}),
}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    name, options = ENCODERS[request.param]
    return create_encoder(name, init="random", in_channels=2, **options)


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_a_decoder_answers_at_the_inputs_size_and_trains_all_it_has(decoder: str, encoder: Encoder) -> None:
    levels = len(describe_pyramid(encoder, (4,)).coarser)
    options = {"num_classes": 3, "decoder_channels": (4, 6, 8), "deep_supervision": min(2, levels)}
    if decoder == "monai/basic_unet" and encoder.strides[0] == (1, 2, 2):
        with pytest.raises(ConfigError, match=r"doubles every axis .* \(1, 4, 4\) and \(1, 2, 2\): take monai/unetr"):
            SegmentationNetwork(encoder, decoder=decoder, **options)
        return
    network = SegmentationNetwork(encoder, decoder=decoder, **options)
    volume = torch.randn(2, 2, 9, 33, 20)
    outputs = network.train()(volume)
    logits = outputs.logits if isinstance(outputs, Outputs) else (outputs,)
    assert len(logits) == 1 + min(2, levels)
    assert logits[0].shape == (2, 3, 9, 33, 20)
    sum(values.square().mean() for values in logits).backward()
    without = [name for name, parameter in network.blocks.named_parameters() if parameter.grad is None]
    assert not without
    with torch.inference_mode():
        assert network.eval()(volume).shape == (2, 3, 9, 33, 20)


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name.startswith("monai/")])
def test_padding_does_not_change_what_needs_none(decoder: str) -> None:
    encoder = create_encoder(LITE0, init="random", stages=2)
    network = SegmentationNetwork(encoder, num_classes=2, decoder_channels=(4, 6), decoder=decoder).eval()
    volume = torch.randn(1, 1, 8, 12, 16)
    assert network._pad(volume) is volume
    padded = network._pad(volume[:, :, :7, :11, :13])
    assert padded.shape == volume.shape
    assert torch.equal(padded[0, 0, 7, 11, 13:], volume[0, 0, 6, 10, 12].expand(3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::timm")
def test_a_backbone_that_cuts_off_the_border_goes_with_monais_blocks() -> None:
    encoder = create_encoder("inception_v3", init="random", stages=3)
    network = SegmentationNetwork(encoder, num_classes=2, decoder_channels=(4, 6), decoder="monai/unetr").eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, 9, 90, 100)).shape == (1, 2, 9, 90, 100)


def test_slices_of_any_size_go_to_a_backbone_of_one_size() -> None:
    encoder = create_encoder("test_vit", init="random", image_size=(48, 48))
    encoder.slices = type(encoder.slices)((48, 48), None)
    network = SegmentationNetwork(encoder, num_classes=2, decoder_channels=(4,)).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, 5, 33, 48)).shape == (1, 2, 5, 33, 48)
    with pytest.raises(ConfigError, match="takes slices of 48 × 48 only; got H × W of 50 × 48"):
        network(torch.zeros(1, 1, 5, 50, 48))


def test_levels_follow_the_strides() -> None:
    pyramid = describe_pyramid(create_encoder("convnext_atto", init="random", stages=2), (5, 6, 7))
    assert pyramid.levels == (8, 4, 2, 1)
    assert pyramid.skips == {4: 40, 8: 80, 1: 1}
    assert pyramid.widths == {1: 5, 2: 6, 4: 7, 8: 80}
    assert pyramid.coarser == (2, 4)
    thick = create_encoder("resnet18", init="random", stages=3, plan=anisotropic((5.0, 1.25, 1.25)))
    pyramid = describe_pyramid(thick, (5,))
    assert pyramid.strides == {8: (2, 8, 8), 4: (1, 4, 4), 2: (1, 2, 2), 1: (1, 1, 1)}
    assert [pyramid.ratio(level) for level in (4, 2, 1)] == [(2, 2, 2), (1, 2, 2), (1, 2, 2)]


def test_nested_blocks_see_all_earlier_ones_of_their_level() -> None:
    """U-Net++'s X^{i,j}: inputs are X^{i,0}, …, X^{i,j−1} and what comes from X^{i+1,j−1}."""
    encoder = create_encoder(LITE0, init="random", stages=3)  # 16, 24, 40 channels at strides 2, 4, 8
    network = SegmentationNetwork(encoder, num_classes=2, decoder_channels=(4, 6, 8), decoder="unetpp")
    blocks = network.blocks
    assert list(blocks) == ["1_1", "2_1", "4_1", "1_2", "2_2", "1_3"]
    inputs = {name: (block.project.in_channels, block.convs[0].conv.in_channels) for name, block in blocks.items()}
    assert inputs == {
        "1_1": (16, 4 + 1), "2_1": (24, 6 + 16), "4_1": (40, 8 + 24),
        "1_2": (6, 4 + 1 + 4), "2_2": (8, 6 + 16 + 6), "1_3": (6, 4 + 1 + 4 + 4),
    }  # fmt: skip
    seen: dict[str, Tensor] = {}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out, f"{name} in": args[0]}))
    network.eval()(torch.randn(1, 1, 8, 16, 16))
    assert seen["1_3 in"] is seen["2_2"]
    assert seen["2_2 in"] is seen["4_1"]
    assert seen["1_2 in"] is seen["2_1"]


def test_a_pyramid_of_constant_maps_is_their_sum() -> None:
    """Top-down sums: with projections to 1 and norms off, a level holds the sum of the levels from it upwards."""
    encoder = create_encoder(LITE0, init="random", stages=2)
    decoder = SegmentationNetwork(encoder, num_classes=1, decoder_channels=(2, 2), decoder="fpn").blocks
    for lateral in decoder.laterals.values():
        nn.init.constant_(lateral.weight, 1 / lateral.in_channels)
        nn.init.zeros_(lateral.bias)
    for name in decoder.smooth:
        decoder.smooth[name] = nn.Identity()
    maps = {4: torch.full((1, 24, 2, 3, 4), 5.0), 2: torch.full((1, 16, 4, 6, 7), 3.0), 1: torch.zeros(1, 1, 8, 11, 13)}
    decoded = decoder(maps)
    torch.testing.assert_close(decoded[4], torch.full((1, 2, 2, 3, 4), 5.0))
    torch.testing.assert_close(decoded[2], torch.full((1, 2, 4, 6, 7), 8.0))
    assert decoded[1].shape == (1, 2, 8, 11, 13)


def test_volumes_are_padded_and_cropped_back() -> None:
    volume = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    padded = pad_to(volume, (4, 3, 6))
    assert padded.shape[2:] == (4, 3, 6)
    assert torch.equal(padded[0, 0, 3, :, :4], volume[0, 0, 1])
    assert torch.equal(padded[0, 0, 0, :, 5], volume[0, 0, 0, :, 3])
    assert torch.equal(crop_back(padded, (2, 3, 4), (4, 3, 6)), volume)
    assert crop_back(torch.zeros(1, 1, 8, 8, 4), (9, 30, 16), (16, 32, 16)).shape[2:] == (5, 8, 4)


# --- by name


def test_one_line_makes_a_network() -> None:
    model = medi3d.create_model(kind="segmentation", encoder=LITE0, num_classes=3)
    assert model.eval()(torch.rand(1, 1, 5, 20, 17)).shape == (1, 3, 5, 20, 17)
    assert torch.equal(model.encoder.state_dict()["body.body.conv_stem.weight"],
                       create_encoder(LITE0).state_dict()["body.body.conv_stem.weight"])  # fmt: skip
    thick = medi3d.create_model(
        kind="segmentation", encoder=LITE0, decoder="fpn", num_classes=2, in_channels=2,
        plan=anisotropic((4.0, 1.0, 1.0)), deep_supervision=1,
    )  # fmt: skip
    assert thick.encoder.strides[:2] == ((1, 2, 2), (1, 4, 4))
    outputs = thick(torch.rand(2, 2, 6, 16, 24))
    assert isinstance(outputs, Outputs)
    assert [tuple(logits.shape[2:]) for logits in outputs.logits] == [(6, 16, 24), (6, 8, 12)]
    encoder = create_encoder(LITE0, init="random", stages=2)
    classifier = medi3d.create_model(kind="classification", encoder=encoder, num_classes=4)
    assert classifier.encoder is encoder
    assert classifier.eval()(torch.rand(2, 1, 5, 20, 17)).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "hippocampus", "num_classes": 3}, "takes a task, or kind, encoder and num_classes; not both"),
        ({"kind": "segmentation", "num_classes": 3}, "some of these are missing"),
        ({"kind": "segmentatoin"}, "unknown kind 'segmentatoin'; did you mean 'segmentation'"),
        ({"kind": "segmentation", "decoder": "upernet"}, "unknown decoder 'upernet'; did you mean 'unet'. Known: fpn"),
        ({"kind": "classification", "decoder": "unet"}, "a classifier has no decoder"),
        ({"kind": "segmentation", "in_channels": 2}, "this one is made already"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, object], message: str) -> None:
    known = {"encoder": create_encoder(LITE0, init="random", stages=1), "num_classes": 2}
    if "num_classes" in options:
        known = {}
    with pytest.raises(ConfigError, match=message):
        create_model(**{**known, **options})  # type: ignore[call-overload]


def test_a_task_chooses_its_decoder() -> None:
    overrides = {"model.init": "random", "model.decoder": "fpn", "model.stages": 2}
    model = create_model(load_task("hippocampus", overrides=overrides))
    assert type(model.blocks).__name__ == "FPNDecoder"
    with pytest.raises(ConfigError, match="unknown decoder 'fnp'; did you mean 'fpn'"):
        create_model(load_task("hippocampus", overrides={**overrides, "model.decoder": "fnp"}))
