"""How a network's training turned its volumes, where that differs from the order here."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medi3d.types import IntTriple

_AXES = "DHW"


@dataclass(frozen=True)
class Orientation:
    """The network's own D, H and W as axes of volumes here.

    Args:
        axes: ``("D", "-W", "-H")`` is a network whose rows run along W from its end, and whose columns along H.
    """

    axes: tuple[str, str, str]

    @property
    def _order(self) -> list[int]:
        return [_AXES.index(axis[-1]) for axis in self.axes]

    @property
    def _flipped(self) -> list[int]:
        return [place + 2 for place, axis in enumerate(self.axes) if axis.startswith("-")]

    def turn(self, volume: Tensor) -> Tensor:
        """Turn a volume ``(B, C, D, H, W)`` to how the network saw it."""
        turned = volume.permute(0, 1, *(axis + 2 for axis in self._order))
        return turned.flip(self._flipped) if self._flipped else turned

    def turn_back(self, feature: Tensor) -> Tensor:
        """Undo `turn` on a map ``(B, C, d, h, w)``."""
        unflipped = feature.flip(self._flipped) if self._flipped else feature
        return unflipped.permute(0, 1, *(self._order.index(axis) + 2 for axis in range(3)))

    def turn_back_strides(self, strides: IntTriple) -> IntTriple:
        """Return strides along the network's axes as strides along D, H and W here."""
        depth, height, width = (strides[self._order.index(axis)] for axis in range(3))
        return depth, height, width
