"""Small cases are unpacked once and kept: for a cube of 32³ voxels opening and unpacking take ten times the copying."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medi3d.io.prepared import PreparedCase
from medi3d.types import Array

_ROOM_BYTES = 128 << 20
_LARGEST_BYTES = 1 << 20
"""About four patches of 40³ voxels: of a larger array most is not in the patch, and reading a part of it is cheap."""


class CaseCache:
    """The arrays of prepared cases, to be sliced: the stored ones, or copies of the small ones in memory.

    What is kept stays. Patches come in passes over all cases, so where there is no room for all of them a cache that
    gave up the oldest would never find one in the next pass.

    Args:
        room_bytes: most that is kept.
        largest_bytes: size of the largest array that is kept.
    """

    def __init__(self, *, room_bytes: int = _ROOM_BYTES, largest_bytes: int = _LARGEST_BYTES) -> None:
        self._room_bytes, self._largest_bytes = room_bytes, largest_bytes
        self._kept: dict[tuple[Path, str], Array | None] = {}

    def image(self, case: PreparedCase) -> Any:
        """Return the image, ``(C, D, H, W)`` float32.

        Raises:
            InputError: its file cannot be read, as for :meth:`label`.
        """
        return self._get(case, "image", case.image)

    def label(self, case: PreparedCase) -> Any | None:
        """Return the label map, ``(1, D, H, W)`` uint8, or ``None`` where the case has none."""
        return self._get(case, "label", case.label)

    def _get(self, case: PreparedCase, name: str, stored: Callable[[], Any]) -> Any:
        key = (case.folder, name)
        if key in self._kept:
            return self._kept[key]
        array = stored()
        size = 0 if array is None else array.nbytes
        if size > min(self._largest_bytes, self._room_bytes):
            return array
        self._room_bytes -= size
        if array is not None:
            array = np.asarray(array[:])
            array.flags.writeable = False
        self._kept[key] = array
        return array
