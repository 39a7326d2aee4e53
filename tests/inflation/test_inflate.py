"""The laws of inflation on whole networks, against the 2D networks themselves."""

import copy
import io
import subprocess
import sys
from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import nn

from medi3d.errors import ConfigError, InflationError, InputError
from medi3d.inflation import PROFILES, inflate, measure_exactness

TASK_BACKBONES = ("tf_efficientnet_lite0", "resnet18", "resnet50", "densenet121", "convnext_tiny")
MORE_BACKBONES = ("resnet50d", "mobilenetv3_small_100", "regnety_002", "seresnet18", "ghostnet_100", "convmixer_768_32")


def randomize_norms(model):
    """Give norms statistics and scales as a trained network has."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@cache
def make_network(name, features_only=False, in_channels=1):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, features_only=features_only, in_chans=in_channels)
    return randomize_norms(model).eval()


@torch.no_grad()
def assert_exact(model, inflated, depth, in_channels=1, size=(48, 80)):
    slices = torch.randn(2, in_channels, *size)
    expected, outputs = model(slices), inflated(slices[:, :, None].expand(-1, -1, depth, -1, -1))
    if isinstance(expected, torch.Tensor):
        expected, outputs = [expected], [outputs]
    assert len(outputs) == len(expected)
    for output, plane in zip(outputs, expected, strict=True):
        if plane.ndim == 4:
            plane = plane[:, :, None]
            assert output.ndim == 5
        # every depth, ends included
        assert (output - plane).abs().max() <= 1e-4 * plane.abs().max()


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", TASK_BACKBONES)
def test_task_backbones_are_exact_with_every_profile(name, features_only):
    model = make_network(name, features_only)
    for init, depth in zip(PROFILES, (9, 12, 1), strict=True):
        assert_exact(model, inflate(model, init=init).eval(), depth)


@pytest.mark.parametrize("name", MORE_BACKBONES)
def test_more_backbones_are_exact(name):
    model = make_network(name, in_channels=2)
    assert_exact(model, inflate(model, init="overshoot"), 11, in_channels=2)


@pytest.mark.parametrize(
    "make",
    [torchvision.models.resnet18, torchvision.models.mobilenet_v3_small, torchvision.models.vgg11_bn],
)
def test_torchvision_classifiers_are_exact(make):
    model = randomize_norms(make(weights=None, num_classes=7)).eval()
    assert_exact(model, inflate(model), 6, in_channels=3, size=(64, 80))


@pytest.mark.parametrize(("name", "stem"), [("tf_efficientnet_lite0", "conv_stem"), ("resnet18", "conv1")])
def test_stem_stride_one(name, stem):
    model = copy.deepcopy(make_network(name, features_only=True))
    getattr(model, stem).stride = (1, 1)
    assert_exact(model, inflate(model, init="overshoot"), 7, size=(24, 40))


@pytest.mark.parametrize("init", ["mean", "overshoot"])
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_depth_mixes(name, init):
    model = make_network(name, features_only=True)
    law = measure_exactness(model, inflate(model, init=init), in_channels=1, shape=(8, 32, 48))
    assert law.is_exact
    assert law.mixes
    assert law.mixing > 1e-6


def test_every_slice_reaches_the_outputs_at_other_depths():
    inflated = inflate(make_network("tf_efficientnet_lite0", features_only=True))
    volume = torch.randn(1, 1, 12, 32, 48)
    changed = volume.clone()
    changed[:, :, 5] += 1
    with torch.no_grad():
        first, second = inflated(volume)[0], inflated(changed)[0]
    difference = (first - second).abs().amax((0, 1, 3, 4))  # a number a depth
    assert (difference[[1, 2, 3]] > 1e-4).all()
    assert difference[-1] == 0


def test_networks_that_do_not_mix_are_measured_as_such():
    patches = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    inflated = inflate(patches, init="center")
    assert measure_exactness(patches, inflated, in_channels=1, shape=(8, 8, 12)).mixing < 1e-9


def test_classifier_learns_off_centre_taps_and_any_depth():
    inflated = inflate(make_network("resnet18"), init="center").train()
    inflated(torch.randn(3, 1, 5, 32, 48)).square().mean().backward()
    weight = inflated.body.layer1[0].conv1.weight
    assert weight.shape == (64, 64, 3, 3, 3)
    assert (weight.grad[:, :, [0, 2]].abs().amax((0, 1, 3, 4)) > 0).all()


def test_input_is_not_changed_and_modes_stay():
    model = copy.deepcopy(make_network("resnet18")).train()
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    inflated = inflate(model)
    assert inflated.training
    assert not inflated.body.layer1.training
    assert inflated.body.layer2.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.fc.weight.data_ptr() != inflated.body.fc.weight.data_ptr()


def test_frozen_stays_frozen():
    model = copy.deepcopy(make_network("resnet18")).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in inflate(model).parameters())


def test_state_dict_goes_round_and_keeps_the_names():
    model = make_network("tf_efficientnet_lite0")
    first, second = inflate(model, init="mean"), inflate(model, init="center")
    assert {key.removeprefix("body.") for key in first.state_dict()} == set(model.state_dict())
    second.load_state_dict(first.state_dict(), strict=True)
    volume = torch.randn(2, 1, 5, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(first(volume), second(volume))


def test_deepcopy_and_pickle_give_networks_of_their_own():
    inflated = inflate(make_network("seresnet18"))
    buffer = io.BytesIO()
    torch.save(inflated, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(inflated), torch.load(buffer, weights_only=False)]
    volume = torch.randn(2, 1, 4, 32, 48)
    with torch.no_grad():
        expected = inflated(volume)
        inflated(volume[:1])  # another batch size must not reach the copies
        for other in copies:
            assert other.depth is not inflated.depth
            torch.testing.assert_close(other(volume), expected)


def test_compiles_without_a_break():
    layers = [nn.Conv2d(1, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, groups=4), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1, 2)]
    inflated = inflate(nn.Sequential(*layers, nn.GroupNorm(1, 2), nn.AdaptiveAvgPool2d(1))).eval()
    compiled = torch.compile(inflated, backend="eager", fullgraph=True, dynamic=False)
    volume = torch.randn(2, 1, 4, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(volume), inflated(volume))


def test_autocast_trains():
    inflated = inflate(make_network("tf_efficientnet_lite0", features_only=True)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = inflated(torch.randn(2, 1, 8, 32, 48))
        loss = sum(output.float().mean() for output in outputs)
    loss.backward()
    assert all(parameter.grad is not None for parameter in inflated.parameters())
    assert all(output.isfinite().all() for output in outputs)


def test_training_gradients_are_those_of_plain_conv3d():
    """The whole network again with torch's own Conv3d, one layer after the other, on real 3D input."""
    depthwise, pointwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 4, 1)
    layers = [nn.Conv2d(1, 8, 3, 2, 1), depthwise, pointwise, nn.Conv2d(4, 6, 3, 2, 1)]
    inflated = inflate(nn.Sequential(*layers), depth_padding="zeros")
    volume = torch.randn(2, 1, 9, 12, 11)
    output = volume
    parameters = dict(inflated.named_parameters())
    for index, layer in enumerate(layers):
        weight = parameters[f"body.{index}.weight"]
        kernel = weight if weight.ndim == 5 else weight[:, :, None]
        bias = parameters[f"body.{index}.bias"]
        padding = kernel.shape[2] // 2
        output = nn.functional.conv3d(output, kernel, bias, layer.stride[0], padding, 1, layer.groups)
    expected = torch.autograd.grad(output.square().sum(), list(parameters.values()))
    gradients = torch.autograd.grad(inflated(volume).square().sum(), list(parameters.values()))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-3)


