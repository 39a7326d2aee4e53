"""One tool reads a CT, resamples it to 1 mm and writes it as int16 ``.nii.gz``: what ``preprocess_speed.py`` times.

    python benchmarks/resample_tools.py TOOL INPUT OUTPUT

Prints the CPU seconds of the process after its imports and at its end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

Work = Callable[[Path, Path], None]


def medi3d() -> Work:
    import numpy as np

    from medi3d import io
    from medi3d.preprocess import isotropic_grid, resample_to
    from medi3d.volume import Volume

    def work(source: Path, target: Path) -> None:
        volume = io.read_volume(source, dtype=None)
        resampled = resample_to(volume, isotropic_grid(volume.grid, (1.0, 1.0, 1.0)))
        io.write_volume(Volume(np.rint(resampled.array).astype(np.int16), resampled.affine), target)

    return work


def monai() -> Work:
    import numpy as np
    from monai.transforms import LoadImage, SaveImage, Spacing

    def work(source: Path, target: Path) -> None:
        resampled = Spacing(pixdim=1.0)(LoadImage(ensure_channel_first=True)(source))
        save = SaveImage(output_dir=target.parent, separate_folder=False, output_dtype=np.int16, print_log=False)
        save(resampled, filename=str(target).removesuffix(".nii.gz"))

    return work


def torchio() -> Work:
    import torch
    import torchio as tio

    def work(source: Path, target: Path) -> None:
        resampled = tio.Resample(1)(tio.ScalarImage(source))
        resampled.set_data(resampled.data.to(torch.int16))
        resampled.save(target)

    return work


def simpleitk() -> Work:
    import SimpleITK as sitk

    def work(source: Path, target: Path) -> None:
        image = sitk.ReadImage(str(source))
        size = [round(n * spacing) for n, spacing in zip(image.GetSize(), image.GetSpacing(), strict=True)]
        grid = image.GetOrigin(), (1.0, 1.0, 1.0), image.GetDirection()
        sitk.WriteImage(sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, *grid), str(target))

    return work


TOOLS: dict[str, Callable[[], Work]] = {
    "medi3d": medi3d,
    "MONAI Spacing": monai,
    "TorchIO Resample": torchio,
    "SimpleITK linear": simpleitk,
}
"""Name → function that imports the tool and returns its work."""


def main(tool: str, source: str, target: str) -> None:
    """Import one tool, do its work, print the CPU seconds spent until then."""
    work = TOOLS[tool]()
    imported = time.process_time()
    work(Path(source), Path(target))
    print(imported, time.process_time())


if __name__ == "__main__":
    main(*sys.argv[1:])
