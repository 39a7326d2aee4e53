"""Published 3D networks: their files in the published layout give here what the published network gives.

References: MONAI's residual networks with MedicalNet's strides and dilations; torchvision's own forward code over 3D
layers for those that hassony2/inflated_convnets_pytorch inflates; for I3D the layout of hassony2/kinetics_i3d_pytorch,
written out as functions of its tensors' names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from monai.networks.nets import resnet as monai_resnet
from torch import Tensor, nn

from medi3d.config import load_task
from medi3d.config.schema import FAMILIES_3D
from medi3d.errors import ConfigError, WeightsError
from medi3d.inflation import anisotropic
from medi3d.models import create_encoder, create_model
from medi3d.models.creation import load_encoder_state
from medi3d.models.inits import parse_init
from medi3d.models.matching import match_tensors
from medi3d.models.orientation import Orientation
from medi3d.models.volumetric.inception import pad_same
from medi3d.models.volumetric.networks import NETWORKS_3D


def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Give every tensor its own values, small enough that deep networks neither vanish nor overflow."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            fan_in = layer.weight[0].numel()
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
        if isinstance(layer, nn.BatchNorm3d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.6)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return module.eval()


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert float(expected.std()) > 0


# --- MedicalNet


def create_medicalnet(depth: int) -> nn.Module:
    """MONAI's residual network with the strides and dilations of Chen et al. 2019."""
    shortcut = "A" if depth in (18, 34) else "B"
    network = getattr(monai_resnet, f"resnet{depth}")(
        spatial_dims=3, n_input_channels=1, feed_forward=False, shortcut_type=shortcut, bias_downsample=False,
        conv1_t_stride=2,
    )  # fmt: skip
    for layer, dilation in ((network.layer3, 2), (network.layer4, 4)):
        for conv in layer.modules():
            if isinstance(conv, nn.Conv3d):
                conv.stride = (1, 1, 1)
                if conv.kernel_size == (3, 3, 3):
                    conv.dilation = conv.padding = (dilation,) * 3
        first = layer[0].downsample
        if isinstance(first, functools.partial):
            layer[0].downsample = functools.partial(first.func, **{**first.keywords, "stride": 1})
    return network


def run_resnet(network: nn.Module, x: Tensor) -> list[Tensor]:
    stem = F.relu(network.bn1(network.conv1(x)))
    maps = [stem, network.layer1(network.maxpool(stem))]
    for layer in (network.layer2, network.layer3, network.layer4):
        maps.append(layer(maps[-1]))
    return maps


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_medicalnet_gives_what_it_gave(depth: int, tmp_path: Path) -> None:
    network = randomize(create_medicalnet(depth), depth)
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    head = {"module.conv_seg.0.weight": torch.zeros(512, 32, 2, 2, 2), "module.conv_seg.0.bias": torch.zeros(32)}
    torch.save({"state_dict": {**state, **head}}, tmp_path / "resnet.pth")
    encoder = create_encoder(f"medicalnet:resnet{depth}@{tmp_path}/resnet.pth", input_scale="zscore").eval()
    volume = torch.randn(2, 1, 17, 24, 32)
    with torch.inference_mode():
        found, expected = encoder(volume), run_resnet(network, volume)
    assert encoder.strides == ((2, 2, 2), (4, 4, 4), (8, 8, 8))
    for one, other in zip(found, (expected[0], expected[1], expected[4]), strict=True):
        assert_close(one, other)
    assert encoder.report is not None
    assert encoder.report.count("mapped") == len(state)
    assert [row.how for row in encoder.report.rows if row.fate == "dropped"] == ["the head that segments"] * 2


@pytest.mark.parametrize("depth", [34, 101, 152, 200])
def test_deeper_medicalnets_have_the_published_tensors(depth: int) -> None:
    with torch.device("meta"):
        expected = create_medicalnet(depth).state_dict()
        found = NETWORKS_3D[f"medicalnet:resnet{depth}"].build().state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


# --- Merlin and Astra: the outputs are compared in test_astra.py


