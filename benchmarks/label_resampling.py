"""Which way of resampling label maps keeps them best: nearest neighbour, or linear shares and arg-max, smoothed or not.

    python benchmarks/label_resampling.py [--data ../shared/data]

Every label map goes to the prepared spacing and back to its own grid. Dice compares it with what it was; the volume is
the prepared map's over the native one's; pieces are the connected components (26 neighbours) of the prepared map for
each of the native one; lost counts labels of which no voxel is left on the prepared grid. Real masks: hippocampus,
lung nodules, brain tumours. Synthetic ones, at random tilts: sheets and vessels one and two voxels thick. Volume and
pieces are means over the labels; a volume of 0 counts, pieces of lost labels do not.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import label as find_components

from medi3d import io
from medi3d.preprocess.orient import reorient
from medi3d.preprocess.resampling.labels import LabelResampler
from medi3d.preprocess.resampling.resample import isotropic_grid
from medi3d.volume import Grid, LabelMap

METHODS: dict[str, dict[str, object]] = {
    "nearest": {"interpolation": "nearest"},
    "linear": {"smoothing": 0.0, "thin": 0.0},
    "linear, smoothed by half": {"smoothing": 0.5, "thin": 0.0},
    "linear, smoothed as images": {"smoothing": 1.0, "thin": 0.0},
    "medi3d: by half, nearest where thin": {},
}
RATIOS = (0.7, 1.0 / 0.7, 2.0, 3.0)
"""Prepared spacing, as a multiple of the finest native one."""
_EVERY_NEIGHBOUR = np.ones((3, 3, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cases", type=int, default=30)
    options = parser.parse_args()
    sets = {**real_sets(options.data, options.cases), **synthetic_sets(options.cases)}
    print(
        "| masks | prepared spacing, × native | method | Dice | volume | pieces | lost |\n|---|---|---|---|---|---|---|"
    )
    for name, ratio in itertools.product(sets, RATIOS):
        for method, choices in METHODS.items():
            rows = [row for label in sets[name]() for row in measure(label, ratio, choices)]
            kept = [row for row in rows if row[1] > 0]
            dice, volume = np.mean([row[0] for row in rows]), np.mean([row[1] for row in rows])
            pieces = np.mean([row[2] for row in kept]) if kept else 0.0
            lost = f"{len(rows) - len(kept)} of {len(rows)}"
            print(f"| {name} | {ratio:.2f} | {method} | {dice:.3f} | {volume:.2f} | {pieces:.1f} | {lost} |")


def real_sets(data: Path, cases: int) -> dict[str, Callable[[], Iterator[LabelMap]]]:
    """Return name → function that reads the masks."""
    files = {
        "hippocampus": sorted((data / "hippocampus/labelsTr").glob("*.nii.gz"))[:cases],
        "lung nodules": sorted((data / "lung_nodule/masks").glob("*.nii.gz"))[: 3 * cases : 2],
        "brain tumours": sorted((data / "brain_tumor").rglob("*OTMultiClass*"))[:2],
    }
    return {
        name: (lambda paths=paths: (io.read_label_map(path) for path in paths))
        for name, paths in files.items()
        if paths
    }


def synthetic_sets(cases: int) -> dict[str, Callable[[], Iterator[LabelMap]]]:
    """Return name → function that draws sheets and vessels."""
    return {
        f"{shape}, {thickness} voxel{'s' * (thickness > 1)}": (
            lambda shape=shape, thickness=thickness: (draw(shape, thickness, seed) for seed in range(cases))
        )
        for shape, thickness in itertools.product(("sheet", "vessel"), (1, 2))
    }


def draw(shape: str, thickness: int, seed: int) -> LabelMap:
    """Return a disc or a straight tube through the middle of 40³ voxels, tilted and shifted at random."""
    rng = np.random.default_rng(seed)
    grid = Grid((40, 40, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
    normal = rng.normal(size=3)
    normal /= np.linalg.norm(normal)
    place = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1) - 19.5 - rng.uniform(-0.5, 0.5, 3)
    along = place @ normal
    across = np.sqrt(np.maximum((place**2).sum(-1) - along**2, 0))
    thin, wide = (np.abs(along), across) if shape == "sheet" else (across, np.abs(along))
    # a sheet that is one voxel thick must have no holes, a vessel no gaps: half the projected voxel's width
    half = thickness / 2 * (np.abs(normal).max() if shape == "sheet" else 1.2)
    return LabelMap(((thin <= half) & (wide < 15)).astype(np.uint8)[None], grid.affine)


def measure(label: LabelMap, ratio: float, choices: dict[str, object]) -> Iterator[tuple[float, float, float]]:
    """Yield Dice after the round trip, volume and number of pieces for each label of a map."""
    native = reorient(label)
    spacing = min(native.spacing_mm) * ratio
    target = isotropic_grid(native.grid, (spacing, spacing, spacing))
    prepared = resample(native, target, choices)
    back = resample(prepared, native.grid, choices)
    voxel_ratio = spacing**3 / abs(np.linalg.det(native.affine[:3, :3]))
    for value in np.unique(native.array[native.array > 0]):
        before, after, there = (m.array[0] == value for m in (native, back, prepared))
        dice = 2 * np.count_nonzero(before & after) / (np.count_nonzero(before) + np.count_nonzero(after))
        pieces = find_components(there, _EVERY_NEIGHBOUR)[1] / find_components(before, _EVERY_NEIGHBOUR)[1]
        yield dice, np.count_nonzero(there) * voxel_ratio / np.count_nonzero(before), pieces


def resample(label: LabelMap, target: Grid, choices: dict[str, object]) -> LabelMap:
    resampler = LabelResampler(label.array, label.grid, target, fill=0, **choices)  # type: ignore[arg-type]
    return LabelMap(resampler.slab(0, target.shape[0]), target.affine)


if __name__ == "__main__":
    main()
