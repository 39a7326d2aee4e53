"""The two laws on the smallest network of every model file of timm and of every classification family of torchvision.

There is no list of exceptions. `benchmarks/coverage.py` runs the same laws over all architectures.
"""

from __future__ import annotations

from functools import cache, partial

import pytest
import timm
import torch
from benchmark_modules import load_benchmark
from smallest_networks import SMALLEST
from torch import nn

from medi3d.inflation import PROFILES, inflate
from medi3d.inflation.verify import (
    MIXING_FLOOR,
    TOLERANCE,
    measure_error,
    measure_mixing,
    measure_response,
    patch_length,
)

coverage_benchmark = load_benchmark("coverage")

CLASSES = 7

SHORTENED = {
    "beit_base_patch16_224": {"depth": 2},
    "cait_xxs24_224": {"depth": 2},
    "convit_tiny": {"depth": 4, "local_up_to_layer": 2},
    "deit_tiny_patch16_224": {"depth": 2},
    "deepseek_vit_412m": {"depth": 2},
    "gemma4_vit_167m": {"depth": 2},
    "naflexvit_base_patch16_parfac_gap": {"depth": 2},
    "qwen3_vit_88m": {"depth": 2},
    "samvit_base_patch16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2), "num_heads": (3, 6)},
    "vit_tiny_patch16_dinov3_qkvb": {"depth": 2},
}
"""Options for fewer of many equal blocks."""

QUICK = {
    *("byobnet", "convnext", "edgenext", "efficientnet", "fasternet", "ghostnet", "mobilenetv3", "nfnet", "resnet"),
    *("cait", "convit", "deit", "efficientvim", "efficientvit_mit", "eva", "levit", "maxxvit", "mlp_mixer", "mvitv2"),
    *("pit", "pvt_v2", "swin_transformer", "vision_transformer", "vision_transformer_relpos"),
    *("torchvision/mobilenetv3", "torchvision/shufflenetv2"),
}
"""Files in the default run: a kind of layer each."""

FILES = [pytest.param(file, marks=() if file in QUICK else pytest.mark.slow) for file in SMALLEST]

# timm's own code, not the inflated network's: what its networks warn of when they are made.
pytestmark = pytest.mark.filterwarnings("ignore:::timm", "ignore:::torchvision")


@cache
def make_network(file: str) -> tuple[nn.Module, tuple[int, int]]:
    name = SMALLEST[file]
    if "/" not in name and not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    network, size = coverage_benchmark.create_network(name, {"num_classes": CLASSES, **SHORTENED.get(name, {})})
    return network, size


def choose_depth(network: nn.Module) -> int:
    """Return as many slices as two patches begin in."""
    return 20 if patch_length(network) <= 16 else 36


def sign(name: str, size: tuple[int, int] = (64, 96), **options: object) -> str:
    signature, _ = coverage_benchmark._sign(name, {"img_size": size, **options})
    return str(signature)


def test_names_of_one_network_are_known_and_no_others() -> None:
    """What two names share is measured once."""
    vit = "vit_tiny_patch16_224"
    assert sign(vit) == sign("vit_tiny_patch16_384")
    others = {
        "size": sign(vit, (64, 64)),
        "width": sign("vit_small_patch16_224"),
        "patch": sign("vit_small_patch32_224"),
        "activation": sign(vit, act_layer="relu"),
        "rate": sign(vit, drop_path_rate=0.1),
        "norm's epsilon": sign(vit, norm_layer=partial(nn.LayerNorm, eps=1e-3)),
        "layers by another name": sign("deit_tiny_distilled_patch16_224"),
    }
    assert sign(vit) not in others.values()
    assert len(set(others.values())) == len(others)
    rotary = "vit_small_patch16_rope_224"
    assert sign(rotary) == sign(rotary)
    assert sign(rotary) != sign("vit_small_patch16_rope_mixed_224")


def test_every_file_has_an_entry() -> None:
    files = set(coverage_benchmark.list_architectures().values())
    assert files - set(SMALLEST) == set(), "give each new file its smallest network"
    assert set(SMALLEST) >= QUICK
    assert {file for file in SMALLEST if file.startswith("torchvision/")} <= files


@pytest.mark.parametrize("file", FILES)
def test_the_laws_hold(file: str) -> None:
    flat, size = make_network(file)
    deep = inflate(flat, init="mean")
    shape = (choose_depth(flat), *size)
    assert measure_response(flat, shape=shape) > 10 * TOLERANCE  # or an error would not show
    assert measure_error(flat, deep, shape=shape) <= TOLERANCE
    neighbours, patches = measure_mixing(flat, deep, shape=shape)
    assert neighbours > 1e-7  # far above the rounding that `Exactness.mixes` allows for
    assert patches > 1e-7


@pytest.mark.parametrize(("init", "depth"), [("center", 7), ("overshoot", 2), ("overshoot", 7), ("mean", 1)])
@pytest.mark.parametrize("file", FILES)
def test_every_profile_is_exact_at_every_depth(file: str, init: str, depth: int) -> None:
    assert init in PROFILES
    flat, size = make_network(file)
    assert measure_error(flat, inflate(flat, init=init), shape=(depth, *size)) <= TOLERANCE


@pytest.mark.parametrize("file", FILES)
def test_a_classifier_gives_a_row_a_volume(file: str) -> None:
    flat, size = make_network(file)
    with torch.no_grad():
        logits = inflate(flat)(torch.randn(2, 3, 7, *size))[0]
    assert logits.shape == (2, CLASSES)


@pytest.mark.parametrize("file", ["efficientnet", "ghostnet", "mobilenetv3", "nfnet", "torchvision/mobilenetv3"])
def test_kernels_mix_and_not_gates_alone(file: str) -> None:
    """Squeeze-excitation and pools over the volume do not see the order of slices; kernels do."""
    flat, size = make_network(file)
    deep = inflate(flat).double().eval()
    volume = torch.randn(1, 3, 36, *size, dtype=torch.float64)
    swapped = volume.clone()
    swapped[:, :, [31, 32]] = volume[:, :, [32, 31]]
    with torch.no_grad():
        first, second = deep(volume)[0], deep(swapped)[0]
    assert (first - second).abs().max() > 1e-6 * first.abs().max()


@pytest.mark.parametrize("file", ["byobnet", "edgenext", "levit", "nfnet", "pit", "vision_transformer_relpos"])
def test_the_measure_of_mixing_tells_a_network_that_answers_each_slice_by_itself(file: str) -> None:
    flat, size = make_network(file)
    slicewise = inflate(flat, plan="slicewise")
    assert measure_error(flat, slicewise, shape=(7, *size)) <= TOLERANCE
    assert max(measure_mixing(flat, slicewise, shape=(choose_depth(flat), *size))) < MIXING_FLOOR / 100
