"""The metrics beside MONAI's and deepmind/surface-distance's, on the same masks.

Where definitions are the same, values are: ``elements`` is surface-distance's surface (and MONAI's with
``use_subvoxels``), ``voxels`` is MONAI's. Where they are not, a test says how.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import surface_distance
import torch
from monai import metrics as monai_metrics
from scipy.ndimage import gaussian_filter

from medi3d import io
from medi3d.evaluate import segment_scores
from medi3d.evaluate.surface import SurfaceDistances, measure_surface_distances

pytestmark = [
    # surface-distance calls scipy by names that scipy has moved, and NumPy's of old.
    pytest.mark.filterwarnings("ignore:.*scipy.ndimage.* namespace is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),
]

SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9), (5.0, 0.6, 0.6)]


def blob(seed: int, shape: tuple[int, int, int] = (17, 24, 21), threshold: float = 0.25) -> np.ndarray:
    """A ball with a rough surface and some islands, up to the volume's border."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    noise = gaussian_filter(rng.normal(size=shape), 1.2)
    return ((place**2).sum(axis=0) + 2 * noise < threshold + 0.35).astype(bool)


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    two = blob(1), blob(2)
    corner = np.zeros((9, 11, 14), bool)
    corner[:4, :5, :6] = True
    far = np.zeros_like(corner)
    far[-2:, -3:, -2:] = True
    return [two, (two[0], np.roll(two[0], 1, axis=2)), (corner, far), (corner, corner)]


def as_one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


def of_monai(function: Callable[..., torch.Tensor], first: np.ndarray, second: np.ndarray, **settings: object) -> float:
    return float(function(as_one_hot(first), as_one_hot(second), include_background=False, **settings).item())


def directed_means(distances: SurfaceDistances) -> tuple[float, float]:
    return (
        float(np.average(distances.reference_mm, weights=distances.reference_areas)),
        float(np.average(distances.prediction_mm, weights=distances.prediction_areas)),
    )