@pytest.mark.parametrize("prefix", ["encode_image.i3_resnet.", "visual_encoder.model.encode_image.i3_resnet.", ""])
def test_the_image_encoder_is_found_in_a_language_models_file(prefix: str) -> None:
    network = NETWORKS_3D["merlin"]
    with torch.device("meta"):
        places = network.build().state_dict()
        file = {f"{prefix}{name}": torch.empty(place.shape, dtype=torch.bfloat16) for name, place in places.items()}
        file |= {f"{prefix}classifier.weight": torch.empty(1692, 2048, 1, 1, 1)}
        file |= {f"{prefix}contrastive_head.bias": torch.empty(512)}
        file |= {"encode_text.layer.0.weight": torch.empty(4)} if prefix else {}
    found, report = match_tensors(file, places, where="file", rules=network.rules)
    assert found.keys() == places.keys()
    dropped = {row.source: row.how for row in report.rows if row.fate == "dropped"}
    expected = {
        f"{prefix}classifier.weight": "the classifier's head",
        f"{prefix}contrastive_head.bias": "the head that compares image and text",
    }
    if prefix:
        expected["encode_text.layer.0.weight"] = f"another part of the checkpoint than {prefix[:-1]}"
    assert dropped == expected
    assert "bfloat16 as float32" in next(row.how for row in report.rows if row.target == "conv1.weight")


# --- hassony2's inflated networks


class ReplicatedConv(nn.Conv3d):
    """A convolution with the end slices repeated, as its padding layer before it does."""

    def forward(self, x: Tensor) -> Tensor:
        reach = self.kernel_size[0] // 2
        return super().forward(F.pad(x, (0, 0, 0, 0, reach, reach), mode="replicate"))


def inflate_layers(module: nn.Module, swap: Callable[[str, nn.Module], nn.Module | None]) -> None:
    for name, child in list(module.named_children()):
        inflated = nn.BatchNorm3d(child.num_features) if isinstance(child, nn.BatchNorm2d) else swap(name, child)
        if inflated is None:
            inflate_layers(child, swap)
        else:
            setattr(module, name, inflated)


