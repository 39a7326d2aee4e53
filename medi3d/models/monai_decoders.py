"""MONAI's decoder blocks on any encoder: BasicUNet's, and those of UNETR and SwinUNETR.

MONAI is imported when one of its decoders is made: that takes as long as torch itself, and predictions wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from medi3d.errors import ConfigError
from medi3d.models.pyramid import Pyramid


class BasicUNetDecoder(nn.ModuleDict):
    """BasicUNet's blocks: a transposed convolution that doubles, the skip, two convolutions.

    Args:
        pyramid: what it is built for; each level must double the one before it along all axes.

    Raises:
        ConfigError: some level does not.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        from monai.networks.nets.basic_unet import UpCat

        super().__init__()
        self.pyramid = pyramid
        for coarse, fine in pairwise(pyramid.levels):
            if pyramid.ratio(fine) != (2, 2, 2):
                raise ConfigError(
                    f"model.decoder monai/basic_unet doubles every axis from level to level; the encoder's strides are "
                    f"{pyramid.strides[coarse]} and {pyramid.strides[fine]}: take monai/unetr, unet, fpn or unetpp"
                )
            self[str(fine)] = UpCat(
                spatial_dims=3,
                in_chns=pyramid.widths[coarse],
                cat_chns=pyramid.skips.get(fine, 0),
                out_chns=pyramid.widths[fine],
                act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
                norm=("instance", {"affine": True}),
                bias=True,
                halves=False,
            )

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Maps of the encoder by level, of a volume of multiples of its strides → the decoder's by level."""
        current = maps[self.pyramid.levels[0]]
        decoded = {self.pyramid.levels[0]: current}
        for level, block in self.items():
            current = decoded[int(level)] = block(current, maps.get(int(level)))
        return decoded


class UnetrDecoder(nn.Module):
    """SwinUNETR's blocks: a residual block on each skip, a transposed convolution, a residual block on both.

    After Hatamizadeh et al. 2022, arXiv:2201.01266. A level that the encoder has no map for is enlarged alone.

    Args:
        pyramid: what it is built for.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock

        super().__init__()
        self.pyramid = pyramid
        self.skips, self.blocks = nn.ModuleDict(), nn.ModuleDict()
        for coarse, fine in pairwise(pyramid.levels):
            width, ratio = pyramid.widths[fine], pyramid.ratio(fine)
            if fine in pyramid.skips:
                self.skips[str(fine)] = UnetrBasicBlock(3, pyramid.skips[fine], width, 3, 1, "instance", res_block=True)
                self.blocks[str(fine)] = UnetrUpBlock(
                    3, pyramid.widths[coarse], width, 3, ratio, "instance", res_block=True
                )
            else:
                self.blocks[str(fine)] = nn.ConvTranspose3d(pyramid.widths[coarse], width, ratio, ratio, bias=False)

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Maps of the encoder by level, of a volume of multiples of its strides → the decoder's by level."""
        current = maps[self.pyramid.levels[0]]
        decoded = {self.pyramid.levels[0]: current}
        for level, block in self.blocks.items():
            skip = (self.skips[level](maps[int(level)]),) if level in self.skips else ()
            current = decoded[int(level)] = block(current, *skip)
        return decoded
