"""What networks say about a prepared volume, plane by plane: windows in the order of D, sums for as long as they last.

A window reaches over a few planes. Those that no further window reaches are divided by their weights, handed on, and
their room is taken by the next, so that sums are held for about the depth of a window and not of the volume. MONAI's
``sliding_window_inference``, with whose result this agrees, holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.infer.copies import Network, predict_copies
from medi3d.infer.layout import cut_window, leave_out_air, window_starts, window_weights
from medi3d.infer.planes import Storage, planes_at_a_time, take_place
from medi3d.infer.sums import WindowSums
from medi3d.types import IntTriple

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@torch.inference_mode()
def predict_logits(model: nn.Module, image: Tensor, task: TaskConfig) -> Tensor:
    """Predict one volume.

    Args:
        model: as for :class:`LogitStream`.
        image: likewise.
        task: likewise, or a classification task.

    Returns:
        ``(num_classes, D, H, W)`` for segmentation, whether the network tells labels or regions; ``(num_classes,)`` for
        classification. Float32, on the host.
    """
    if task.kind == "classification":
        device = next(model.parameters()).device
        return predict_copies(image[None].to(device), lambda x: run_network(model, x, task), task)[0].cpu()
    return _join(LogitStream(model, image, task, Storage()))


def predict_with_classes(model: nn.Module, image: Tensor, task: TaskConfig) -> tuple[Tensor, Tensor]:
    """Predict labels and classes of one volume, with a network that has a second head.

    Returns:
        Logits of the labels ``(num_classes, D, H, W)`` and of the classes ``(classes,)``; float32, on the host.
    """
    stream = LogitStream(model, image, task, Storage(), classify=True)
    return _join(stream), stream.classes


class LogitStream:
    """The logits of one network for one volume.

    Args:
        model: as :func:`medi3d.models.create_model` builds it, in evaluation mode, on the device to use.
        image: ``(C, D, H, W)`` float32, prepared; it may lie in host memory.
        task: a segmentation task; gives window size, overlap, copies, precision, whether air is left out.
        storage: gives room for the sums.
        classify: whether the second head is asked, ``model.classify(x) -> (B, classes)``.

    Attributes:
        shape: ``(D, H, W)`` of the volume.
        thickness: how many planes are best handed on together.
    """

    def __init__(
        self, model: nn.Module, image: Tensor, task: TaskConfig, storage: Storage, *, classify: bool = False
    ) -> None:
        self._model, self._image, self._task, self._storage = model, image, task, storage
        self._device = next(model.parameters()).device
        self.shape: IntTriple = cast(IntTriple, tuple(image.shape[1:]))
        starts = window_starts(self.shape, task.patch_size, task.infer.overlap)
        kept = leave_out_air(image, starts, task.patch_size) if task.infer.skip_air else starts
        self.thickness = planes_at_a_time(task.num_classes, *self.shape[1:])
        self._has_gaps = len(kept) < len(starts)
        step = task.infer.window_batch
        self._batches = [kept[first : first + step] for first in range(0, len(kept), step)]
        self._classify: Network | None = model.classify if classify else None  # type: ignore[assignment]
        self._answers: list[Tensor] = []
        self._says: list[Tensor] = []

    @torch.inference_mode()
    def blocks(self, thickness: int) -> Iterator[Tensor]:
        """Yield the planes from the first to the last, ``(num_classes, thickness, H, W)`` a time, the last maybe less.

        Float32, where the sums lie. It is meant to be run through once; a block is good until the next is asked for.
        """
        weight = window_weights(self._task.patch_size)
        sums: WindowSums | None = None
        for batch in self._batches:
            logits = self._predict(batch)
            if sums is None:  # now the device has what the network takes, and tells what is left
                sums = self._make_room(logits.shape[1], thickness, weight)
            yield from sums.finish(batch[0][0], thickness)
            sums.add(logits, batch)
            del logits
        assert sums is not None
        yield from sums.finish(self.shape[0], thickness)

    @property
    def classes(self) -> Tensor:
        """Logits of the second head, ``(classes,)`` float32 on the host, once all blocks have been handed on.

        The head answers window by window. A window has as much say as it holds foreground that the first head finds
        there: the class is that of the thing segmented, and in training most patches are centred on it. Where no
        foreground is found, all windows have the same say.
        """
        say = torch.cat(self._says)
        say = say if say.any() else torch.ones_like(say)
        return ((say / say.sum()) @ torch.cat(self._answers)).float()

    def _predict(self, starts: Sequence[IntTriple]) -> Tensor:
        windows = torch.stack([cut_window(self._image, start, self._task.patch_size) for start in starts])
        return predict_copies(windows.to(self._device), self._predict_windows, self._task)

    def _predict_windows(self, windows: Tensor) -> Tensor:
        logits = label_logits(run_network(self._model, windows, self._task), self._task)
        if self._classify is not None:
            self._says.append((logits.argmax(1) > 0).flatten(1).sum(1).double().cpu())
            self._answers.append(run_network(self._classify, windows, self._task).double().cpu())
        return logits

    def _make_room(self, channels: int, thickness: int, weight: Tensor) -> WindowSums:
        depth, size = self.shape[0], self._task.patch_size[0]
        first = [max(batch[0][0], 0) // thickness * thickness for batch in self._batches]
        last = [min(batch[-1][0] + size, depth) for batch in self._batches]
        capacity = max(b - a for a, b in zip(first, last, strict=True))
        shape = (channels, capacity, *self.shape[1:])
        return WindowSums(shape, depth, weight, self._storage, self._device, has_gaps=self._has_gaps)


def stream_probabilities(streams: Sequence[LogitStream], thickness: int) -> Iterator[Tensor]:
    """Yield the mean of networks' probabilities, as :meth:`LogitStream.blocks` does, on the host."""
    first, *others = (_probabilities(stream.blocks(thickness)) for stream in streams)
    for total in first:
        for blocks in others:
            total += next(blocks)
        yield total.div_(len(streams)) if others else total