def swap_of_resnet(name: str, layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, nn.MaxPool2d):
        return nn.MaxPool3d(3, 2, padding=1)
    if not isinstance(layer, nn.Conv2d):
        return None
    size, stride = layer.kernel_size[0], layer.stride[0]
    if size == 7:
        return nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False)
    return nn.Conv3d(layer.in_channels, layer.out_channels, size, stride, padding=size // 2, bias=False)


def test_an_inflated_resnet_gives_what_it_gave(tmp_path: Path) -> None:
    network = torchvision.models.resnet50()
    inflate_layers(network, swap_of_resnet)
    randomize(network, 1)
    torch.save(network.state_dict(), tmp_path / "i3resnet50.pth")
    encoder = create_encoder(f"hassony2:resnet50@{tmp_path}/i3resnet50.pth", in_channels=3).eval()
    pixels = torch.rand(1, 3, 9, 32, 48)
    mean, std = (torch.tensor(values).reshape(3, 1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        found, expected = encoder(pixels), run_resnet(network, (pixels - mean) / std)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    assert encoder.report is not None
    assert {row.source for row in encoder.report.rows if row.fate == "dropped"} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(("suffix", "taps"), [("", 3), ("-flat", 1)])
def test_an_inflated_densenet_gives_what_it_gave(suffix: str, taps: int, tmp_path: Path) -> None:
    def swap(name: str, layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.MaxPool2d):
            return nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))
        if isinstance(layer, nn.AvgPool2d):
            return nn.AvgPool3d(2, 2)
        if not isinstance(layer, nn.Conv2d):
            return None
        size, stride = layer.kernel_size[0], layer.stride[0]
        depth = taps if size == 3 else 1
        margins = (0, size // 2, size // 2)
        channels = layer.in_channels, layer.out_channels
        return ReplicatedConv(*channels, (depth, size, size), (1, stride, stride), padding=margins, bias=False)

    network = torchvision.models.densenet121()
    inflate_layers(network, swap)
    randomize(network, 2)
    # Files of the time name a layer's parts norm.1 and conv.2.
    state = {re.sub(r"(denselayer\d+\.)(norm|conv)(\d)", r"\1\2.\3", k): t for k, t in network.state_dict().items()}
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "i3densenet.pth")
    encoder = create_encoder(f"hassony2:densenet121{suffix}@{tmp_path}/i3densenet.pth", in_channels=3).eval()
    pixels = torch.rand(1, 3, 10, 32, 64)
    mean, std = (torch.tensor(values).reshape(3, 1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        found = encoder(pixels)
        expected = F.relu(network.features((pixels - mean) / std))
    assert_close(found[-1], expected)
    other = "hassony2:densenet121" + ("" if suffix else "-flat")
    with pytest.raises(WeightsError, match=r"of another architecture: .*conv\.2\.weight: the network's is 32×128×"):
        create_encoder(f"{other}@{tmp_path}/i3densenet.pth")


# --- I3D

MIXED = {
    "3b": (192, (64, 96, 128, 16, 32, 32)), "3c": (256, (128, 128, 192, 32, 96, 64)),
    "4b": (480, (192, 96, 208, 16, 48, 64)), "4c": (512, (160, 112, 224, 24, 64, 64)),
    "4d": (512, (128, 128, 256, 24, 64, 64)), "4e": (512, (112, 144, 288, 32, 64, 64)),
    "4f": (528, (256, 160, 320, 32, 128, 128)), "5b": (832, (256, 160, 320, 32, 128, 128)),
    "5c": (832, (384, 192, 384, 48, 128, 128)),
}  # fmt: skip


def draw_i3d() -> dict[str, Tensor]:
    """Tensors with the names and shapes of hassony2/kinetics_i3d_pytorch."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def add(name: str, inside: int, outside: int, size: int) -> None:
        fan_in = inside * size**3
        state[f"{name}.conv3d.weight"] = (
            torch.randn(outside, inside, size, size, size, generator=generator) * (2 / fan_in) ** 0.5
        )
        for part, low in (("weight", 0.6), ("bias", -0.1), ("running_mean", -0.1), ("running_var", 0.6)):
            state[f"{name}.batch3d.{part}"] = torch.rand(outside, generator=generator) * 0.3 + low

    add("conv3d_1a_7x7", 3, 64, 7)
    add("conv3d_2b_1x1", 64, 64, 1)
    add("conv3d_2c_3x3", 64, 192, 3)
    for place, (inside, (zero, one_a, one_b, two_a, two_b, three)) in MIXED.items():
        add(f"mixed_{place}.branch_0", inside, zero, 1)
        for branch, (first, second) in ((1, (one_a, one_b)), (2, (two_a, two_b))):
            add(f"mixed_{place}.branch_{branch}.0", inside, first, 1)
            add(f"mixed_{place}.branch_{branch}.1", first, second, 3)
        add(f"mixed_{place}.branch_3.1", inside, three, 1)
    state["conv3d_0c_1x1.conv3d.weight"] = torch.zeros(400, 1024, 1, 1, 1)
    state["conv3d_0c_1x1.conv3d.bias"] = torch.zeros(400)
    return state


def run_i3d(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published forward, with the paddings that divisible sizes have: k − s, half of it in front."""

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        total = weight.shape[2] - stride
        x = F.conv3d(F.pad(x, (total // 2, total - total // 2) * 3), weight, stride=stride)
        norm = [state[f"{name}.batch3d.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm, eps=1e-3))

    def pool(x: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        pads = [margin for k, s in zip(reversed(size), reversed(stride), strict=True) for margin in
                ((k - s) // 2, (k - s) - (k - s) // 2)]  # fmt: skip
        return F.max_pool3d(F.pad(x, pads), size, stride, ceil_mode=True)

    def mixed(name: str, x: Tensor) -> Tensor:
        branches = [unit(f"{name}.branch_0", x)]
        branches += [unit(f"{name}.branch_{n}.1", unit(f"{name}.branch_{n}.0", x)) for n in (1, 2)]
        branches.append(unit(f"{name}.branch_3.1", pool(x, (3, 3, 3), (1, 1, 1))))
        return torch.cat(branches, 1)

    x = pool(unit("conv3d_1a_7x7", x, stride=2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("conv3d_2c_3x3", unit("conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    x = pool(mixed("mixed_3c", mixed("mixed_3b", x)), (3, 3, 3), (2, 2, 2))
    for place in ("4b", "4c", "4d", "4e", "4f"):
        x = mixed(f"mixed_{place}", x)
    return mixed("mixed_5c", mixed("mixed_5b", pool(x, (2, 2, 2), (2, 2, 2))))


def to_piergiaj(name: str) -> str:
    """A tensor's name in piergiaj/pytorch-i3d."""
    name = name.replace("conv3d_0c_1x1", "logits").replace("batch3d", "bn").replace("mixed", "Mixed")
    name = re.sub(r"^conv3d_", "Conv3d_", name).replace("branch_0", "b0").replace("branch_3.1", "b3b")
    return re.sub(r"branch_(\d)\.(\d)", lambda m: f"b{m[1]}{'ab'[int(m[2])]}", name)


def test_i3d_gives_what_it_gave_from_either_ports_file(tmp_path: Path) -> None:
    state = draw_i3d()
    torch.save(state, tmp_path / "hassony2.pt")
    torch.save({to_piergiaj(name): tensor for name, tensor in state.items()}, tmp_path / "piergiaj.pt")
    pixels = torch.rand(1, 3, 16, 32, 64)
    with torch.inference_mode():
        expected = run_i3d(state, pixels * 2 - 1)
        for port in ("hassony2", "piergiaj"):
            encoder = create_encoder(f"i3d:kinetics@{tmp_path}/{port}.pt", in_channels=3).eval()
            assert_close(encoder(pixels)[-1], expected)
            assert encoder.report is not None
            assert encoder.report.count("mapped") == len(state) - 2


def test_same_padding_is_tensorflows() -> None:
    """⌈7/2⌉ windows of 3 need 2 voxels more, one at each end; ⌈8/2⌉ need 1, at the far end."""
    padded = pad_same(torch.ones(1, 1, 7, 8, 9), (3, 3, 2), (2, 2, 1))[0, 0]
    assert padded.shape == (9, 9, 10)
    assert padded[:, 0, 0].tolist() == [0, *[1] * 7, 0]
    assert padded[1, :, 0].tolist() == [*[1] * 8, 0]
    assert padded[1, 0].tolist() == [*[1] * 9, 0]


# --- channels, stages, orientation


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("medicalnet") / "resnet_10.pth"
    torch.save(randomize(create_medicalnet(10), 5).state_dict(), path)
    return path


def test_equal_channels_answer_as_the_one_that_was_trained_on(small_file: Path) -> None:
    init, volume = f"medicalnet:resnet10@{small_file}", torch.randn(1, 1, 9, 16, 20)
    with torch.inference_mode():
        expected = create_encoder(init, input_scale="zscore").eval()(volume)
        two = create_encoder(init, in_channels=2, input_scale="zscore").eval()(volume.expand(-1, 2, -1, -1, -1))
        unit = create_encoder(init, input_scale="unit").eval()(volume * 0.226 + 0.449)
    for one, other, third in zip(expected, two, unit, strict=True):
        assert_close(other, one)
        assert_close(third, one)


def test_a_grey_volume_is_answered_as_its_copies_in_three_colours() -> None:
    torch.manual_seed(0)
    colour = create_encoder("hassony2:resnet50", init="random", in_channels=3, stages=2).eval()
    torch.manual_seed(0)
    grey = create_encoder("hassony2:resnet50", init="random", in_channels=1, stages=2).eval()
    volume = torch.rand(1, 1, 5, 16, 18)
    with torch.inference_mode():
        for one, other in zip(grey(volume), colour(volume.expand(-1, 3, -1, -1, -1)), strict=True):
            assert_close(one, other)


def test_stages_and_stem_stride_are_chosen(small_file: Path) -> None:
    encoder = create_encoder(f"medicalnet:resnet10@{small_file}", stages=2, stem_stride=1).eval()
    assert (encoder.channels, encoder.strides) == ((64, 64), ((1, 1, 1), (2, 2, 2)))
    assert [m.shape[2:] for m in encoder(torch.zeros(1, 1, 4, 6, 10))] == [(4, 6, 10), (2, 3, 5)]
    assert not [name for name in encoder.state_dict() if "layer2" in name]
    assert encoder.report is not None
    cut = {row.source.split(".")[0] for row in encoder.report.rows if row.source and "after the last" in row.how}
    assert cut == {"layer2", "layer3", "layer4"}
    with pytest.raises(ConfigError, match="has 3 stages"):
        create_encoder(f"medicalnet:resnet10@{small_file}", stages=4)


def test_an_orientation_is_turned_back() -> None:
    turned = Orientation(("D", "-W", "-H"))
    volume = torch.arange(2 * 3 * 4.0).reshape(1, 1, 2, 3, 4)
    seen = turned.turn(volume)
    assert seen.shape[2:] == (2, 4, 3)
    assert seen[0, 0, 1, 0, 0] == volume[0, 0, 1, -1, -1]
    assert seen[0, 0, 0, 3, 1] == volume[0, 0, 0, 1, 0]
    assert torch.equal(turned.turn_back(seen), volume)
    assert Orientation(("W", "D", "-H")).turn_back_strides((4, 1, 2)) == (1, 2, 4)
    cycled = Orientation(("W", "D", "-H"))
    assert torch.equal(cycled.turn_back(cycled.turn(volume)), volume)


# --- inits, tasks, refusals


def test_every_network_has_a_family_that_the_configuration_knows() -> None:
    assert {name.partition(":")[0] for name in NETWORKS_3D} == set(FAMILIES_3D)
    for name in NETWORKS_3D:
        assert parse_init(f"{name}@weights.pth").file == Path("weights.pth")
        network = NETWORKS_3D[name]
        assert len(network.mean) == len(network.std)


def test_an_init_of_a_task_brings_its_network_along(small_file: Path) -> None:
    init = f"medicalnet:resnet10@{small_file}"
    task = load_task("hippocampus", overrides={"model.init": init, "model.stages": 2})
    assert (task.model.backbone, task.model.init) == ("medicalnet:resnet10", init)
    model = create_model(task).eval()
    stored = torch.load(small_file, weights_only=True)
    torch.testing.assert_close(
        model.encoder.state_dict()["body.layer1.0.conv1.weight"], stored["layer1.0.conv1.weight"]
    )
    again = load_task("hippocampus", overrides={"model.backbone": "medicalnet:resnet10", "model.init": "random"})
    assert create_model(again).encoder.state_dict().keys() >= model.encoder.state_dict().keys()
    with pytest.raises(ConfigError, match="is of the network astra, and backbone is resnet18: leave backbone out"):
        load_task("hippocampus", overrides={"model.init": "astra", "model.backbone": "resnet18"})


def test_an_encoders_checkpoint_goes_back_into_it(small_file: Path, tmp_path: Path) -> None:
    encoder = create_encoder(f"medicalnet:resnet10@{small_file}", stages=2)
    torch.save({f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, tmp_path / "run.pt")
    other = create_encoder("medicalnet:resnet10", init=str(tmp_path / "run.pt"), stages=2)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in encoder.state_dict().items())
    with pytest.raises(WeightsError, match="its encoder is of another architecture"):
        load_encoder_state(create_encoder("medicalnet:resnet18", init="random"), tmp_path / "run.pt")


def test_a_partial_load_is_refused_unless_asked(small_file: Path, tmp_path: Path) -> None:
    state = torch.load(small_file, weights_only=True)
    lost = state.pop("layer1.0.conv2.weight")
    state["bn1.weight"] = torch.ones(3)
    state["strange.weight"] = torch.ones(2)
    torch.save(state, tmp_path / "part.pth")
    name = f"medicalnet:resnet10@{tmp_path}/part.pth"
    with pytest.raises(
        WeightsError, match=r"and 3 do not \(.*bn1.weight: the network's is 64.*allow_partial_init=true"
    ):
        create_encoder(name)
    encoder = create_encoder(name, allow_partial=True)
    assert encoder.report is not None
    fates = {row.source or row.target: row.fate for row in encoder.report.rows if row.fate != "mapped"}
    assert fates == {
        "bn1.weight": "unexpected", "strange.weight": "unexpected", "layer1.0.conv2.weight": "missing",
    }  # fmt: skip
    own = encoder.body.state_dict()
    assert torch.equal(own["conv1.weight"], state["conv1.weight"])
    assert not torch.equal(own["layer1.0.conv2.weight"], lost)
    assert torch.isfinite(own["layer1.0.conv2.weight"]).all()


def test_options_of_inflated_networks_are_refused() -> None:
    for options, message in (
        ({"plan": anisotropic((4, 1, 1))}, "depth plans are for inflated networks"),
        ({"drop_path": 0.1}, "no stochastic depth"),
        ({"weights": "resnet50.pth"}, "2D weights and those of other networks do not fit"),
        ({"init": "imagenet-center"}, "is a network in 3D"),
        ({"init": "astra"}, "init takes i3d:kinetics"),
    ):
        with pytest.raises(ConfigError, match=message):
            create_encoder("i3d:kinetics", **{"init": "random", **options})
    with pytest.raises(ConfigError, match="make it the backbone too, in place of resnet18"):
        create_encoder("resnet18", init="astra")
    with pytest.raises(ConfigError, match="goes with a 3D network's name alone"):
        create_encoder("resnet18@file.pth")
    with pytest.raises(ConfigError, match="unknown init 'medicalnet:resnet5'; did you mean 'medicalnet:resnet50'"):
        parse_init("medicalnet:resnet5@file.pth")
    with pytest.raises(ConfigError, match="no file after @"):
        parse_init("astra@")


def test_weights_that_are_nowhere_are_an_error_with_the_ways_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"no weights of medicalnet:resnet50: .*--init medicalnet:resnet50@FILE"):
        create_encoder("medicalnet:resnet50")
    with pytest.raises(WeightsError, match=r"no weights of i3d:kinetics on this machine: .*pytorch-i3d"):
        create_encoder("i3d:kinetics")
