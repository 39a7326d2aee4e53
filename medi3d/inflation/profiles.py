"""Depth profiles: how the weight of a 2D kernel is shared out over the taps of a 3D kernel.

A 2D kernel ``w`` becomes ``W[:, :, t] = p[t] · w`` with Σp = 1, so that a volume of equal slices is answered as its
slice is. Every published initialisation is a row of `PROFILES`. The centre tap of an even kernel is the earlier of
the middle two, ``(T - 1) // 2``: the one on which PyTorch's and TensorFlow's ``same`` padding put the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from medi3d.errors import ConfigError
from medi3d.registry import Registry

Profile: TypeAlias = Callable[[int], Tensor]

PROFILES: Registry[Profile] = Registry("depth profile")


@PROFILES.register("mean")
def mean(taps: int) -> Tensor:
    """Give every tap 1/T (I3D: Carreira & Zisserman 2017, arXiv:1705.07750, section 2.4)."""
    return torch.full((taps,), 1.0 / taps, dtype=torch.float64)


@PROFILES.register("center")
def center(taps: int) -> Tensor:
    """Give the centre tap 1 and the others 0 (Detect-and-Track: Girdhar et al. 2018, arXiv:1712.09184)."""
    profile = torch.zeros(taps, dtype=torch.float64)
    profile[(taps - 1) // 2] = 1.0
    return profile


@PROFILES.register("overshoot")
def overshoot(taps: int) -> Tensor:
    """Give the centre tap (2T-1)/T and the others -1/T (Mansimov et al. 2015, arXiv:1503.07274)."""
    profile = torch.full((taps,), -1.0 / taps, dtype=torch.float64)
    profile[(taps - 1) // 2] = (2 * taps - 1) / taps
    return profile


def inflate_kernel(weight: Tensor, taps: int, init: str) -> Tensor:
    """Spread a 2D kernel over depth.

    Args:
        weight: (O, I, kH, kW) kernel of a 2D convolution.
        taps: extent T of the new kernel along depth.
        init: name of a row of `PROFILES`.

    Returns:
        (O, I, T, kH, kW) kernel; its sum over T is ``weight``.

    Raises:
        ConfigError: there is no such profile.

    Example:
        >>> inflate_kernel(torch.ones(1, 1, 3, 3), 3, "overshoot")[0, 0, :, 0, 0]
        tensor([-0.3333,  1.6667, -0.3333])
    """
    profile = PROFILES[init](taps).to(weight)
    return profile[:, None, None] * weight[:, :, None]  # (T, 1, 1) · (O, I, 1, kH, kW)


def inflate_transposed_kernel(weight: Tensor, taps: int, stride: int, init: str) -> Tensor:
    """Spread the kernel of a transposed convolution over depth.

    A slice of its output is reached by every ``stride``-th tap only; each such phase gets a profile of its own.

    Args:
        weight: (I, O, kH, kW) kernel of a transposed 2D convolution.
        taps: extent T of the new kernel along depth.
        stride: of the transposed convolution along depth.
        init: name of a row of `PROFILES`.

    Returns:
        (I, O, T, kH, kW) kernel; the sum of every phase's taps is ``weight``.

    Raises:
        ConfigError: there is no such profile, or ``taps < stride``, which would leave slices empty.
    """
    if taps < stride:
        raise ConfigError(f"a transposed kernel of {taps} taps cannot fill the slices of stride {stride}")
    profile = torch.zeros(taps, dtype=torch.float64)
    for phase in range(stride):
        profile[phase::stride] = PROFILES[init](len(range(phase, taps, stride)))
    return profile.to(weight)[:, None, None] * weight[:, :, None]  # (T, 1, 1) · (I, O, 1, kH, kW)
