"""Inflation: a 2D network becomes a 3D network that gives the same answer on a volume of equal slices."""

from medi3d.inflation.convert import inflate
from medi3d.inflation.converters import CONVERTERS
from medi3d.inflation.fold import Inflated
from medi3d.inflation.profiles import PROFILES, inflate_kernel
from medi3d.inflation.verify import Exactness, measure_exactness
from medi3d.inflation.window import DepthPadding

__all__ = [
    "CONVERTERS",
    "PROFILES",
    "DepthPadding",
    "Exactness",
    "Inflated",
    "inflate",
    "inflate_kernel",
    "measure_exactness",
]
