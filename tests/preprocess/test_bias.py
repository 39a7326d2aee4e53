from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medi3d import io
from medi3d.errors import InputError
from medi3d.preprocess.bias import correct_bias, shrink_factors
from medi3d.volume import Grid

SHAPE = (18, 28, 64)
SPACING = (8.0, 6.0, 2.0)
GRID = Grid(SHAPE, np.diag([*SPACING, 1.0]))


def phantom(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two tissues in an ellipsoid on 0, without and with a smooth field of ± 30 %, and where the tissue is."""
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    inside = (place**2).sum(0) < 0.85
    tissue = np.where(np.sin(9 * place).prod(0) > 0, 100.0, 150.0)
    field = np.exp(0.3 * np.sin(1.5 * place[0] + 0.5) + 0.25 * place[1] - 0.2 * place[2] ** 2)
    clean = np.where(inside, tissue + rng.normal(0, 2, SHAPE), 0)
    return clean.astype("f4"), (clean * field).astype("f4"), inside


def spread(array: np.ndarray, tissue: np.ndarray, where: np.ndarray) -> float:
    """Coefficient of variation inside one tissue: the shading."""
    chosen = array[where & (np.abs(tissue - 100) < 10)]
    return float(chosen.std() / chosen.mean())


def test_a_smooth_field_goes(rng: np.random.Generator) -> None:
    clean, shaded, inside = phantom(rng)
    corrected = correct_bias(shaded, GRID)
    assert corrected.dtype == np.float32
    assert spread(shaded, clean, inside) > 0.15
    assert spread(corrected, clean, inside) < 0.04
    assert (corrected[~inside] == 0).all()


def test_it_does_what_simpleitk_does(rng: np.random.Generator) -> None:
    _, shaded, inside = phantom(rng)
    image = sitk.GetImageFromArray(shaded)
    image.SetSpacing(SPACING[::-1])
    mask = sitk.GetImageFromArray((shaded > 0).astype("u1"))
    mask.CopyInformation(image)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50] * 3)
    n4.Execute(image, mask)  # at full resolution
    theirs = shaded / np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)))
    ratio = correct_bias(shaded, GRID)[inside] / theirs[inside]
    assert ratio.std() / ratio.mean() < 0.02


@pytest.mark.parametrize("scale", [1e-8, 1.7e6])
def test_scales_do_not_matter(scale: float, rng: np.random.Generator) -> None:
    _, shaded, _ = phantom(rng)
    ours = correct_bias(shaded * np.float32(scale), GRID) / scale
    np.testing.assert_allclose(ours, correct_bias(shaded, GRID), rtol=0.02, atol=1e-3)


def test_stored_integers_and_their_background(rng: np.random.Generator) -> None:
    _, shaded, inside = phantom(rng)
    stored = np.where(inside, shaded, -7).astype("i2")
    kept = stored.copy()
    corrected = correct_bias(stored, GRID)
    assert (corrected[~inside] == -7).all()
    np.testing.assert_array_equal(stored, kept)
    np.testing.assert_allclose(corrected[inside], correct_bias(shaded, GRID)[inside], rtol=0.05)


def test_spacing_steers_the_copy() -> None:
    assert shrink_factors(GRID) == (1, 1, 2)
    assert shrink_factors(Grid((160, 256, 256), np.diag([1.0, 0.5, 0.5, 1]))) == (4, 8, 8)
    assert shrink_factors(Grid((16, 256, 20), np.diag([1.0, 0.5, 0.5, 1]))) == (2, 8, 2)


def test_normalised_images_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match=r"magnitude images only, but this one holds negative values"):
        correct_bias(rng.normal(size=SHAPE), GRID)
    with pytest.raises(InputError, match=r"holds no foreground"):
        correct_bias(np.zeros(SHAPE, "i2"), GRID)


@pytest.mark.real_data
def test_a_real_head(real_data: Callable[[str], Path]) -> None:
    volume = io.read_volume(real_data("dicom/mr_t1_oblique"))
    channel = volume.array[0]
    corrected = correct_bias(channel, volume.grid)
    assert np.isfinite(corrected).all()
    tissue = channel > 150
    ratio = corrected[tissue] / channel[tissue]
    assert ratio.std() / ratio.mean() > 0.02  # there was something to correct
    assert np.percentile(ratio, 1) > 0.5
    assert np.percentile(ratio, 99) < 2
