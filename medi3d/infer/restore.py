"""Back to the scanner's grid: the recorded preprocessing, undone."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from medi3d.io.record import Record
from medi3d.preprocess.resampling.resample import ImageResampler
from medi3d.volume import LabelMap

_PLANES = 32
"""Native slices that are restored at a time."""


def restore_labels(probabilities: Tensor, record: Record) -> LabelMap:
    """Turn class probabilities on the prepared grid into a label map on the native one.

    Classes are interpolated one after the other with a running arg-max, some slices at a time: memory beside the label
    map grows neither with their number nor with the native depth. What preprocessing cropped away is background.

    Args:
        probabilities: ``(num_classes, D, H, W)`` on the prepared grid.
        record: what preprocessing did.

    Returns:
        uint8 (uint16 above 256 classes) label map with the native shape and affine.
    """
    native = record.native
    labels = np.zeros((1, *native.shape), dtype=np.uint8 if len(probabilities) <= 256 else np.uint16)
    classes = [
        ImageResampler(plane[None].numpy(), record.prepared, native, padding=None, fill=float(value == 0))
        for value, plane in enumerate(probabilities)
    ]
    for start in range(0, native.shape[0], _PLANES):
        stop = min(start + _PLANES, native.shape[0])
        highest = classes[0].channel_slab(0, start, stop)
        for value, resampler in enumerate(classes[1:], start=1):
            here = resampler.channel_slab(0, start, stop)
            higher = here > highest
            np.copyto(labels[0, start:stop], value, where=higher)
            np.copyto(highest, here, where=higher)
    return LabelMap(labels, native.affine)
