"""The machine that a plan is made for: where the network is trained, and the memory that training may use there."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from medi3d.errors import ConfigError
from medi3d.preprocess.scheduling.budget import SHARE, available_bytes
from medi3d.registry import unknown_name_message

DEVICES = ("auto", "cpu", "cuda", "cuda:1")
"""What messages show; any GPU has a number."""


@dataclass(frozen=True)
class Machine:
    """Where training runs.

    Attributes:
        device: ``cuda`` or ``cpu``.
        memory_bytes: what training may use.
        source: where that number is from, in words.
        bf16: what of its hardware computes in bfloat16, in words; empty where nothing does.
    """

    device: str
    memory_bytes: int
    source: str
    bf16: str = ""


def find_device(name: str) -> torch.device:
    """Find the device of a name.

    Args:
        name: ``auto`` takes a GPU where there is one, ``cpu`` stays on the processor, ``cuda`` and ``cuda:1`` name one.

    Raises:
        ConfigError: an unknown name, or a GPU that is not there.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(unknown_name_message("device", name, DEVICES))
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device {name}: torch sees {count} GPUs here; take auto, cpu or one of cuda:0 to cuda:{count - 1}"
            if count
            else f"device {name}: torch sees no GPU here; take auto or cpu"
        )
    return device


def find_machine(device: str = "auto", memory_bytes: int | None = None) -> Machine:
    """Find the training device and its memory.

    Args:
        device: as :func:`find_device` takes it.
        memory_bytes: what training may use; ``None`` takes 80 % of what is free: on the GPU, or else of the machine and
            of the container that this runs in.

    Raises:
        ConfigError: an unknown device.
    """
    found = find_device(device)
    kind, bf16 = found.type, find_bf16(found)
    if memory_bytes is not None:
        return Machine(kind, memory_bytes, "as given", bf16)
    free = torch.cuda.mem_get_info(found)[0] if kind == "cuda" else available_bytes()
    return Machine(kind, int(SHARE * free), f"{SHARE:.0%} of the {free / 1e9:.1f} GB that are free", bf16)


def name_device(device: torch.device) -> str:
    """Return what a device is sold as, such as ``NVIDIA H100 80GB HBM3``, or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def find_bf16(device: torch.device) -> str:
    """Find the hardware that computes in bfloat16, which any device can do in software, slower than in float32.

    Args:
        device: that the network is on.

    Returns:
        Its name; empty where there is none that PyTorch's kernels use.
    """
    if device.type == "cuda":
        if torch.version.hip:
            return "matrix cores"
        capability = torch.cuda.get_device_capability(device)
        return "tensor cores" if capability >= _FIRST_GPU_WITH_BF16 else ""
    return next((name for name, is_there in _CPU_BF16.items() if is_there()), "")


def _cpu_has(instructions: str, before: str) -> bool:
    """Ask for instructions by the call that PyTorch 2.10 or so made public, or by the one that there was before."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get(instructions, False))
    return bool(getattr(torch.cpu, before)())


_FIRST_GPU_WITH_BF16 = (8, 0)
"""Compute capability of NVIDIA's Ampere."""

_CPU_BF16: dict[str, Callable[[], bool]] = {
    "AMX_BF16": lambda: _cpu_has("amx_bf16", "_is_amx_tile_supported"),
    "AVX512_BF16": lambda: _cpu_has("avx512_bf16", "_is_avx512_bf16_supported"),
}
"""Instructions that oneDNN's convolutions use for bfloat16; those of ARM are not measured, and so not here."""