def test_what_has_no_volumetric_form_is_refused_by_name():
    layers = [nn.Conv2d(1, 4, 3), nn.Sequential(nn.MaxPool2d(2, return_indices=True))]
    inflated = inflate(nn.Sequential(*layers))
    with pytest.raises(InflationError, match="indices of a 2D pool"):
        inflated(torch.zeros(1, 1, 4, 8, 9))
    with pytest.raises(InflationError, match=r"cannot inflate '1' \(ConvTranspose2d\): its kernel of 1"):
        inflate(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 1, stride=2)))


def test_a_network_whose_slices_would_never_meet_is_refused():
    inflated = inflate(nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 4, stride=4)))
    with pytest.raises(InflationError, match='its slices would never mix; plan="slicewise"'):
        inflated(torch.zeros(1, 1, 8, 8, 12))


def test_an_error_inside_names_the_layer():
    inflated = inflate(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.Conv2d(5, 4, 3))))
    with pytest.raises(InflationError, match=r"'1\.0' \(Conv2d\) cannot run on a volume: "):
        inflated(torch.zeros(1, 1, 4, 8, 9))


def test_tokens_of_slices_are_no_output():
    class Tokens(nn.Sequential):
        def forward(self, x):
            return super().forward(x).flatten(2).mT

    with pytest.raises(InflationError, match=r"Tokens gave \(2, 42, 4\) for each slice, no feature map"):
        inflate(Tokens(nn.Conv2d(1, 4, 3)))(torch.zeros(2, 1, 7, 8, 9))


