"""Feature pyramid decoder: Lin et al. 2017 (arXiv:1612.03144), its branch for segmentation by Kirillov et al. 2019
(arXiv:1901.02446)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import interpolate

from medi3d.models.blocks import ConvBlock, PointConv
from medi3d.models.pyramid import Pyramid, size_at


class FPNDecoder(nn.Module):
    """One width at all levels, top-down sums of 1×1×1 projections, and the sum of all levels at full resolution.

    Args:
        pyramid: what it is built for; the width is that of its coarsest decoded level.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid
        inner = [level for level in pyramid.levels if level > 1]
        width = pyramid.widths[inner[1]] if len(inner) > 1 else pyramid.widths[1]
        widths = {level: width if level == inner[0] else pyramid.widths[level] for level in inner}
        mapped = [level for level in inner if level in pyramid.skips]
        self.laterals = nn.ModuleDict({str(level): PointConv(pyramid.skips[level], width) for level in mapped})
        self.smooth = nn.ModuleDict({str(level): ConvBlock(width, widths[level]) for level in inner})
        self.branches = nn.ModuleDict({str(level): PointConv(widths[level], pyramid.widths[1]) for level in inner})
        self.last = ConvBlock(pyramid.widths[1] * bool(inner) + pyramid.skips[1], pyramid.widths[1])

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Maps of the encoder by level → ``(B, widths[level], …)`` of the decoder by level."""
        current, total = None, None
        decoded: dict[int, Tensor] = {}
        for name, smooth in self.smooth.items():
            level = int(name)
            if current is not None:
                current = _enlarge(current, size_at(level, maps, current))
            if name in self.laterals:
                lateral = self.laterals[name](maps[level])
                current = lateral if current is None else current + lateral
            assert current is not None, "the coarsest level is one of the encoder's"
            decoded[level] = smooth(current)
            branch = self.branches[name](decoded[level])
            total = branch if total is None else _enlarge(total, branch.shape[2:]) + branch
        decoded[1] = self.last(maps[1]) if total is None else self.last(_enlarge(total, maps[1].shape[2:]), maps[1])
        return decoded


def _enlarge(feature: Tensor, size: tuple[int, ...]) -> Tensor:
    return interpolate(feature, size=size, mode="trilinear", align_corners=False)
