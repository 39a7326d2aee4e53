"""What the page's viewer needs: NiiVue's JavaScript out of the package ipyniivue, and volumes as NIfTI text.

NiiVue draws NIfTI volumes by WebGL (https://github.com/niivue/niivue, BSD 2-Clause). ipyniivue carries it as a
module for notebooks, which exports no more than a widget; one line at its end exports the class as well.
"""

from __future__ import annotations

import base64
import gzip
import re
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from medi3d.errors import MissingDependencyError
from medi3d.io import write_volume
from medi3d.types import Array, FloatTriple, IntTriple
from medi3d.volume import Volume

LONGEST_SIDE = 160
"""Voxels of an embedded volume's longest side: uint8, gzipped, some hundred kB to 2 MB a case."""

_INSTALL = "pip install 'medi3d[report]'"
_CLASS = re.compile(r'"Creating new Niivue instance".{0,200}?=new ([\w$]+)\(', re.DOTALL)
"""Where the widget creates its viewer: the only mention of the class by name that minifying leaves."""


@lru_cache(maxsize=1)
def packed_niivue() -> str:
    """Return a JavaScript module that exports ``Niivue``, gzipped, in base64.

    Raises:
        MissingDependencyError: ipyniivue is not installed, or of a version that is laid out otherwise.
    """
    spec = find_spec("ipyniivue")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"the page's 3-D viewer takes NiiVue from the package ipyniivue, which is not installed: {_INSTALL}, "
            "or --no-viewer for a page without it"
        )
    path = Path(spec.origin).parent / "static" / "widget.js"
    code = path.read_text(encoding="utf-8") if path.is_file() else ""
    return base64.b64encode(gzip.compress(export_class(code, path).encode(), 9, mtime=0)).decode("ascii")


def export_class(code: str, path: Path) -> str:
    """Add an export of NiiVue's class to the module of the widget.

    Raises:
        MissingDependencyError: the class is not where it is expected.
    """
    found = _CLASS.search(code)
    if found is None:
        raise MissingDependencyError(
            f"{path}: expected the widget of ipyniivue 2.4, which creates a NiiVue viewer; it does not: {_INSTALL}"
        )
    return f"{code}\nexport {{{found.group(1)} as Niivue}};\n"


def shrink(volume: Volume, longest: int = LONGEST_SIDE) -> Volume:
    """Thin a volume out until no side has more than ``longest`` voxels; labels stay labels.

    Every n-th voxel is taken, along each axis by its own n: a picture to look at, not to measure on.
    """
    steps = [-(-n // longest) for n in volume.shape]
    array = volume.array[:, :: steps[0], :: steps[1], :: steps[2]]
    affine = volume.affine.copy()
    affine[:3, :3] *= steps
    return type(volume)(np.ascontiguousarray(array), affine)


def to_byte_range(array: Array, window: tuple[float, float]) -> Array:
    """Map intensities between the window's ends to 0 … 255, uint8."""
    low, high = window
    scaled: Array = np.clip((array - low) * (255 / max(high - low, 1e-12)), 0, 255).round().astype(np.uint8)
    return scaled


def as_nifti_text(volume: Volume) -> str:
    """Return a volume as a gzipped NIfTI file in base64. Its header is made anew and names nobody: no description, no
    file names, no dates; the gzip header holds no name and no time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        write_volume(volume, path)
        return base64.b64encode(path.read_bytes()).decode("ascii")


def crosshair_fraction(shape: IntTriple, place: IntTriple) -> FloatTriple:
    """Return where a voxel of an array in SPL order lies, as NiiVue counts: shares to right, anterior, superior."""
    d, h, w = ((index + 0.5) / n for index, n in zip(place, shape, strict=True))
    return 1 - w, 1 - h, d
