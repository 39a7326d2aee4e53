"""What every encoder keeps to, on the smallest network of every model file; there is no list of exceptions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from smallest_networks import SMALLEST
from torch import Tensor
from torch.nn.functional import interpolate

from medi3d.inflation.verify import TOLERANCE, randomize_statistics
from medi3d.models import Encoder
from medi3d.models.backbone import Backbone, is_pyramid, try_run
from medi3d.models.encoder import inflate_backbone
from medi3d.models.zoo import create_backbone

QUICK = {"efficientnet", "resnet", "fastvit", "mambaout", "nfnet", "vision_transformer", "torchvision/shufflenetv2"}
"""Files in the default run: parallel stems, channels-last maps, standardised stem weights, maps of one stride."""

FILES = [pytest.param(file, marks=() if file in QUICK else pytest.mark.slow) for file in SMALLEST]

# The libraries' own code warns when some of their networks are made.
pytestmark = pytest.mark.filterwarnings("ignore:::timm", "ignore:::torchvision")


@cache
def make_backbone(file: str) -> tuple[Backbone, tuple[int, int]]:
    """The 2D network with statistics like a trained one's, and the size of slices to try it at."""
    torch.manual_seed(0)
    backbone = create_backbone(SMALLEST[file])
    step = backbone.slices.step
    size = backbone.input_size if step is None else (-(-96 // step) * step, -(-81 // step) * step)
    pixels = torch.cat([torch.rand(2, 3, *size), torch.rand(2, 1, *size).expand(-1, 3, -1, -1)])
    module = randomize_statistics(backbone.module, normalize(backbone, pixels)).eval()
    return replace(backbone, module=module), size


def make_encoder(file: str, in_channels: int) -> Encoder:
    """An encoder of exactly those weights."""
    backbone, _ = make_backbone(file)
    backbone = replace(backbone, module=copy.deepcopy(backbone.module))
    return inflate_backbone(backbone, SMALLEST[file], scales=("unit",) * in_channels).eval()


def normalize(backbone: Backbone, pixels: Tensor) -> Tensor:
    """RGB pixels in [0, 1], (B, 3, H, W), as the 2D network takes them."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    return (pixels - mean) / std


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4])
@pytest.mark.parametrize("file", FILES)
def test_features_of_equal_slices_are_those_of_the_2d_network(file: str, in_channels: int) -> None:
    backbone, size = make_backbone(file)
    encoder = make_encoder(file, in_channels)
    torch.manual_seed(in_channels)
    slices = torch.rand(1, 3 if in_channels == 3 else 1, *size)
    # In float64: float32 changes gemma4's own 2D maps by 6e-4.
    inputs = normalize(backbone, slices.expand(-1, 3, -1, -1)).double()
    with torch.no_grad():
        expected = copy.deepcopy(backbone.module).double()(inputs)
        found = encoder.double()(slices.double().expand(-1, in_channels, -1, -1)[:, :, None].expand(-1, -1, 5, -1, -1))
    assert len(found) == len(encoder.channels) == len(encoder.strides)
    for volume, plane, channels, stride in zip(found, expected, encoder.channels, encoder.strides, strict=True):
        if encoder.is_resized:
            plane = interpolate(plane, size=volume.shape[3:], mode="bilinear", align_corners=False)
            assert volume.shape[3:] == tuple(-(-n // s) for n, s in zip(size, stride[1:], strict=True))
        assert volume.shape == (1, channels, -(-5 // stride[0]), *plane.shape[2:])
        assert volume.isfinite().all()
        assert (volume - plane[:, :, None]).abs().max() <= TOLERANCE * plane.abs().max()


@pytest.mark.parametrize("file", FILES)
def test_maps_grow_with_the_slice_by_the_stride(file: str) -> None:
    """Differences of sizes tell a stride exactly, whatever the network pads or cuts off at the border."""
    backbone, size = make_backbone(file)
    grow = math.lcm(backbone.slices.step or 1, *backbone.strides)
    larger = tuple(n + grow for n in size)
    if not is_pyramid(backbone.strides) or not backbone.takes(larger):
        return  # the encoder resizes its maps to the very strides, or there is one size only
    small, large = (try_run(backbone.module, (1, 3, *n)) for n in (size, larger))
    assert small is not None
    assert large is not None
    for stride, before, after in zip(backbone.strides, small, large, strict=True):
        assert [b - a for a, b in zip(before.shape[2:], after.shape[2:], strict=True)] == [grow // stride] * 2


@pytest.mark.parametrize("file", FILES)
def test_strides_are_usable_by_a_decoder(file: str) -> None:
    """In the plane each map is coarser than the one before it, along depth none is finer: all by powers of two."""
    for axis, along in enumerate(zip(*make_encoder(file, 1).strides, strict=True)):
        assert list(along) == sorted(along if axis == 0 else set(along))
        assert all(math.log2(stride).is_integer() for stride in along)
