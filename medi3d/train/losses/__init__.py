"""Losses: a table of names, each a sum of terms that are functions of sums over annotated voxels.

Because only sums are looked at, they are added up over all processes of a run, and a batch that is shared out gives
the loss and the gradients of the whole one.
"""

from medi3d.train.losses.loss import Batch, Loss
from medi3d.train.losses.table import LOSSES, create_loss

__all__ = ["LOSSES", "Batch", "Loss", "create_loss"]
