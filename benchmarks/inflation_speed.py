"""Time of forward + backward of inflated networks against the same networks written with plain nn.Conv3d.

    python benchmarks/inflation_speed.py [--threads 2] [--repeats 3] [--quick]

The plain networks are timm's, with every layer swapped for its 3D namesake (zero padding, 5-D tensors), in PyTorch's
default memory and in channels-last memory; ResNet-18 is also compared with MONAI's. Batch 2, one channel, feature
maps of all stages.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from monai.networks.nets import resnet18 as monai_resnet18
from torch import Tensor, nn

from medi3d.inflation import inflate

SHAPES = ((48, 64, 48), (64, 64, 64))


def swap_layers(module: nn.Module) -> nn.Module:
    """Replace every 2D layer by its plain 3D namesake, with random weights."""
    for name, child in module.named_children():
        setattr(module, name, _swap(child))
    return module


def _swap(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        size, stride = layer.kernel_size[0], layer.stride[0]
        return nn.Conv3d(
            *(layer.in_channels, layer.out_channels, size, stride, (size - 1) // 2),
            groups=layer.groups,
            bias=layer.bias is not None,
        )
    if isinstance(layer, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(layer.num_features)
        return nn.Sequential(norm, layer.act) if hasattr(layer, "act") else norm
    if isinstance(layer, nn.MaxPool2d):
        return nn.MaxPool3d(layer.kernel_size, layer.stride, layer.padding)
    return swap_layers(layer)


def set_stem_stride(network: nn.Module, stride: int) -> nn.Module:
    """Set the stride of the first convolution."""
    stem: Any = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    stem.stride = (stride, stride)
    return network


def seconds_per_step(network: nn.Module, volume: Tensor, repeats: int) -> float:
    """Return the best time of forward + backward, after one warm-up.

    With one thread it is CPU time, which other jobs on the machine do not change; with more it is wall time.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        network.zero_grad()
        start = clock()
        outputs = network(volume)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        torch.stack([output.mean() for output in outputs]).sum().backward()
        times.append(clock() - start)
    return min(times[1:])


def networks(name: str, stem_stride: int) -> dict[str, Callable[[], nn.Module]]:
    """Return the makers of all variants of one network."""

    def make() -> nn.Module:
        return set_stem_stride(timm.create_model(name, features_only=True, pretrained=False, in_chans=1), stem_stride)

    def plain() -> nn.Module:
        return swap_layers(make())

    def plain_channels_last() -> nn.Module:
        return plain().to(memory_format=torch.channels_last_3d)

    makers = {
        "plain Conv3d": plain,
        "plain Conv3d, channels last": plain_channels_last,
        "inflated": lambda: inflate(make()),
    }
    if name == "resnet18":
        makers["MONAI"] = lambda: monai_resnet18(
            n_input_channels=1, feed_forward=False, spatial_dims=3, conv1_t_stride=stem_stride
        )
    return makers


def compare(name: str, stem_stride: int, shape: tuple[int, int, int], repeats: int) -> None:
    """Print one line a variant: seconds per step, and the ratio to the plain network."""
    base = None
    for label, make in networks(name, stem_stride).items():
        volume = torch.rand(2, 1, *shape)
        if "channels last" in label:
            volume = volume.to(memory_format=torch.channels_last_3d)
        seconds = seconds_per_step(make().train(), volume, repeats)
        base = base or seconds
        size = "×".join(map(str, shape))
        print(f"| {name} | {stem_stride} | {size} | {label} | {seconds:.3f} | {seconds / base:.2f} |", flush=True)


def cpu_name() -> str:
    """Return the processor's name where Linux tells it."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["tf_efficientnet_lite0", "resnet18"])
    parser.add_argument("--quick", action="store_true", help="only 48×64×48 with stem stride 2")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}, timm {timm.__version__}\n")
    print("| network | stem stride | volume | variant | s/step | ratio |\n|---|---|---|---|---|---|")
    for name in options.models:
        for stem_stride in (2,) if options.quick else (2, 1):
            for shape in SHAPES[:1] if options.quick else SHAPES:
                compare(name, stem_stride, shape, options.repeats)


if __name__ == "__main__":
    main()
