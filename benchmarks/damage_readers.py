"""How each library reads a case: what ``silent_damage.py`` starts, one process a reading.

    python benchmarks/damage_readers.py TOOL IMAGE LABEL RESULT

Writes the image's voxels, in nibabel's axes, and the affine (RAS) to ``RESULT``, an ``.npz`` file. TorchIO and MONAI
read image and label together and resample both to 1 mm, as a training pipeline does; SimpleITK and nibabel read files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Reading = tuple[NDArray[np.float32], NDArray[np.float64]]


def read_simpleitk(image: str, label: str) -> Reading:
    import SimpleITK as sitk

    picture = sitk.ReadImage(image)
    sitk.ReadImage(label)
    affine = np.eye(4)
    affine[:3, :3] = np.array(picture.GetDirection()).reshape(3, 3) * picture.GetSpacing()
    affine[:3, 3] = picture.GetOrigin()
    return sitk.GetArrayFromImage(picture).T, np.diag([-1.0, -1, 1, 1]) @ affine


def read_nibabel(image: str, label: str) -> Reading:
    import nibabel as nib

    nib.load(label).get_fdata()
    picture = nib.load(image)
    return picture.get_fdata(dtype=np.float32), picture.affine


def read_torchio(image: str, label: str) -> Reading:
    import torchio as tio

    subject = tio.Subject(image=tio.ScalarImage(image), label=tio.LabelMap(label))
    tio.Compose([tio.ToCanonical(), tio.Resample(1)])(subject)
    picture = tio.ScalarImage(image)
    return picture.numpy()[0], picture.affine


def read_monai(image: str, label: str) -> Reading:
    from monai.transforms import Compose, LoadImage, LoadImaged, Orientationd, Spacingd

    keys = ["image", "label"]
    steps = [
        LoadImaged(keys, ensure_channel_first=True),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=1.0, mode=("bilinear", "nearest")),
    ]
    Compose(steps)({"image": image, "label": label})
    picture = LoadImage()(image)
    return picture.numpy(), picture.affine.numpy()


READERS: dict[str, tuple[str, Callable[[str, str], Reading]]] = {
    "SimpleITK": ("SimpleITK", read_simpleitk),
    "nibabel": ("nibabel", read_nibabel),
    "TorchIO": ("torchio", read_torchio),
    "MONAI": ("monai", read_monai),
}
"""Tool → its package and how it reads an image and its label."""


def main(tool: str, image: str, label: str, result: str) -> None:
    """Read a case with a tool and write what it handed on."""
    voxels, affine = READERS[tool][1](image, label)
    np.savez(result, voxels=voxels, affine=affine)


if __name__ == "__main__":
    main(*sys.argv[1:])
