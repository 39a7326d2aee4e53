"""Checkpoints: written whole or not at all, and read without running code in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from medi3d.errors import WeightsError
from medi3d.io import atomic


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint to a temporary name, sync it, and rename it over ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.new_file(path) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the host.

    Raises:
        WeightsError: it is missing, damaged, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable checkpoint ({reason[:160]})") from None
    if not isinstance(state, dict) or "model" not in state:
        raise WeightsError(f"{path}: not a checkpoint of a medi3d run")
    return state
