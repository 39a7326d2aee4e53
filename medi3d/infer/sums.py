"""Weighted sums of what windows say, held for the planes that windows are still to be added to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medi3d.infer.planes import PlaneBuffer, Storage, take_place
from medi3d.types import IntTriple

_NEVER = -100.0
"""Logit of every label but the background where no window lies."""


class WindowSums:
    """Weighted sums of logits, and the sums of the weights.

    Args:
        shape: ``(num_classes, planes, H, W)`` that are held.
        depth: of the volume.
        weight: ``(d, h, w)`` of a window.
        storage: gives the room.
        device: of the network.
        has_gaps: whether there are voxels in no window.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        depth: int,
        weight: Tensor,
        storage: Storage,
        device: torch.device,
        *,
        has_gaps: bool,
    ) -> None:
        self._logits = PlaneBuffer(shape, storage, device)
        self._weights = PlaneBuffer((1, *shape[1:]), storage, self._logits.tensor.device)
        self._weight = weight[None].to(self._logits.tensor.device)
        self._shape = (depth, *shape[2:])
        self._has_gaps = has_gaps
        self._block: Tensor | None = None
        self._done = 0

    def add(self, logits: Tensor, starts: Sequence[IntTriple]) -> None:
        """Add the logits ``(B, num_classes, d, h, w)`` of windows."""
        for window, start in zip(logits.to(self._weight.device), starts, strict=True):
            depth, rows, columns = (
                slice(max(a, 0), min(a + n, m)) for a, n, m in zip(start, window.shape[1:], self._shape, strict=True)
            )
            d, h, w = (slice(i.start - a, i.stop - a) for i, a in zip((depth, rows, columns), start, strict=True))
            for place, part in self._logits.pieces(depth):
                here = slice(d.start + part.start, d.start + part.stop)
                weight = self._weight[0, here, h, w]
                self._weights.tensor[0, place, rows, columns] += weight
                for channels in self._logits.portions(place.stop - place.start):
                    held = self._logits.tensor[channels, place, rows, columns]
                    held.addcmul_(window[channels, here, h, w], weight)
                    self._logits.rest()

    def finish(self, stop: int, thickness: int) -> Iterator[Tensor]:
        """Yield the blocks of planes that lie before ``stop``, where no window will be added any more.

        The next block takes the place of the one before.
        """
        depth = self._shape[0]
        while self._done < depth and (self._done + thickness <= stop or stop >= depth):
            planes = slice(self._done, min(self._done + thickness, depth))
            yield self._take(planes)
            self._done = planes.stop

    def _take(self, planes: slice) -> Tensor:
        logits = self._logits.tensor
        block = take_place(self._block, (len(logits), planes.stop - planes.start, *logits.shape[2:]), logits.device)
        self._block = block
        for place, part in self._logits.pieces(planes):
            weights = self._weights.tensor[:, place]
            torch.div(logits[:, place], weights, out=block[:, part])
            if self._has_gaps:
                block[:1, part].masked_fill_(weights == 0, 0.0)
                block[1:, part].masked_fill_(weights == 0, _NEVER)
            logits[:, place] = 0
            weights.zero_()
        self._logits.rest()
        return block
