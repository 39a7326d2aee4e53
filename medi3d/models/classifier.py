"""A classifier of whole volumes: inflated encoder, global average over the volume, one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medi3d.models.encoder import Encoder


class Classifier(nn.Module):
    """Classification network on the averages of every stage's feature map.

    Small cubes end in few voxels at the coarsest stage; the finer stages keep what it has lost.

    Args:
        encoder: gives the feature maps.
        num_classes: number of classes.
        dropout: probability of dropping a pooled feature.
    """

    def __init__(self, encoder: Encoder, *, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.BatchNorm1d(sum(encoder.channels)), nn.Dropout(dropout), nn.Linear(sum(encoder.channels), num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Volume ``(B, C, D, H, W)`` → logits ``(B, num_classes)``."""
        pooled = torch.cat([feature.mean((2, 3, 4)) for feature in self.encoder(x)], dim=1)
        logits: Tensor = self.head(pooled)
        return logits
