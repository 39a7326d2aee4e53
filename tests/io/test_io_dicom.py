"""Series as folders: which files make one up, how it is addressed, and the real series beside SimpleITK."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_writing import SECRETS, SERIES, draw_slices, edit, make_enhanced, make_slice, save, write_series

from medi3d.errors import InputError
from medi3d.io import dicom
from medi3d.io.itk import sitk_affine

REAL = ["mr_t1_oblique", "ct_small", "mr_hippocampus_crop"]


def refusal(path: Path, **options: str) -> str:
    """Return the one line with which a series is refused; it must tell of no patient."""
    with pytest.raises(InputError, match=r".") as caught:
        dicom.read_dicom(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(secret in message.upper() for secret in SECRETS), message
    with pytest.raises(InputError, match=r"."):
        dicom.read_dicom_header(path, **options)
    return message


def test_files_need_no_suffix_and_others_beside_them_do_not_matter(tmp_path: Path) -> None:
    stored = draw_slices()
    folder = write_series(tmp_path / "s", stored)
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(""))
    (folder / "notes.txt").write_text("x")
    (folder / "empty").touch()
    (folder / ".hidden.dcm").write_text("x")
    (folder / "DICOMDIR").write_bytes((folder / "IM99").read_bytes())
    (folder / "loop").symlink_to("loop")
    (folder / "inner").mkdir()
    np.testing.assert_array_equal(dicom.read_dicom(folder).array[0], stored)
    assert dicom.is_dicom(folder)
    assert dicom.list_series(tmp_path) == [folder]
    assert dicom.series_files(folder) == sorted(folder.glob("IM*"))


def test_header_tells_what_is_read(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", RescaleIntercept="-1024")
    header, raw = dicom.read_dicom_header(folder), dicom.read_dicom(folder)
    assert (header.channels, header.grid.shape) == (1, (5, 6, 4))
    assert raw.array.shape == (1, 5, 6, 4)
    assert header.dtype == raw.array.dtype == np.int16
    np.testing.assert_array_equal(header.grid.affine, raw.affine)


def test_several_series_are_listed_by_number_and_told_without_identifiers(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", draw_slices(5))
    write_series(folder, draw_slices(3, seed=8), prefix="B", SeriesInstanceUID=SERIES + "9", SeriesNumber="7")
    message = refusal(folder)
    assert "2 DICOM series in the folder (#2: 5 slices CT, #7: 3 slices CT); name one of them, as in" in message
    assert dicom.list_series(tmp_path) == [Path(f"{folder}#2"), Path(f"{folder}#7")]
    assert dicom.is_dicom(Path(f"{folder}#7"))
    np.testing.assert_array_equal(dicom.read_dicom(Path(f"{folder}#7")).array[0], draw_slices(3, seed=8))
    assert [path.name[0] for path in dicom.series_files(Path(f"{folder}#7"))] == ["B"] * 3
    assert "name one of them" in refusal(Path(f"{folder}#3"))


@pytest.mark.parametrize("numbers", [(None, None), ("4", "4"), ("-1", "4"), (None, "4")])
def test_series_without_a_number_of_their_own_are_ranked(
    tmp_path: Path, numbers: tuple[str | None, str | None]
) -> None:
    folder = write_series(tmp_path / "s", draw_slices(5), SeriesNumber=numbers[0])
    write_series(folder, draw_slices(3), prefix="JM", SeriesInstanceUID=SERIES + "9", SeriesNumber=numbers[1])
    assert dicom.list_series(folder) == [Path(f"{folder}#1"), Path(f"{folder}#2")]
    depths = {dicom.read_dicom(path).array.shape[1] for path in dicom.list_series(folder)}
    assert depths == {3, 5}


def test_a_folder_may_have_a_number_sign_in_its_name(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "study#7")
    assert dicom.list_series(tmp_path) == [folder]
    assert dicom.read_dicom_header(folder).grid.shape == (5, 6, 4)


def test_nested_folders_and_a_link_in_a_circle(tmp_path: Path) -> None:
    first, second = (write_series(tmp_path / name / "series", SeriesInstanceUID=SERIES + name) for name in ("1", "2"))
    (tmp_path / "1" / "back").symlink_to(tmp_path)
    assert dicom.list_series(tmp_path) == [first, second]


def test_copies_of_a_series_stay_apart(tmp_path: Path) -> None:
    first = write_series(tmp_path / "first")
    second = Path(shutil.copytree(first, tmp_path / "second"))
    assert dicom.list_series(tmp_path) == [first, second]


def test_a_series_split_over_folders_is_one_volume(tmp_path: Path) -> None:
    stored = draw_slices(6)
    write_series(tmp_path / "s" / "a", stored[:3], depths=[0, 2, 4])
    write_series(tmp_path / "s" / "b", stored[3:], depths=[6, 8, 10])
    address = Path(f"{tmp_path / 's'}#2")
    assert dicom.list_series(tmp_path) == [address]
    assert dicom.is_dicom(address)
    np.testing.assert_array_equal(dicom.read_dicom(address).array[0], stored)
    assert len(dicom.series_files(address)) == 6


def test_reports_and_scouts_are_left_out(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    report = make_slice(draw_slices()[0], (0, 0, 0), Rows=None, Columns=None, SeriesInstanceUID="1.2.9", Modality="SR")
    del report.PixelData
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    save(report, folder / "report.dcm")
    save(make_slice(draw_slices()[0], (0, 0, 9), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), folder / "scout.dcm")
    assert dicom.read_dicom_header(folder).grid.shape == (5, 6, 4)
    assert len(dicom.series_files(folder)) == 5


def test_a_folder_of_reports_or_scouts_alone_holds_no_series(tmp_path: Path) -> None:
    save(make_slice(draw_slices()[0], (0, 0, 9), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "a.dcm")
    assert "no DICOM series found" in refusal(tmp_path)
    assert dicom.list_series(tmp_path) == []


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", depths=[10.0])
    assert "one slice (IM99.dcm)" in refusal(folder)
    assert "give the folder that holds its series" in refusal(folder / "IM99.dcm")


def test_a_copied_file_is_left_out_and_a_changed_copy_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    copy = folder / "IM97 (1).dcm"
    copy.write_bytes((folder / "IM97.dcm").read_bytes())
    assert dicom.read_dicom_header(folder).grid.shape == (5, 6, 4)
    assert copy not in dicom.series_files(folder) or folder / "IM97.dcm" not in dicom.series_files(folder)
    edit(copy, RescaleIntercept="1")
    assert "bears the SOP Instance UID of IM97" in refusal(folder)


def test_a_file_named_as_dicom_that_is_none(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    (folder / "IM99.dcm").write_bytes(b"")
    assert "IM99.dcm: named as a DICOM file, but bears no DICOM mark" in refusal(folder)
    assert dicom.list_series(tmp_path) == [folder]  # so that reading it tells what is wrong


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    (folder / "IM99.dcm").chmod(0)
    assert "permission" in refusal(folder)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "absent")
    assert not dicom.is_dicom(tmp_path / "absent")
    assert not dicom.is_dicom(tmp_path / "absent#3")
    assert not dicom.is_dicom(tmp_path)
    assert "no DICOM series found" in refusal(tmp_path)
    assert "quantity must be stored or suv; got 'hu'" in refusal(write_series(tmp_path / "s"), quantity="hu")


def test_each_multi_frame_file_of_a_series_is_a_volume(tmp_path: Path) -> None:
    for name in "ab":
        save(make_enhanced(draw_slices(4)), tmp_path / "s" / f"{name}.dcm")
    assert dicom.list_series(tmp_path) == [tmp_path / "s" / "a.dcm", tmp_path / "s" / "b.dcm"]
    assert "2 files, each with frames of its own; name one of them: a.dcm, b.dcm" in refusal(tmp_path / "s")
    assert dicom.series_files(tmp_path / "s" / "a.dcm") == [tmp_path / "s" / "a.dcm"]


@pytest.mark.parametrize("length", [0, 100, 200, 400])
def test_a_cut_slice(tmp_path: Path, length: int) -> None:
    folder = write_series(tmp_path / "s")
    path = folder / "IM97.dcm"
    path.write_bytes(path.read_bytes()[:length])
    assert any(text in refusal(folder) for text in ("IM97.dcm: ", "2 DICOM series"))


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real_series_equal_itk(real_data: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    folder = real_data("dicom") / name
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    for scratch in (None, tmp_path):
        raw = dicom.read_dicom(folder, scratch=scratch)
        np.testing.assert_array_equal(raw.array[0], sitk.GetArrayFromImage(image))
        np.testing.assert_allclose(raw.affine, sitk_affine(image), atol=1e-6)
    assert list(tmp_path.iterdir()) == []
    header = dicom.read_dicom_header(folder)
    assert header.grid.shape == raw.array.shape[1:]
    assert header.dtype == raw.array.dtype == np.int16


@pytest.mark.real_data
def test_real_series_are_found(real_data: Callable[[str], Path]) -> None:
    folder = real_data("dicom")
    assert dicom.list_series(folder) == sorted(folder / name for name in REAL)


@pytest.mark.real_data
def test_a_missing_slice_of_a_real_series(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(real_data("dicom") / "mr_t1_oblique", tmp_path / "s")
    (tmp_path / "s" / "000011.dcm").unlink()
    message = refusal(tmp_path / "s")
    assert "uneven slice gaps: 13.000 mm between slices" in message
    assert "elsewhere 6.500 mm: 1 slice missing" in message
