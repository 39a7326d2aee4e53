"""nibabel images ↔ volumes: (i, j, k) on its side, (D, H, W) on ours; both worlds are RAS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medi3d.errors import InputError
from medi3d.io.raw import reverse_axes
from medi3d.volume import Volume

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage


def from_nibabel(image: SpatialImage) -> Volume:
    """Return the volume of a nibabel image with its scaling applied; a fourth axis is the channels.

    Raises:
        InputError: it has other than three axes, or four, or no affine.
    """
    shape = tuple(int(n) for n in image.shape)
    if len(shape) not in (3, 4) or image.affine is None:
        raise InputError(f"expected a nibabel image of 3 or 4 axes with an affine, got shape {shape}")
    array = np.asanyarray(image.dataobj)
    channels = array[..., None] if len(shape) == 3 else array
    return Volume(channels.transpose(3, 2, 1, 0), reverse_axes(np.asarray(image.affine, dtype=np.float64)))


def to_nibabel(volume: Volume) -> SpatialImage:
    """Return a NIfTI-1 image of the same voxels at the same places; several channels become a fourth axis.

    Example:
        >>> to_nibabel(Volume(np.zeros((1, 4, 5, 6), np.float32), np.diag([3.0, 2.0, 1.0, 1.0]))).shape
        (6, 5, 4)
    """
    import nibabel as nib

    array = volume.array.transpose(3, 2, 1, 0)
    image = nib.Nifti1Image(array[..., 0] if volume.num_channels == 1 else array, reverse_axes(volume.affine))
    image.header.set_xyzt_units("mm")
    return image