def test_pooling_in_the_networks_own_code_pools_the_volume():
    class MeanOfMaps(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    inflated = inflate(MeanOfMaps(nn.Conv2d(1, 4, 3)))
    volume = torch.randn(2, 1, 7, 8, 9)
    weight, bias = inflated.body[0].weight, inflated.body[0].bias
    padded = nn.functional.pad(volume, (0, 0, 0, 0, 1, 1), mode="replicate")
    expected = nn.functional.conv3d(padded, weight, bias).mean((2, 3, 4))
    torch.testing.assert_close(inflated(volume), expected)


def test_slices_are_no_input():
    with pytest.raises(InputError, match=r"takes \(B, C, D, H, W\), got a tensor of shape \(2, 1, 8, 9\)"):
        inflate(nn.Conv2d(1, 4, 3))(torch.zeros(2, 1, 8, 9))


def test_unknown_options():
    with pytest.raises(ConfigError, match="depth profile 'meen'; did you mean 'mean'"):
        inflate(nn.Conv2d(1, 4, 3), init="meen")
    with pytest.raises(ConfigError, match="depth padding 'zero'; did you mean 'zeros'"):
        inflate(nn.Conv2d(1, 4, 3), depth_padding="zero")


def test_outputs_of_any_nesting_are_unfolded():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x):
            x = self.conv(x)
            return {"maps": [x, (x,)], "scalar": 3}

    output = inflate(Nested())(torch.zeros(2, 1, 5, 6, 7))
    assert output["maps"][0].shape == output["maps"][1][0].shape == (2, 4, 5, 6, 7)
    assert output["scalar"] == 3


def test_shared_layers_are_converted_once():
    pool = nn.MaxPool2d(2)
    inflated = inflate(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), pool, pool))
    assert inflated(torch.zeros(1, 1, 8, 12, 16)).shape == (1, 2, 2, 3, 4)


def test_no_model_zoo_is_imported():
    code = "import sys, medi3d.inflation; print([m for m in ('timm', 'torchvision', 'monai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "nf_regnet_b0", "resnetv2_18"])
def test_gradients_of_one_slice_are_those_of_the_2d_network(name):
    flat = copy.deepcopy(make_network(name))
    deep = inflate(flat)
    slices = torch.randn(2, 1, 48, 64, requires_grad=True)
    volume = slices.detach()[:, :, None].requires_grad_()
    flat(slices).square().sum().backward()
    deep(volume).square().sum().backward()
    torch.testing.assert_close(volume.grad[:, :, 0], slices.grad, rtol=1e-4, atol=1e-4 * float(slices.grad.abs().max()))
    gradients = dict(deep.body.named_parameters())
    for key, parameter in flat.named_parameters():
        if gradients[key].shape == parameter.shape:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(gradients[key].grad, parameter.grad, rtol=1e-3, atol=1e-4 * max(scale, 1e-6))
