"""The two laws on the smallest network of every model file of timm and of every classification family of torchvision.

There is no list of exceptions. `benchmarks/coverage.py` runs the same laws over all architectures.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from torch import nn

from medi3d.inflation import PROFILES, inflate
from medi3d.inflation.verify import TOLERANCE, measure_error, measure_mixing


def load_benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


coverage_benchmark = load_benchmark()

CLASSES = 7

SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
    "torchvision/alexnet": "torchvision/alexnet",
    "torchvision/convnext": "torchvision/convnext_tiny",
    "torchvision/densenet": "torchvision/densenet121",
    "torchvision/efficientnet": "torchvision/efficientnet_b0",
    "torchvision/googlenet": "torchvision/googlenet",
    "torchvision/inception": "torchvision/inception_v3",
    "torchvision/maxvit": "torchvision/maxvit_t",
    "torchvision/mnasnet": "torchvision/mnasnet0_5",
    "torchvision/mobilenetv2": "torchvision/mobilenet_v2",
    "torchvision/mobilenetv3": "torchvision/mobilenet_v3_small",
    "torchvision/regnet": "torchvision/regnet_y_400mf",
    "torchvision/resnet": "torchvision/resnet18",
    "torchvision/shufflenetv2": "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet": "torchvision/squeezenet1_1",
    "torchvision/swin_transformer": "torchvision/swin_t",
    "torchvision/vgg": "torchvision/vgg11",
    "torchvision/vision_transformer": "torchvision/vit_b_16",
}
"""File → its network with the fewest parameters."""

SHORTENED = {
    "beit_base_patch16_224": {"depth": 2},
    "deepseek_vit_412m": {"depth": 2},
    "gemma4_vit_167m": {"depth": 2},
    "naflexvit_base_patch16_parfac_gap": {"depth": 2},
    "qwen3_vit_88m": {"depth": 2},
    "samvit_base_patch16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2), "num_heads": (3, 6)},
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


def test_every_file_has_an_entry() -> None:
    files = set(coverage_benchmark.list_architectures().values())
    assert files - set(SMALLEST) == set(), "give each new file its smallest network"
    assert set(SMALLEST) >= QUICK
    assert {file for file in SMALLEST if file.startswith("torchvision/")} <= files


@pytest.mark.parametrize("file", FILES)
def test_the_laws_hold(file: str) -> None:
    flat, size = make_network(file)
    deep = inflate(flat, init="mean")
    assert measure_error(flat, deep, shape=(36, *size)) <= TOLERANCE
    neighbours, patches = measure_mixing(flat, deep, shape=(36, *size))
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
