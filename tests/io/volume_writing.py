"""Small volumes and damaged headers that the tests of several formats write."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

SHAPE = (3, 4, 5)
"""(D, H, W)."""


def ramp(shape: tuple[int, ...] = SHAPE, dtype: str = "<i2") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def itk_image(array: np.ndarray, vector: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((1.0, 2.0, -3.0))
    image.SetDirection((0.6, -0.8, 0.0, 0.8, 0.6, 0.0, 0.0, 0.0, -1.0))
    return image


def change_header(path: Path, **changes: object) -> None:
    """Write header fields as they are, without nibabel's mending."""
    content = path.read_bytes()
    kind = nib.Nifti1Header if content[344:346] in (b"n+", b"ni") else nib.Nifti2Header
    header = kind(content[: kind.sizeof_hdr], check=False)
    for name, value in changes.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[kind.sizeof_hdr :])