def _probabilities(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    place: Tensor | None = None
    for block in blocks:
        place = take_place(place, tuple(block.shape), block.device)
        yield torch.softmax(block, 0, out=place).cpu()


def join_blocks(blocks: Iterable[Tensor], depth: int) -> Tensor:
    """Put blocks of planes ``(K, d, H, W)`` together on the host, ``(K, depth, H, W)``."""
    whole: Tensor | None = None
    done = 0
    for block in blocks:
        whole = torch.empty((len(block), depth, *block.shape[2:])) if whole is None else whole
        whole[:, done : done + block.shape[1]] = block
        done += block.shape[1]
    assert whole is not None
    assert done == depth
    return whole


def _join(stream: LogitStream) -> Tensor:
    return join_blocks(stream.blocks(stream.thickness), stream.shape[0])


def label_logits(logits: Tensor, task: TaskConfig) -> Tensor:
    """Turn the logits of regions into logits of labels, the sums over the regions that hold a label.

    A label stands for a pattern of regions: in those that hold it, and in no other. With ``p = sigmoid(z)`` the
    probability of each region and regions independent, the log-probability of a pattern ``m`` is ``Σ m·z`` and a term,
    ``-Σ log(1 + exp(z))``, that is the same for every pattern. So the softmax over these sums is the posterior over the
    patterns that some label stands for; the others (a core outside of the whole) are ruled out, and a voxel whose
    regions contradict each other goes to the likeliest pattern that is possible. The background is in no region: 0.

    Args:
        logits: ``(B, out_channels, D, H, W)`` of the network.
        task: a segmentation task.

    Returns:
        ``(B, num_classes, D, H, W)``; the logits themselves where the task has no regions.

    Example:
        >>> from medi3d.config import load_task
        >>> task = load_task("hippocampus", overrides={"data.regions": {"whole": [1, 2], "posterior": [2]}})
        >>> label_logits(torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1, 1), task).flatten().tolist()
        [0.0, 2.0, 1.0]
    """
    if not task.data.regions:
        return logits
    holds = torch.tensor(task.region_matrix, dtype=logits.dtype, device=logits.device)
    return torch.einsum("kr,brdhw->bkdhw", holds, logits)


def run_network(model: Network, windows: Tensor, task: TaskConfig) -> Tensor:
    """Return a network's output in float32, computed in the number format of ``infer.precision``."""
    kind = _PRECISIONS.get(task.infer.precision)
    with nullcontext() if kind is None else torch.autocast(windows.device.type, dtype=kind):
        output: Tensor = model(windows)
    return output.float()
