"""timm's 2D networks written with plain nn.Conv3d, the way a port to 3D is written by hand: what inflation is timed by.

Every layer becomes its 3D namesake, with random weights and zero padding, on 5-D tensors throughout.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn


class LayerNorm3d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.permute(0, 2, 3, 4, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return last.permute(0, 4, 1, 2, 3)


class ConvNeXtBlock3d(nn.Module):
    """timm's ConvNeXt block with (B, C, D, H, W) → (B, D, H, W, C) for its norm and MLP, and back."""

    def __init__(self, block: ConvNeXtBlock) -> None:
        super().__init__()
        self.conv_dw = swap_layer(block.conv_dw)
        self.norm, self.mlp, self.gamma = block.norm, block.mlp, block.gamma

    def forward(self, x: Tensor) -> Tensor:
        branch = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 4, 1))) * self.gamma
        return x + branch.permute(0, 4, 1, 2, 3)


def swap_layers(module: nn.Module) -> nn.Module:
    """Replace every 2D layer below a module by its plain 3D namesake."""
    for name, child in module.named_children():
        setattr(module, name, swap_layer(child))
    return module


def swap_layer(layer: nn.Module) -> nn.Module:
    """Return the plain 3D namesake of a 2D layer; other layers with theirs inside."""
    if isinstance(layer, ConvNeXtBlock):
        return ConvNeXtBlock3d(layer)
    if isinstance(layer, LayerNorm2d):
        return LayerNorm3d(layer.normalized_shape, layer.eps)
    if isinstance(layer, nn.Conv2d):
        size, stride = layer.kernel_size[0], layer.stride[0]
        padding = 0 if size == stride else (size - 1) // 2  # patches have none
        return nn.Conv3d(
            *(layer.in_channels, layer.out_channels, size, stride, padding),
            groups=layer.groups,
            bias=layer.bias is not None,
        )
    if isinstance(layer, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(layer.num_features)
        return nn.Sequential(norm, layer.act) if hasattr(layer, "act") else norm
    if isinstance(layer, nn.MaxPool2d):
        return nn.MaxPool3d(layer.kernel_size, layer.stride, layer.padding)
    return swap_layers(layer)
