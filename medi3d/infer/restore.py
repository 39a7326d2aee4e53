"""Back to the scanner's grid: the recorded preprocessing, undone."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from medi3d.io.record import Record
from medi3d.preprocess.resample import resample_to
from medi3d.types import Array
from medi3d.volume import LabelMap, Volume


def restore_labels(probabilities: Tensor, record: Record) -> LabelMap:
    """Turn class probabilities on the prepared grid into a label map on the native one.

    Classes are interpolated one after the other with a running arg-max, so that memory on the native grid does not grow
    with their number. What preprocessing cropped away is background.

    Args:
        probabilities: ``(num_classes, D, H, W)`` on the prepared grid.
        record: what preprocessing did.

    Returns:
        uint8 (uint16 above 256 classes) label map with the native shape and affine.
    """
    native = record.native
    labels = np.zeros(native.shape, dtype=np.uint8 if len(probabilities) <= 256 else np.uint16)
    highest: Array | None = None
    for value, plane in enumerate(probabilities):
        volume = Volume(plane[None].numpy(), record.prepared.affine)
        here = resample_to(volume, native, interpolation="linear", fill=float(value == 0)).array[0]
        if highest is None:
            highest = here
            continue
        higher = here > highest
        labels[higher] = value
        highest[higher] = here[higher]
    return LabelMap(labels[None], native.affine)
