"""A whole volume in bounded memory: what a process holds at most does not grow with the number of classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import load_benchmark

MIB = 2**20

_PREDICT = """
import json, sys
from pathlib import Path
import numpy as np, torch
from torch import nn
from medi3d.config import parse_task
from medi3d.infer.planes import Storage
from medi3d.infer.restore import Restorer
from medi3d.infer.windows import LogitStream, stream_probabilities
from medi3d.io.record import Record
from medi3d.preprocess.resampling.resample import isotropic_grid
from medi3d.volume import Grid

classes, shape, spacing, patch, memory, overlap = json.loads(sys.argv[1])
torch.set_num_threads(1)
task = parse_task({
    "name": "memory", "kind": "segmentation", "data": {"labels": {n: f"l{n}" for n in range(1, classes)}},
    "train": {"patch_size": patch}, "infer": {"overlap": overlap},
}, where="test")
native = Grid(shape, np.diag([1.25, 0.7, 0.7, 1.0]))
record = Record(native, native if spacing is None else isotropic_grid(native, spacing))
network = nn.Conv3d(1, classes, 1).eval()
image = torch.rand(1, *record.prepared.shape)
def memory_of(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
network(image[None, :, :8, :8, :8])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins with what is held now
before = memory_of("VmRSS")
storage = Storage(memory_bytes=memory)
stream = LogitStream(network, image, task, storage)
restorer = Restorer(record, classes, thickness=stream.thickness, storage=storage)
for block in stream_probabilities([stream], stream.thickness):
    restorer.add(block)
label, _ = restorer.finish()
assert label.shape == native.shape and label.array.any()
print(json.dumps([memory_of("VmHWM"), before]))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")


def measure(
    classes: int,
    shape: tuple[int, int, int],
    *,
    spacing_mm: tuple[float, float, float] | None,
    patch: tuple[int, int, int],
    memory_bytes: int | None = None,
    overlap: float = 0.5,
) -> tuple[int, int]:
    """Predict in a process of its own; return its largest memory, and what it had before, bytes.

    Arrays above 1 MiB are given back as soon as they are freed: glibc else keeps those below 32 MiB, and how many holes
    that leaves depends on chance.
    """
    arguments: list[Any] = [classes, shape, spacing_mm, patch, memory_bytes, overlap]
    done = subprocess.run(
        [sys.executable, "-c", _PREDICT, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)},
    )
    assert done.returncode == 0, done.stderr
    peak, before = json.loads(done.stdout.splitlines()[-1])
    return peak, before


def test_memory_is_that_of_a_few_planes_and_windows() -> None:
    """60 classes over 320×64×60 voxels are 295 MB of logits, and as much again of probabilities."""
    peak, before = measure(60, (320, 114, 107), spacing_mm=(1.25, 1.25, 1.25), patch=(8, 32, 32))
    whole = 4 * 60 * 320 * 64 * 60
    assert peak - before < 0.75 * whole, f"{(peak - before) / MIB:.0f} of {whole / MIB:.0f} MiB"


@pytest.mark.slow
def test_a_hundred_classes_of_a_large_ct_within_4_gb() -> None:
    """512×512×300, prepared at 1.5 mm."""
    peak, _ = measure(100, (300, 512, 512), spacing_mm=(1.5, 1.5, 1.5), patch=(64, 96, 96))
    assert peak < 4e9, f"{peak / 1e9:.2f} GB"


@pytest.mark.slow
def test_a_hundred_classes_on_the_native_grid_within_4_gb_with_sums_on_disk() -> None:
    """512×512×300 are 31 GB of logits; a window and a half of its planes do, and the others add image and labels."""
    depth = 96
    peak, _ = measure(100, (depth, 512, 512), spacing_mm=None, patch=(64, 96, 96), memory_bytes=10**9, overlap=0.25)
    rest = (300 - depth) * 512 * 512 * (4 + 1)
    assert peak + rest < 4e9, f"{peak / 1e9:.2f} and {rest / 1e9:.2f} GB; sums and planes are 6.8 GB"


@pytest.mark.real_data
@pytest.mark.parametrize("spacing", [1.3, 0.9, None])
def test_real_cases_get_the_labels_of_the_plain_way(
    spacing: float | None, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """MONAI's windows over the whole, all classes resampled whole, then the largest: the same label in each voxel."""
    whole_volume = load_benchmark("whole_volume")
    cases = sorted((real_data("hippocampus") / "imagesTr").glob("[!.]*.nii.gz"))[:4]
    cases += sorted((real_data("lung_nodule") / "images").glob("[!.]*.nii.gz"))[:4]
    assert len(cases) == 8
    for case in cases:
        differing, voxels, seen = whole_volume.count_differing(case, spacing, classes=6, patch=24)
        assert seen > 2
        assert differing == 0, f"{case.name}: {differing} of {voxels}"
