"""A made-up chest CT of 512×512×300 int16 voxels at 0.7×0.7×1.25 mm, with lungs (1), liver (2), nodules (3).

    python benchmarks/ct_phantom.py FOLDER [SLICES]

Deterministic. Body, fat, ribs, spine, aorta, lungs with vessels, liver and table, in noise with the grain of a soft
kernel, inside the scanner's circle; so gzip makes of it about what it makes of a patient (157 → 76 MB). SimpleITK
writes the files.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

SHAPE = (300, 512, 512)
SPACING_MM = (1.25, 0.7, 0.7)

_OUTSIDE, _AIR, _LUNG, _FAT, _MUSCLE, _LIVER, _AORTA, _BONE, _TABLE = -1024, -1000, -860, -95, 50, 110, 240, 500, -550
_NOISE_HU, _GRAIN_VOXELS = 28.0, 0.6
_LUNGS_MM = ((-82.0, -5.0, 210.0, 62.0, 82.0, 135.0), (82.0, -5.0, 210.0, 58.0, 80.0, 130.0))
_LIVER_MM = (-55.0, 5.0, 45.0, 90.0, 75.0, 60.0)
"""Ellipsoids: centre (x, y, z) and half axes (x, y, z), in millimetres from the middle of the lowest slice."""

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Tubes:
    """Straight cylinders, as vessels: a point, a unit direction and a radius each, ``(n, 3)``, ``(n, 3)``, ``(n,)``."""

    points: NDArray[np.float64]
    directions: NDArray[np.float64]
    radii: NDArray[np.float64]


def draw_ct(folder: Path, *, slices: int = SHAPE[0]) -> tuple[Path, Path]:
    """Write ``ct.nii.gz`` and ``label.nii.gz`` and return their paths.

    Args:
        folder: where to.
        slices: how many of the 300 slices to draw, from the lowest.
    """
    rng = np.random.default_rng(0)
    vessels, nodules = _draw_vessels(rng), _draw_nodules(rng)
    image = np.empty((slices, *SHAPE[1:]), np.int16)
    label = np.empty(image.shape, np.uint8)
    for index in range(slices):
        hounsfield, label[index] = _draw_slice(index * SPACING_MM[0], vessels, nodules)
        grain = gaussian_filter(rng.standard_normal(SHAPE[1:], dtype=np.float32), _GRAIN_VOXELS)
        hounsfield += grain * (_NOISE_HU / grain.std())
        hounsfield[_beyond_circle()] = _OUTSIDE
        image[index] = np.clip(np.rint(hounsfield), _OUTSIDE, 3071)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "ct.nii.gz", folder / "label.nii.gz"
    for array, path in zip((image, label), paths, strict=True):
        picture = sitk.GetImageFromArray(array)
        picture.SetSpacing(SPACING_MM[::-1])
        picture.SetOrigin((-180.0, -180.0, -400.0))
        sitk.WriteImage(picture, str(path))
    return paths


def _coordinates_mm() -> tuple[Plane, Plane]:
    """Return x, ``(1, W)``, and y, ``(H, 1)``, from the middle of the slice."""
    x, y = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(0.7) for n in SHAPE[:0:-1])
    return x[None, :], y[:, None]


def _beyond_circle() -> NDArray[np.bool_]:
    x, y = _coordinates_mm()
    return np.asarray(np.hypot(x, y) > 178)


def _ellipse(half_x: float, half_y: float, *, x0: float = 0.0, y0: float = 0.0) -> Plane:
    """Return the squared distance from a centre in half axes: below 1 is inside."""
    x, y = _coordinates_mm()
    return ((x - np.float32(x0)) / np.float32(half_x)) ** 2 + ((y - np.float32(y0)) / np.float32(half_y)) ** 2


def _ellipsoid(z: float, x0: float, y0: float, z0: float, a: float, b: float, c: float) -> NDArray[np.bool_]:
    return np.asarray(_ellipse(a, b, x0=x0, y0=y0) + ((z - z0) / c) ** 2 < 1)


def _draw_slice(z: float, vessels: Tubes, nodules: NDArray[np.float64]) -> tuple[Plane, NDArray[np.uint8]]:
    """Return Hounsfield units without noise and the label of the slice at height ``z`` (mm)."""
    plane = np.full(SHAPE[1:], _AIR, np.float32)
    label = np.zeros(SHAPE[1:], np.uint8)
    x, y = _coordinates_mm()
    plane[(abs(y - 128) < 3) & (abs(x) < 160)] = _TABLE
    plane[_ellipse(165, 118) < 1] = _FAT
    chest = _ellipse(152, 105)
    plane[chest < 1] = _MUSCLE
    ribs = (chest > 0.82) & (chest < 0.96) & (np.sin((z + 0.35 * y) * 2 * np.pi / 24) > 0.3)
    plane[ribs] = _BONE
    plane[_ellipse(19, 16, y0=72) < 1] = _BONE - 250 * (np.cos(z * 2 * np.pi / 30) > 0.8)
    liver = _ellipsoid(z, *_LIVER_MM) & (chest < 0.8)
    plane[liver], label[liver] = _LIVER, 2
    lung = (_ellipsoid(z, *_LUNGS_MM[0]) | _ellipsoid(z, *_LUNGS_MM[1])) & ~liver & (chest < 0.8)
    plane[lung], label[lung] = _LUNG, 1
    plane[_ellipse(13, 13, x0=12, y0=48) < 1] = _AORTA
    plane[_cut_tubes(z, vessels) & lung] = _MUSCLE
    for x0, y0, z0, radius in nodules:
        nodule = _ellipsoid(z, x0, y0, z0, radius, radius, radius)
        plane[nodule], label[nodule] = 20, 3
    return gaussian_filter(plane, 0.7), label


def _cut_tubes(z: float, tubes: Tubes) -> NDArray[np.bool_]:
    """Return where a plane at height ``z`` cuts the tubes, drawn in a small window each."""
    found = np.zeros(SHAPE[1:], bool)
    x, y = _coordinates_mm()
    steps = (z - tubes.points[:, 2]) / tubes.directions[:, 2]
    centers = tubes.points[:, :2] + steps[:, None] * tubes.directions[:, :2]
    for center, direction, radius in zip(centers, tubes.directions, tubes.radii, strict=True):
        reach = radius / abs(direction[2])
        columns = slice(*np.searchsorted(x[0], [center[0] - reach, center[0] + reach]))
        rows = slice(*np.searchsorted(y[:, 0], [center[1] - reach, center[1] + reach]))
        dx, dy = x[:, columns] - center[0], y[rows] - center[1]
        along = dx * direction[0] + dy * direction[1]
        found[rows, columns] |= dx**2 + dy**2 - along**2 < radius**2
    return found


def _draw_vessels(rng: np.random.Generator, count: int = 160) -> Tubes:
    points = np.column_stack([rng.uniform(-140, 140, count), rng.uniform(-80, 75, count), rng.uniform(80, 340, count)])
    directions = rng.normal(size=(count, 3)) * (1, 1, 1.5)
    directions[:, 2] += np.copysign(0.3, directions[:, 2])
    return Tubes(points, directions / np.linalg.norm(directions, axis=1, keepdims=True), rng.uniform(0.7, 3, count))


def _draw_nodules(rng: np.random.Generator, count: int = 6) -> NDArray[np.float64]:
    """Return rows ``(x, y, z, radius)``, in millimetres, inside the lungs."""
    side = np.where(np.arange(count) % 2, 82.0, -82.0)
    return np.column_stack(
        [
            side + rng.uniform(-25, 25, count),
            rng.uniform(-40, 30, count),
            rng.uniform(150, 290, count),
            rng.uniform(2.5, 11, count),
        ]
    )


if __name__ == "__main__":
    print(*draw_ct(Path(sys.argv[1]), slices=int(sys.argv[2]) if len(sys.argv) > 2 else SHAPE[0]), sep="\n")
