"""Fixtures shared by all tests: where the real volumes lie, and a seeded generator."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function from a data set's name to its folder; it skips the test where the data is absent."""
    root = Path(os.environ.get("MEDI3D_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            pytest.skip(f"real data {folder} is absent; set MEDI3D_TEST_DATA")
        return folder

    return find


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
