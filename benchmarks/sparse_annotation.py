"""How label maps with one annotated slice in n are resampled: what is left, and does foreground keep its share.

    python benchmarks/sparse_annotation.py [--data ../shared/data]

"One more label" lets the ignore label compete for voxels as the others do; "medi3d" asks first whether a voxel is
annotated and then as what (``medi3d/preprocess/resampling/annotation.py``). Annotated is the share of voxels that bear
another label than the ignore label; foreground, its share of those over its share of the whole volume, 1 where nothing
is tilted; Dice compares what is annotated with the same voxels of the whole map, resampled.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from medi3d import io
from medi3d.preprocess.resampling.labels import LabelResampler
from medi3d.preprocess.resampling.resample import isotropic_grid
from medi3d.types import Array
from medi3d.volume import Grid

METHODS = {"one more label": None, "medi3d": 255}
"""Method → which value it takes for the ignore label."""
SPACINGS_MM = (0.7, 1.0 / 0.7, 1.3, 2.0, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cases", type=int, default=20)
    options = parser.parse_args()
    sets = {
        "hippocampus": sorted((options.data / "hippocampus/labelsTr").glob("*.nii.gz"))[: options.cases],
        "brain tumours": sorted((options.data / "brain_tumor").rglob("*OTMultiClass*"))[1:3],
    }
    print("| masks | every | mm | method | annotated | foreground | Dice |\n|---|---|---|---|---|---|---|")
    for name, every, spacing in itertools.product(sets, (2, 5), SPACINGS_MM):
        for method, ignore_label in METHODS.items():
            rows = [measure(path, every, spacing, ignore_label) for path in sets[name]]
            annotated, foreground, dice = np.mean(rows, axis=0)
            print(f"| {name} | {every} | {spacing:.2f} | {method} | {annotated:.3f} | {foreground:.2f} | {dice:.3f} |")


def measure(path: Path, every: int, spacing: float, ignore_label: int | None) -> tuple[float, float, float]:
    """Return the share that is annotated, foreground's share of it over that of the volume, and Dice."""
    label = io.read_label_map(path)
    sparse = np.full_like(label.array, 255)
    sparse[:, 1::every] = label.array[:, 1::every]
    target = isotropic_grid(label.grid, (spacing,) * 3)
    whole = resample(label.array, label.grid, target, None)
    got = resample(sparse, label.grid, target, ignore_label)
    known = got != 255
    found, truth = known & (got > 0), known & (whole > 0)
    share = np.count_nonzero(found) / max(np.count_nonzero(known), 1)
    dice = 2 * np.count_nonzero(found & (got == whole)) / max(np.count_nonzero(found) + np.count_nonzero(truth), 1)
    return float(known.mean()), share / float((whole > 0).mean()), dice


def resample(array: Array, source: Grid, target: Grid, ignore_label: int | None) -> Array:
    resampled: Array = LabelResampler(array, source, target, fill=0, ignore_label=ignore_label).slab(0, target.shape[0])
    return resampled


if __name__ == "__main__":
    main()
