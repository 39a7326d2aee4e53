from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medi3d import io
from medi3d.errors import InputError

ORIENTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SERIES = "1.2.826.0.1.3680043.2.1125.1"


def write_slice(
    folder: Path,
    name: str,
    position: tuple[float, float, float],
    *,
    value: int = 7,
    series: str = SERIES,
    orientation: tuple[float, ...] = ORIENTATION,
) -> None:
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(np.full((1, 4, 6), value, "int16"))
    image.SetSpacing((0.5, 0.75, 1.0))
    image.SetOrigin(position)
    normal = np.cross(orientation[:3], orientation[3:])
    image.SetDirection(np.stack([orientation[:3], orientation[3:], normal], axis=1).ravel().tolist())
    tags = {
        "0008|0060": "CT",
        "0020|000e": series,
        "0020|000d": "1.2.3",
        "0010|0010": "Secret^Name",
        "0010|0020": "SECRET-ID",
        "0020|0032": "\\".join(map(str, position)),
        "0020|0037": "\\".join(map(str, orientation)),
    }
    for tag, content in tags.items():
        image.SetMetaData(tag, content)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(folder / f"{name}.dcm"))
    writer.Execute(image)


def write_series(folder: Path, depths: list[float], *, tilt: float = 0.0, series: str = SERIES) -> Path:
    for number, z in enumerate(depths):
        # names run against the positions
        write_slice(folder, f"{series[-1]}_{99 - number}", (3.0, 4.0 + tilt * z, z), value=number, series=series)
    return folder


def test_slices_are_ordered_by_position(tmp_path: Path) -> None:
    volume = io.read_volume(write_series(tmp_path / "s", [10.0, 12.5, 15.0]))
    np.testing.assert_array_equal(volume.array[0, :, 0, 0], [0, 1, 2])
    assert volume.shape == (3, 4, 6)
    assert volume.spacing_mm == pytest.approx((2.5, 0.75, 0.5))
    np.testing.assert_allclose(volume.grid.index_to_world([2, 1, 3]), [-(3 + 1.5), -(4 + 0.75), 15.0])


def test_a_tilted_gantry_gives_a_sheared_grid(tmp_path: Path) -> None:
    volume = io.read_volume(write_series(tmp_path / "s", [0.0, 2.0, 4.0], tilt=0.3))
    assert not volume.grid.is_orthogonal
    np.testing.assert_allclose(volume.grid.index_to_world([2, 0, 0]), [-3.0, -(4.0 + 1.2), 4.0])


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([0.0, 2.0, 6.0, 8.0], r"uneven slice gaps, 2\.000 to 4\.000 mm among 4 slices"),
        ([0.0, 2.0, 2.0, 4.0], "several slices lie at the same place"),
    ],
)
def test_missing_and_doubled_slices(tmp_path: Path, depths: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        io.read_volume(write_series(tmp_path / "s", depths))


def test_several_series_are_told_by_size_without_identifiers(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", [0.0, 1.0, 2.0])
    write_series(folder, [0.0, 1.0], series=SERIES[:-1] + "2")
    with pytest.raises(InputError, match=r"2 DICOM series in one folder \(of 3, 2 files\)") as caught:
        io.read_volume(folder)
    assert "1.2.826" not in str(caught.value)
    assert "SECRET" not in str(caught.value).upper()


def test_slices_must_be_parallel(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", [0.0, 1.0])
    write_slice(folder, "x", (0.0, 0.0, 2.0), orientation=(0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    with pytest.raises(InputError, match="not parallel"):
        io.read_volume(folder)


def test_dicom_paths(tmp_path: Path) -> None:
    first = write_series(tmp_path / "first", [0.0, 1.0])
    second = write_series(tmp_path / "second", [0.0, 1.0])
    assert io.image_files(first) == [first]
    assert io.image_files(tmp_path) == [first, second]
    file = next(first.iterdir())
    with pytest.raises(InputError, match="give the folder that holds its series"):
        io.image_files(file)


def test_a_damaged_slice_is_one_line(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", [0.0, 1.0, 2.0])
    for file in sorted(folder.iterdir())[:3]:
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=r"/s: ") as caught:
        io.read_volume(folder)
    assert "\n" not in str(caught.value)


def test_a_single_slice_is_a_flat_volume(tmp_path: Path) -> None:
    volume = io.read_volume(write_series(tmp_path / "s", [10.0]))
    assert volume.shape == (1, 4, 6)
    assert volume.spacing_mm[1:] == pytest.approx((0.75, 0.5))


def test_other_files_beside_a_series_do_not_matter(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", [0.0, 1.0])
    (folder / "notes.txt").write_text("x")
    assert io.read_volume(folder).shape == (2, 4, 6)
    assert io.image_files(folder) == [folder]


def test_dicom_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 100)
    with pytest.raises(InputError, match=r"no DICOM series found|GDCM cannot read"):
        io.read_volume(tmp_path)


@pytest.mark.real_data
def test_real_series(real_data: Callable[[str], Path]) -> None:
    folder = real_data("dicom")
    oblique = io.read_volume(folder / "mr_t1_oblique")
    assert oblique.shape == (22, 320, 280)
    assert oblique.spacing_mm == pytest.approx((6.5, 0.6875, 0.6875), abs=1e-3)
    assert oblique.grid.is_orthogonal
    ct = io.read_volume(folder / "ct_small")
    assert ct.shape[0] == 17
    assert ct.array.min() >= -2000
    assert io.read_volume(folder / "mr_hippocampus_crop").spacing_mm == pytest.approx((1, 1, 1), abs=1e-3)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mr_t1_oblique", "ct_small", "mr_hippocampus_crop"])
def test_real_series_lies_where_itk_puts_it(real_data: Callable[[str], Path], name: str) -> None:
    folder = real_data("dicom") / name
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    volume = io.read_volume(folder)
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    corner = np.array(image.TransformIndexToPhysicalPoint([n - 1 for n in image.GetSize()])) * [-1, -1, 1]
    np.testing.assert_allclose(volume.grid.index_to_world([n - 1 for n in volume.shape]), corner, atol=1e-2)


@pytest.mark.real_data
def test_a_missing_slice_of_a_real_series(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(real_data("dicom") / "mr_t1_oblique", tmp_path / "s")
    (tmp_path / "s" / "000011.dcm").unlink()
    with pytest.raises(InputError, match=r"uneven slice gaps, 6\.500 to 13\.000 mm among 21 slices"):
        io.read_volume(tmp_path / "s")
