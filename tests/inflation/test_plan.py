import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

from medi3d.errors import ConfigError
from medi3d.inflation import PLANS, DepthPlan, anisotropic, inflate


def depths(inflated, names, volume):
    """The depth of each named layer's output."""
    found = {}

    def keep(name):
        return lambda module, args, output: found.update({name: inflated.depth.size(output)})

    hooks = [inflated.body.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        inflated.eval()(volume)
    for hook in hooks:
        hook.remove()
    return [found[name] for name in names]


def test_i3d_is_the_papers_own_plan():
    """Carreira & Zisserman 2017, figure 3: 64 frames; depth 32 up to the third pool, then 16 and 8."""
    network = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False)
    inflated = inflate(network, plan="i3d")
    names = ["conv1", "maxpool1", "conv3", "maxpool2", "inception3b", "maxpool3", "maxpool4", "inception5b"]
    assert depths(inflated, names, torch.zeros(1, 3, 64, 64, 64)) == [32, 32, 32, 32, 32, 16, 8, 8]
    assert inflated.body.conv1.conv.weight.shape[2:] == (7, 7, 7)
    assert inflated.body.inception3a.branch2[1].conv.weight.shape[2:] == (3, 3, 3)


def test_last_pool_averages_windows():
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inflated = inflate(network, plan=DepthPlan(last_pool=2))
    volume = torch.randn(1, 1, 5, 6, 7)
    maps = inflate(network[:1])(volume)
    windows = functional.avg_pool3d(maps, (2, 6, 7), stride=1)
    torch.testing.assert_close(inflated(volume), windows.mean((2, 3, 4)))


def test_anisotropic_keeps_depth_until_voxels_are_isotropic():
    volume = torch.zeros(1, 3, 8, 64, 96)
    names = ["conv1", "maxpool", "layer2", "layer3", "layer4"]
    for ratio, expected in ((1, [4, 2, 1, 1, 1]), (2, [8, 4, 2, 1, 1]), (4, [8, 8, 4, 2, 1]), (16, [8, 8, 8, 8, 4])):
        inflated = inflate(timm.create_model("resnet18"), plan=anisotropic((ratio * 0.8, 0.8, 0.8)))
        assert depths(inflated, names, volume) == expected
    assert inflated.body.conv1.weight.shape[2:] == (1, 7, 7)
    assert inflated.body.layer4[1].conv2.weight.shape[2:] == (3, 3, 3) if ratio < 16 else (1, 3, 3)


@pytest.mark.parametrize(("ratio", "taps"), [(1, 16), (2, 8), (4, 4), (16, 1)])
def test_patches_keep_the_voxels_isotropic(ratio, taps):
    inflated = inflate(timm.create_model("vit_tiny_patch16_224", depth=1), plan=anisotropic((ratio, 1, 1)))
    assert inflated.body.patch_embed.proj.weight.shape[2:] == (taps, 16, 16)


@pytest.mark.parametrize("plan", [*PLANS, anisotropic((3, 1, 1)), DepthPlan(depth_kernel=(None, 1))])
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_every_plan_is_exact(name, plan):
    network = timm.create_model(name).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, output = network(image), inflate(network, plan=plan)(image[:, :, None].expand(-1, -1, 7, -1, -1))
    assert (output - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_slicewise_is_the_2d_network_on_each_slice():
    network = timm.create_model("resnet18", features_only=True).eval()
    volume = torch.randn(2, 3, 4, 32, 48)
    with torch.no_grad():
        outputs = inflate(network, plan="slicewise")(volume)
        for depth in range(4):
            for output, plane in zip(outputs, network(volume[:, :, depth]), strict=True):
                torch.testing.assert_close(output[:, :, depth], plane, atol=1e-5, rtol=1e-4)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="depth plan 'i3dd'; did you mean 'i3d'"):
        inflate(nn.Conv2d(1, 2, 3), plan="i3dd")
    with pytest.raises(ConfigError, match=r"depth_stride takes one number of at least 1, or None, a stage; got \(0,\)"):
        DepthPlan(depth_stride=(0,))
    with pytest.raises(ConfigError, match=r"three positive numbers .* got \(1, 0, 1\)"):
        anisotropic((1, 0, 1))
    with pytest.raises(ConfigError, match="three positive numbers"):
        anisotropic((1, math.nan, 1))
    with pytest.raises(ConfigError, match="give inflate an image"):
        inflate(nn.Linear(2, 3), plan="i3d")
