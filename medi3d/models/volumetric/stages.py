"""A 3D network as a sequence of named steps, some of which end a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn


class Stages(nn.Sequential):
    """Steps that run one after the other; the maps after some of them are the features.

    Args:
        steps: name → module, in their order.
        taps: names of the steps whose outputs are given, finest first; steps after the last one are left out.
    """

    def __init__(self, steps: Mapping[str, nn.Module], taps: Sequence[str]) -> None:
        super().__init__()
        names = list(steps)
        for name in names[: names.index(taps[-1]) + 1]:
            self.add_module(name, steps[name])
        self.taps = tuple(taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(B, C, D, H, W)`` → one map a tap."""
        maps = []
        for name, step in self.named_children():
            x = step(x)
            if name in self.taps:
                maps.append(x)
        return maps

    def cut(self, stages: int) -> Stages:
        """Return the first ``stages`` stages, of the same modules."""
        return Stages(dict(self.named_children()), self.taps[:stages])


Build = Callable[[], Stages]
"""Makes a network with random weights."""


def draw_weights(module: nn.Module) -> None:
    """Draw convolutions as He et al. 2015 (arXiv:1502.01852) do for rectifiers, by their fan-out."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
