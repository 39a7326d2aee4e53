"""A classifier of whole volumes: inflated encoder, averages over the volume, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medi3d.models.encoder import Encoder


def pool_features(features: Sequence[Tensor]) -> Tensor:
    """Average every stage's map over its volume: (B, C_i, d_i, h_i, w_i) → (B, Σ C_i).

    Small cubes end in few voxels at the coarsest stage; the finer stages keep what it has lost.
    """
    return torch.cat([feature.mean((2, 3, 4)) for feature in features], dim=1)


def create_class_head(norm: nn.Module, channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Create the layers from pooled features (B, channels) to logits (B, num_classes)."""
    return nn.Sequential(norm, nn.Dropout(dropout), nn.Linear(channels, num_classes))


class Classifier(nn.Module):
    """Classification network on the averages of every stage's feature map.

    Args:
        encoder: gives the feature maps.
        num_classes: number of classes.
        dropout: probability of dropping a pooled feature.
    """

    def __init__(self, encoder: Encoder, *, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        channels = sum(encoder.channels)
        self.head = create_class_head(nn.BatchNorm1d(channels), channels, num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Volume ``(B, C, D, H, W)`` → logits ``(B, num_classes)``."""
        logits: Tensor = self.head(pool_features(self.encoder(x)))
        return logits
