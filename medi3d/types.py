"""Type names used throughout: every spatial triple is (D, H, W)."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IntTriple: TypeAlias = tuple[int, int, int]
FloatTriple: TypeAlias = tuple[float, float, float]
Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
PathLike: TypeAlias = str | os.PathLike[str]
