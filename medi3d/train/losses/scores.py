"""Logits as probabilities: of labels that exclude each other, or of regions that do not."""

from __future__ import annotations

from functools import cached_property

import torch.nn.functional as F
from torch import Tensor


class Scores:
    """Probabilities (B, K, …) and their logarithms, each computed once for all terms.

    Args:
        logits: (B, K, …).
        independent: whether the outputs are independent, so that each gets a sigmoid; else a softmax over all.
    """

    def __init__(self, logits: Tensor, *, independent: bool) -> None:
        self.logits = logits.float()
        self.independent = independent

    @cached_property
    def log_yes(self) -> Tensor:
        """log p."""
        return F.logsigmoid(self.logits) if self.independent else F.log_softmax(self.logits, 1)

    @cached_property
    def log_no(self) -> Tensor:
        """log (1 − p) of independent outputs."""
        return F.logsigmoid(-self.logits)

    @cached_property
    def yes(self) -> Tensor:
        """p."""
        return self.log_yes.exp()
