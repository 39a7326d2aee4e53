"""What a network gives in training, where that is more than the logits of its prediction."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """Logits of several resolutions, and of a second head.

    In evaluation mode a network gives one tensor, its prediction.

    Attributes:
        logits: ``(B, out_channels, D, H, W)``, finest first; the coarser ones are smaller.
        classes: ``(B, K)`` of the head on ``data.classes``, where the task has both label maps and classes.
    """

    logits: tuple[Tensor, ...]
    classes: Tensor | None = None
