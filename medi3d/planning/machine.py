"""The machine that a plan is made for: where the network is trained, and the memory that training may use there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medi3d.errors import ConfigError
from medi3d.preprocess.scheduling.budget import SHARE, available_bytes
from medi3d.registry import unknown_name_message

DEVICES = ("auto", "cpu")


@dataclass(frozen=True)
class Machine:
    """Where training runs.

    Attributes:
        device: ``cuda`` or ``cpu``.
        memory_bytes: what training may use.
        source: where that number is from, in words.
    """

    device: str
    memory_bytes: int
    source: str


def find_machine(device: str = "auto", memory_bytes: int | None = None) -> Machine:
    """Find the training device and its memory.

    Args:
        device: ``auto`` takes a GPU where there is one; ``cpu`` stays on the processor.
        memory_bytes: what training may use; ``None`` takes 80 % of what is free: on the GPU, or else of the machine and
            of the container that this runs in.

    Raises:
        ConfigError: an unknown device.
    """
    if device not in DEVICES:
        raise ConfigError(unknown_name_message("device", device, DEVICES))
    kind = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    if memory_bytes is not None:
        return Machine(kind, memory_bytes, "as given")
    free = torch.cuda.mem_get_info()[0] if kind == "cuda" else available_bytes()
    return Machine(kind, int(SHARE * free), f"{SHARE:.0%} of the {free / 1e9:.1f} GB that are free")
