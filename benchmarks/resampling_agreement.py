"""How far medi3d's resampling agrees with SimpleITK called by hand, with MONAI and with TorchIO.

    python benchmarks/resampling_agreement.py [--data ../shared/data]

First table: every tool onto medi3d's own grid (SimpleITK's Resample, MONAI's SpatialResample, TorchIO's Resample with a
target), without anti-aliasing, so that the interpolation alone is compared; and what medi3d's anti-aliasing changes.
Second table: what each tool does by itself when asked for a spacing (MONAI's Spacing, TorchIO's Resample), against
medi3d on that very grid, and how far that grid lies from medi3d's. Inner voxels lie a native voxel or more inside the
outermost centres, rim voxels further out, up to half a voxel beyond them. Differences are in the image's own units.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
import torchio as tio
from ct_phantom import draw_ct
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Spacing, SpatialResample

from medi3d import io
from medi3d.preprocess.resampling.resample import ImageResampler, isotropic_grid
from medi3d.volume import Grid, Volume

Voxels = npt.NDArray[np.float32]
MODES = {"linear": (sitk.sitkLinear, "bilinear", "linear"), "bspline": (sitk.sitkBSpline, 3, "bspline")}
"""Interpolation → SimpleITK's, MONAI's and TorchIO's name for it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data
    volumes = list(read_volumes(data))
    print("| image | range | interpolation | tool | inner: largest | mean | rim: largest | mean |")
    print("|---|---|---|---|---|---|---|---|")
    for name, volume, spacing in volumes:
        target = isotropic_grid(volume.grid, (spacing, spacing, spacing))
        for interpolation in MODES:
            ours = resample(volume, target, interpolation, smoothing=0.0)
            smoothed = "medi3d, anti-aliased", resample(volume, target, interpolation, smoothing=1.0)
            for tool, theirs in (*on_our_grid(volume, target, interpolation), smoothed):
                row = " | ".join(f"{value:.2g}" for value in differences(ours, theirs, volume.grid, target))
                print(f"| {name} | {np.ptp(volume.array):.0f} | {interpolation} | {tool} | {row} |")
    print(
        "\n| image | tool | shape | centre is off by | inner: largest | mean | rim: largest | mean | medi3d's shape |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, volume, spacing in volumes:
        own = isotropic_grid(volume.grid, (spacing, spacing, spacing))
        for tool, theirs, grid in on_their_grid(volume, spacing):
            shift = np.linalg.norm(center(grid) - center(volume.grid))
            ours = resample(volume, grid, "linear", smoothing=0.0)
            row = " | ".join(f"{value:.2g}" for value in differences(ours, theirs, volume.grid, grid))
            print(f"| {name} | {tool} | {grid.shape} | {shift:.2f} mm | {row} | {own.shape} |")


def read_volumes(data: Path) -> Iterator[tuple[str, Volume, float]]:
    """Yield name, volume and new spacing."""
    hippocampus = min((data / "hippocampus/imagesTr").glob("*.nii.gz"))
    yield "hippocampus MR, 1 → 0.7 mm", io.read_volume(hippocampus), 0.7
    tumour = min((data / "brain_tumor").rglob("Flair*.nii.gz"))
    yield "brain MR, 1 → 1.5 mm", io.read_volume(tumour), 1.5
    yield "oblique MR, 0.69 × 0.69 × 6.5 → 1 mm", io.read_volume(data / "dicom/mr_t1_oblique"), 1.0
    nodule = min((data / "lung_nodule/images").glob("*.nii.gz"))
    yield "lung nodule CT → 1 mm", io.read_volume(nodule), 1.0
    with tempfile.TemporaryDirectory() as folder:
        path, _ = draw_ct(Path(folder), slices=60)
        yield "made-up CT, 0.7 × 0.7 × 1.25 → 1 mm", io.read_volume(path), 1.0


def resample(volume: Volume, target: Grid, interpolation: str, *, smoothing: float) -> Voxels:
    slabs = ImageResampler(
        volume.array, volume.grid, target, interpolation=interpolation, padding=None, smoothing=smoothing
    )
    return slabs.slab(0, target.shape[0])[0]


def on_our_grid(volume: Volume, target: Grid, interpolation: str) -> Iterator[tuple[str, Voxels]]:
    """Yield each tool's voxels on ``target``."""
    itk, monai, torchio = MODES[interpolation]
    blank = Volume(np.zeros((1, *target.shape), np.float32), target.affine)
    by_hand = sitk.Resample(io.to_sitk(volume), io.to_sitk(blank), sitk.Transform(), itk)
    yield "SimpleITK", sitk.GetArrayFromImage(by_hand)
    resampler = SpatialResample(
        mode=monai, padding_mode="border" if monai == "bilinear" else "mirror", dtype=np.float64
    )
    there = resampler(meta_tensor(volume), dst_affine=torch.tensor(target.affine), spatial_size=target.shape)
    yield "MONAI", there[0].numpy().astype(np.float32)
    there = tio.Resample(target=subject(blank), image_interpolation=torchio)(subject(volume))
    yield "TorchIO", there.data[0].numpy()


def on_their_grid(volume: Volume, spacing: float) -> Iterator[tuple[str, Voxels, Grid]]:
    """Yield the voxels and the grid of each tool that is asked for a spacing and nothing else."""
    there = Spacing(pixdim=(spacing,) * 3, dtype=np.float64)(meta_tensor(volume))
    yield "MONAI", there[0].numpy().astype(np.float32), Grid(there.shape[1:], there.affine.numpy())
    there = tio.Resample(spacing)(subject(volume))
    yield "TorchIO", there.data[0].numpy(), Grid(there.spatial_shape, there.affine)


def meta_tensor(volume: Volume) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(volume.array)), affine=torch.tensor(volume.affine))


def subject(volume: Volume) -> tio.ScalarImage:
    return tio.ScalarImage(tensor=torch.from_numpy(np.ascontiguousarray(volume.array)), affine=volume.affine)


def center(grid: Grid) -> npt.NDArray[np.float64]:
    return np.asarray(grid.index_to_world((np.asarray(grid.shape) - 1) / 2))


def differences(ours: Voxels, theirs: Voxels, source: Grid, target: Grid) -> list[float]:
    """Return largest and mean absolute difference of the inner voxels, then of the rim's."""
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), axis=-1)
    at = source.world_to_index(target.index_to_world(index))
    last = np.asarray(source.shape) - 1
    inner = ((at >= 1) & (at <= last - 1)).all(axis=-1)
    rim = ((at > -0.499) & (at < last + 0.499)).all(axis=-1) & ~inner
    apart = np.abs(ours - theirs)
    return [float(value) for part in (inner, rim) for value in (apart[part].max(initial=0), apart[part].mean())]


if __name__ == "__main__":
    main()
