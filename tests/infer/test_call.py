"""``medi3d.predict``: what goes in comes out, as the same kind of image on the same grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import medi3d
from medi3d import io
from medi3d.errors import InputError
from medi3d.infer.batch import predict_files
from medi3d.infer.predictor import Predictor
from medi3d.volume import LabelMap, Volume


@pytest.fixture
def path(tiny: Path) -> Path:
    return tiny / "raw" / "tiny_segmentation" / "imagesTr" / "case_0.nii.gz"


def test_each_kind_of_image_gives_the_label_map_of_the_command_line(
    segmentation_runs: tuple[Path, Path], path: Path, tmp_path: Path
) -> None:
    predictor = Predictor(segmentation_runs, device="cpu")
    predict_files(predictor, path, tmp_path / "out")
    written = tmp_path / "out" / path.name
    expected = io.read_label_map(written)

    volume = io.read_volume(path)
    label = medi3d.predict(volume, predictor)
    assert isinstance(label, LabelMap)
    np.testing.assert_array_equal(label.array, expected.array)
    assert label.grid.is_close(volume.grid)

    image = sitk.ReadImage(str(path))
    answer = medi3d.predict(image, segmentation_runs, device="cpu")
    assert isinstance(answer, sitk.Image)
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(answer, geometry)(), getattr(image, geometry)(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(answer), expected.array[0])

    nifti = nib.load(path)
    mapped = medi3d.predict(nifti, predictor)
    assert isinstance(mapped, nib.Nifti1Image)
    np.testing.assert_allclose(mapped.affine, nifti.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(mapped.dataobj), np.asarray(nib.load(written).dataobj))


def test_a_classification_gives_probabilities_and_cuts_its_cube_where_it_is_told(
    classification_runs: tuple[Path, Path], tiny: Path
) -> None:
    raw = tiny / "raw" / "tiny_classification"
    image = sitk.ReadImage(str(raw / "images" / "nodule_0.nii.gz"))
    volume = io.from_sitk(image)
    predictor = Predictor(classification_runs[:1], device="cpu")
    x, y, z = volume.grid.index_to_world([(n - 1) / 2 for n in volume.shape])
    for center, at in (((15.0, -12.0, 1.0), (15.0, -12.0, 1.0)), (None, (x, y, z))):
        answer = medi3d.predict(image, str(classification_runs[0]), center_mm=center, device="cpu")
        assert list(answer) == ["bright", "dark"]
        assert sum(answer.values()) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(list(answer.values()), predictor.predict_classes(volume, center_mm=at), atol=1e-6)


def test_images_of_nibabel_there_and_back(rng: np.random.Generator) -> None:
    affine = np.array([[0, 1.2, 0, 7], [0, 0, -1.6, -3], [-2.5, 0, 0, 11], [0, 0, 0, 1.0]])
    for channels in (1, 3):
        volume = Volume(rng.normal(size=(channels, 4, 5, 6)).astype(np.float32), affine)
        image = io.to_nibabel(volume)
        assert image.shape == ((6, 5, 4) if channels == 1 else (6, 5, 4, channels))
        back = io.from_nibabel(image)
        np.testing.assert_array_equal(back.array, volume.array)
        np.testing.assert_allclose(back.affine, affine)
    np.testing.assert_allclose(image.affine @ [5, 2, 1, 1], [*volume.grid.index_to_world([1, 2, 5]), 1])


def test_what_is_no_image_is_refused(segmentation_runs: tuple[Path, Path]) -> None:
    for wrong in (np.zeros((3, 4, 5)), "a.nii.gz", sitk.Transform()):
        with pytest.raises(InputError, match=r"expected a medi3d\.Volume, a SimpleITK image or a nibabel image, got"):
            medi3d.predict(wrong, segmentation_runs)
    with pytest.raises(InputError, match="expected a nibabel image of 3 or 4 axes"):
        medi3d.predict(nib.Nifti1Image(np.zeros((3, 4), np.float32), np.eye(4)), segmentation_runs)
