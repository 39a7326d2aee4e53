"""What ``medi3d predict`` must not wait for before its first voxel."""

from __future__ import annotations

import subprocess
import sys

SLOW = (
    "monai",
    "torchio",
    "sklearn",
    "matplotlib",
    "tensorboard",
    "scipy.signal",
    "nibabel",
    "accelerate",
    "SimpleITK",
)
"""Libraries that take long to import, and that a prediction of an inflated network on aligned axes does without."""


def test_prediction_imports_no_library_that_it_does_without() -> None:
    program = (
        "import sys; import medi3d.infer.batch, medi3d.infer.hot_folder, medi3d.cli.predict; "
        f"print([name for name in {SLOW} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
