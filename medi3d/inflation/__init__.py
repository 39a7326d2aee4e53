"""Inflation: a 2D network becomes a 3D network that gives the same answer on a volume of equal slices."""

from medi3d.inflation import attention, convolution, normalization, pooling, recurrence, resampling
from medi3d.inflation.convert import inflate
from medi3d.inflation.converters import CONVERTERS
from medi3d.inflation.functions import FUNCTIONS
from medi3d.inflation.inflated import Inflated
from medi3d.inflation.plan import PLANS, DepthPlan, anisotropic
from medi3d.inflation.profiles import PROFILES, inflate_kernel
from medi3d.inflation.tracing import trace_graph
from medi3d.inflation.verify import Exactness, measure_exactness
from medi3d.inflation.window import DepthPadding

__all__ = [
    "CONVERTERS",
    "FUNCTIONS",
    "PLANS",
    "PROFILES",
    "DepthPadding",
    "DepthPlan",
    "Exactness",
    "Inflated",
    "anisotropic",
    "inflate",
    "inflate_kernel",
    "measure_exactness",
    "trace_graph",
]

_ROWS_OF_FUNCTIONS = (attention, convolution, normalization, pooling, recurrence, resampling)  # filled by import
