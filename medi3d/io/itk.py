"""SimpleITK ↔ volumes: (x, y, z) and LPS on its side, (D, H, W) and RAS on ours.

SimpleITK is imported when an image passes (0.05 s): most cases are prepared without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medi3d.errors import InputError
from medi3d.io.raw import LPS_TO_RAS, reverse_axes
from medi3d.types import Array
from medi3d.volume import Affine, Grid, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk


def to_sitk(volume: Volume) -> sitk.Image:
    """Return a SimpleITK image of the same voxels at the same places; several channels become a vector image.

    Example:
        >>> to_sitk(Volume(np.zeros((1, 4, 5, 6), np.float32), np.diag([3.0, 2.0, 1.0, 1.0]))).GetSize()
        (6, 5, 4)
    """
    return array_to_sitk(volume.array, volume.grid)


def array_to_sitk(array: Array, grid: Grid) -> sitk.Image:
    """Return a SimpleITK image of an array ``(C, D, H, W)`` that lies on ``grid``."""
    import SimpleITK as sitk

    vector = array.shape[0] > 1
    image = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if vector else array[0], isVector=vector)
    set_sitk_grid(image, grid)
    return image


def set_sitk_grid(target: sitk.Image | sitk.ResampleImageFilter, grid: Grid) -> None:
    """Give an image, or the output of a resampling filter, the geometry of ``grid``."""
    import SimpleITK as sitk

    affine = LPS_TO_RAS @ reverse_axes(grid.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    prefix = "SetOutput" if isinstance(target, sitk.ResampleImageFilter) else "Set"
    getattr(target, f"{prefix}Origin")(affine[:3, 3].tolist())
    getattr(target, f"{prefix}Spacing")(spacing.tolist())
    getattr(target, f"{prefix}Direction")((affine[:3, :3] / spacing).ravel().tolist())


def from_sitk(image: sitk.Image) -> Volume:
    """Return the volume of a 3-D SimpleITK image, of the image's own type.

    Raises:
        InputError: the image is not 3-D.
    """
    import SimpleITK as sitk

    if image.GetDimension() != 3:
        raise InputError(f"expected a 3-D image, got {image.GetDimension()}-D of size {image.GetSize()}")
    array = sitk.GetArrayFromImage(image)
    channels_first = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
    return Volume(channels_first, sitk_affine(image))


def sitk_affine(image: sitk.Image) -> Affine:
    """Return the 4×4 ``(d, h, w)`` index → RAS affine of a 3-D SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return reverse_axes(LPS_TO_RAS @ affine)