def check_elements(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    ours = measure_surface_distances(prediction, reference, spacing_mm)
    theirs = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
    np.testing.assert_allclose(ours.prediction_mm, theirs["distances_pred_to_gt"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.reference_mm, theirs["distances_gt_to_pred"], rtol=1e-12, atol=1e-12)
    for percent in (50, 95, 100):
        expected = surface_distance.compute_robust_hausdorff(theirs, percent)
        assert ours.hausdorff_mm(percent) == pytest.approx(expected, rel=1e-12)
    for tolerance_mm in (0.0, 0.7, 1.0, 2.5, 4.0):
        expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
        assert ours.dice(tolerance_mm) == pytest.approx(expected, rel=1e-9)
    assert directed_means(ours) == pytest.approx(surface_distance.compute_average_surface_distance(theirs), rel=1e-9)
    areas = ours.reference_areas.sum(), ours.prediction_areas.sum()
    assert ours.mean_mm() == pytest.approx(np.average(directed_means(ours), weights=areas))


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("number", range(4))
def test_elements_are_those_of_surface_distance(number: int, spacing_mm: tuple[float, float, float]) -> None:
    check_elements(*pairs()[number], spacing_mm)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("number", range(4))
def test_elements_and_voxels_are_those_of_monai(number: int, spacing_mm: tuple[float, float, float]) -> None:
    check_monai(*pairs()[number], spacing_mm)


def check_monai(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    both = prediction, reference
    elements = measure_surface_distances(*both, spacing_mm)
    voxels = measure_surface_distances(*both, spacing_mm, surface="voxels")
    for percent in (50.0, 95.0, 100.0):
        expected = of_monai(monai_metrics.compute_hausdorff_distance, *both, spacing=spacing_mm, percentile=percent)
        assert voxels.hausdorff_mm(percent) == pytest.approx(expected, rel=1e-5)
    expected = of_monai(monai_metrics.compute_average_surface_distance, *both, spacing=spacing_mm, symmetric=True)
    assert voxels.mean_mm() == pytest.approx(expected, rel=1e-5)
    for tolerance_mm in (0.8, 1.1, 3.0):  # between the distances of these grids, which MONAI holds as float32
        for surface, use_subvoxels in ((elements, True), (voxels, False)):
            expected = of_monai(
                monai_metrics.compute_surface_dice,
                *both,
                class_thresholds=[tolerance_mm],
                spacing=spacing_mm,
                use_subvoxels=use_subvoxels,
            )
            assert surface.dice(tolerance_mm) == pytest.approx(expected, rel=1e-5)


def test_the_two_surfaces_are_not_the_same() -> None:
    """A plate one voxel thick, 3 mm from another: elements lie on both of its sides, voxels in it."""
    plate = np.zeros((12, 9, 9), bool)
    plate[3, 1:8, 1:8] = True
    moved = np.roll(plate, 3, axis=0)
    assert measure_surface_distances(plate, moved, (1, 1, 1), surface="voxels").mean_mm() == 3
    assert 2 < measure_surface_distances(plate, moved, (1, 1, 1)).mean_mm() < 3
    # In mm: the two faces of the far plate are 2 and 3 away, the near ones 3 and 2; the sides lie between.


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_compared_by_its_contours(axis: int, spacing_mm: tuple[float, float, float]) -> None:
    """As surface-distance and MONAI compare two 2D masks; in 3D the slice's own faces would count."""
    first, second = (blob(seed)[8] for seed in (3, 4))
    in_plane = spacing_mm[:axis] + spacing_mm[axis + 1 :]
    slices = np.expand_dims(first, axis), np.expand_dims(second, axis)
    ours = measure_surface_distances(*slices, spacing_mm)
    theirs = surface_distance.compute_surface_distances(second, first, in_plane)
    for tolerance_mm in (0.3, 0.7, 1.0, 2.0):
        expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
        assert ours.dice(tolerance_mm) == pytest.approx(expected, rel=1e-9)
    assert ours.hausdorff_mm() == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95), rel=1e-9)
    assert directed_means(ours) == pytest.approx(surface_distance.compute_average_surface_distance(theirs))
    voxels = measure_surface_distances(*slices, spacing_mm, surface="voxels")
    settings = {"spacing": in_plane, "percentile": 95.0}
    expected = of_monai(monai_metrics.compute_hausdorff_distance, first, second, **settings)
    assert voxels.hausdorff_mm() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("number", range(3))
def test_overlaps_are_those_of_monai(number: int) -> None:
    prediction, reference = pairs()[number]
    spacing_mm = SPACINGS[1]
    arrays = prediction.astype(np.uint8), reference.astype(np.uint8)
    ours = segment_scores(*arrays, labels={1: "it"}, spacing_mm=spacing_mm)["it"]
    counts = monai_metrics.get_confusion_matrix(as_one_hot(prediction), as_one_hot(reference), include_background=False)
    expected = {
        "dice": of_monai(monai_metrics.compute_dice, prediction, reference),
        "iou": of_monai(monai_metrics.compute_iou, prediction, reference),
        "precision": monai_metrics.compute_confusion_matrix_metric("precision", counts).item(),
        "recall": monai_metrics.compute_confusion_matrix_metric("sensitivity", counts).item(),
    }
    assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    voxels = of_monai(monai_metrics.compute_absolute_volume_difference, prediction, reference)  # it counts voxels
    assert ours["absolute_volume_error_ml"] == pytest.approx(voxels * np.prod(spacing_mm) / 1000, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_is_that_of_monai(seed: int) -> None:
    import cc3d

    rng = np.random.default_rng(seed)
    reference = gaussian_filter(rng.normal(size=(14, 22, 25)), 1.8) > 0.08
    prediction = np.roll(reference, 1, axis=2) | (gaussian_filter(rng.normal(size=reference.shape), 1) > 0.45)
    found = segment_scores(
        prediction.astype(np.uint8), reference.astype(np.uint8), labels={1: "it"}, spacing_mm=(1, 1, 1)
    )["it"]
    instances = [torch.from_numpy(cc3d.connected_components(mask).astype(np.int64)) for mask in (prediction, reference)]
    expected = monai_metrics.compute_panoptic_quality(*instances, match_iou_threshold=0.5)
    assert 0 < found["panoptic_quality"] < 1
    assert found["panoptic_quality"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.real_data
def test_real_hippocampi_agree(real_data: Callable[[str], Path]) -> None:
    """The neighbour's hippocampus for a prediction, on the grid of the smaller of the two."""
    files = sorted((real_data("hippocampus") / "labelsTr").glob("*.nii.gz"))[:2]
    for one, other in zip(files[::2], files[1::2], strict=True):
        maps = [io.read_label_map(path).array[0] for path in (one, other)]
        shape = np.minimum(maps[0].shape, maps[1].shape)
        for value in (1, 2):
            masks = [np.ascontiguousarray(label[tuple(map(slice, shape))] == value) for label in maps]
            for spacing_mm in ((1.0, 1.0, 1.0), (2.5, 0.7, 0.9)):
                check_elements(*masks, spacing_mm)
                check_monai(*masks, spacing_mm)
