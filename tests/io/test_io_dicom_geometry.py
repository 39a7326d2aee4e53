"""Slices to a grid: order, tilt, gaps, doubled and foreign slices; multi-frame files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writing import CT, SERIES, draw_slices, edit, make_enhanced, make_slice, save, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from scipy.spatial.transform import Rotation
from test_io_dicom import refusal

from medi3d.io import dicom
from medi3d.volume import Grid


def grid_of(path: Path) -> Grid:
    return dicom.read_dicom_header(path).grid


def test_slices_are_ordered_by_position(tmp_path: Path) -> None:
    stored = draw_slices(3)
    folder = write_series(tmp_path / "s", stored, depths=[10.0, 12.5, 15.0])
    np.testing.assert_array_equal(dicom.read_dicom(folder).array[0], stored)
    grid = grid_of(folder)
    assert grid.spacing_mm == pytest.approx((2.5, 0.75, 0.5))
    # LPS (3 + 3 · 0.5, 4 + 0.75, 15) in RAS
    np.testing.assert_allclose(grid.index_to_world([2, 1, 3]), [-4.5, -4.75, 15.0])


def test_a_tilted_gantry_gives_a_sheared_grid(tmp_path: Path) -> None:
    grid = grid_of(write_series(tmp_path / "s", depths=[0.0, 2.0, 4.0], tilt=0.3))
    assert not grid.is_orthogonal
    np.testing.assert_allclose(grid.index_to_world([2, 0, 0]), [-3.0, -(4.0 + 1.2), 4.0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    shear=st.tuples(*[st.floats(-0.4, 0.4)] * 2),
    seed=st.integers(0, 99),
)
def test_any_orientation(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, float, float],
    spacing: tuple[float, float, float],
    shear: tuple[float, float],
    seed: int,
) -> None:
    """The affine is PS3.3 equation C.7.6.2.1-1, whatever the order of the files."""
    folder = tmp_path_factory.mktemp("s")
    stored = draw_slices(4, seed=seed)
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().T  # rows: row, column, normal
    step = spacing[0] * (axes[2] + shear[0] * axes[0] + shear[1] * axes[1])
    names = np.random.default_rng(seed).permutation(4)
    for index in range(4):
        position = np.array([-100.0, 30.0, 7.0]) + index * step
        dataset = make_slice(
            stored[index],
            (0, 0, 0),
            ImagePositionPatient=[f"{number:.9f}" for number in position],
            ImageOrientationPatient=[f"{number:.12f}" for number in axes[:2].ravel()],
            PixelSpacing=[f"{number:.10f}" for number in spacing[1:]],
        )
        save(dataset, folder / f"{names[index]}.dcm")
    raw = dicom.read_dicom(folder)
    np.testing.assert_array_equal(raw.array[0], stored)
    index = np.array([3, 5, 2])
    place = np.array([-100.0, 30.0, 7.0]) + 3 * step + 5 * spacing[1] * axes[1] + 2 * spacing[2] * axes[0]
    np.testing.assert_allclose((raw.affine @ [*index, 1])[:3], place * [-1, -1, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([0, 2, 6, 8], "4.000 mm between slices 2 and 3 of 4 (IM98.dcm and IM97.dcm), elsewhere 2.000 mm: 1 slice"),
        ([0, 2, 4, 10, 12], "6.000 mm between slices 3 and 4 of 5 (IM97.dcm and IM96.dcm), elsewhere 2.000 mm: 2"),
        ([0, 2, 3, 4, 6, 8, 10], "of several series"),
        ([0, 2, 2, 4, 6], "1 of 5 slices lie where another one does (for example IM97.dcm and IM98.dcm)"),
    ],
)  # fmt: skip
def test_missing_and_doubled_slices(tmp_path: Path, depths: list[float], message: str) -> None:
    assert message in refusal(write_series(tmp_path / "s", depths=depths))


def test_rounded_positions_pass(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", depths=[round(1.25 * index, 1) for index in range(9)])
    assert grid_of(folder).spacing_mm[0] == pytest.approx(1.25)


def test_a_slice_off_the_line(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    edit(folder / "IM97.dcm", ImagePositionPatient=["3", "4.5", "5"])
    assert "do not lie on an even line: IM97.dcm is 0.500 mm beside it" in refusal(folder)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("AcquisitionNumber", ("1", "2")),
        ("TemporalPositionIdentifier", ("1", "2")),
        ("EchoNumbers", ("1", "2")),
        ("EchoTime", ("4.6", "2.3")),
        ("TriggerTime", ("0", "40")),
        ("ContentTime", ("101010", "101110.5")),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
    ],
)
def test_two_acquisitions_are_named_by_what_tells_them_apart(
    tmp_path: Path, keyword: str, values: tuple[Any, Any]
) -> None:
    for prefix, value in zip("AB", values, strict=True):
        write_series(tmp_path / "s", prefix=prefix, **{keyword: value})
    message = refusal(tmp_path / "s")
    assert f"2 volumes of 5 slices at the same places, told apart by {keyword}; put each" in message


def test_two_acquisitions_that_nothing_tells_apart(tmp_path: Path) -> None:
    for prefix in "AB":
        write_series(tmp_path / "s", prefix=prefix)
    assert "2 volumes of 5 slices at the same places; put each" in refusal(tmp_path / "s")


@pytest.mark.parametrize(
    ("elements", "trait"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "orientation"),
        ({"PixelSpacing": ["0.75", "0.6"]}, "pixel spacing"),
        ({"FrameOfReferenceUID": "1.2.3.5"}, "frame of reference"),
        ({"PatientID": "SECRET-OTHER"}, "patient, study or series"),
        ({"BitsStored": 12, "HighBit": 11}, "pixel format"),
        ({"Modality": "MR"}, "modality"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "photometric interpretation"),
    ],
)
def test_a_foreign_slice_is_named(tmp_path: Path, elements: dict[str, Any], trait: str) -> None:
    folder = write_series(tmp_path / "s")
    edit(folder / "IM96.dcm", **elements)
    assert f"another {trait} in 1 of 5 slices: IM96.dcm; leave them out" in refusal(folder)


def test_a_slice_of_another_size(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    save(make_slice(draw_slices(1, 8, 8)[0], (3, 4, 12.5)), folder / "X.dcm")
    assert "another matrix size in 1 of 6 slices: X.dcm" in refusal(folder)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing, so nothing tells where the slice lies"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient is missing"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no two unit vectors at a right angle"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "no two unit vectors at a right angle"),
        ({"PixelSpacing": ["0", "1"]}, "PixelSpacing must be above 0"),
        ({"PixelSpacing": ["1e9", "1"]}, "PixelSpacing must be above 0"),
        ({"SeriesInstanceUID": SERIES + "8"}, "2 DICOM series in the folder (#1: 4 slices CT, #2: 1 slice CT)"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    single = "SeriesInstanceUID" in elements
    changes = [elements if index == 0 or not single else {} for index in range(5)]
    assert message in refusal(write_series(tmp_path / "s", per_slice=changes))


# Multi-frame files


def test_an_enhanced_file_is_a_volume(tmp_path: Path) -> None:
    stored = draw_slices(4)
    order = [2, 0, 3, 1]
    dataset = make_enhanced(stored[order])
    groups = dataset.PerFrameFunctionalGroupsSequence
    for group, place in zip(groups, order, strict=True):
        group.PlanePositionSequence[0].ImagePositionPatient = ["3", "4", f"{2.5 * place:g}"]
    path = save(dataset, tmp_path / "s" / "a.dcm")
    for address in (path, path.parent):
        raw = dicom.read_dicom(address)
        np.testing.assert_array_equal(raw.array[0], stored - 1000)
        assert raw.array.dtype == np.int16
    grid = grid_of(path)
    assert grid.spacing_mm == pytest.approx((2.5, 0.75, 0.5))
    np.testing.assert_allclose(grid.origin_mm, [-3, -4, 0])
    assert dicom.list_series(tmp_path) == [path.parent]


def test_each_frame_has_its_own_slope(tmp_path: Path) -> None:
    stored = draw_slices(3)
    path = save(make_enhanced(stored, slopes=[1, 2, 0.5]), tmp_path / "a.dcm")
    expected = stored * np.array([1, 2, 0.5])[:, None, None] - 1000
    np.testing.assert_array_equal(dicom.read_dicom(path).array[0], expected)


def test_shared_groups_stand_for_every_frame(tmp_path: Path) -> None:
    dataset = make_enhanced(draw_slices(3))
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        shared = frame.pop("PixelValueTransformationSequence")
    dataset.SharedFunctionalGroupsSequence[0][shared.tag] = shared
    raw = dicom.read_dicom(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(raw.array[0], draw_slices(3) - 1000)


def test_several_volumes_in_one_file(tmp_path: Path) -> None:
    dataset = make_enhanced(draw_slices(6))
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = ["3", "4", f"{number // 2}"]
        frame.FrameContentSequence[0].TemporalPositionIndex = 1 + number % 2
    message = refusal(save(dataset, tmp_path / "a.dcm"))
    assert "2 volumes of 3 slices at the same places, told apart by TemporalPositionIndex" in message


def test_frames_without_groups_have_no_place(tmp_path: Path) -> None:
    dataset = make_enhanced(draw_slices(4))
    del dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence
    assert "4 frames without functional groups" in refusal(save(dataset, tmp_path / "a.dcm"))


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("PlanePositionSequence", "ImagePositionPatient is missing"),
        ("PlaneOrientationSequence", "ImageOrientationPatient is missing"),
        ("PixelMeasuresSequence", "PixelSpacing is missing"),
    ],
)
def test_a_missing_macro(tmp_path: Path, sequence: str, message: str) -> None:
    dataset = make_enhanced(draw_slices(3))
    for group in (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence):
        if sequence in group:
            delattr(group, sequence)
    assert message in refusal(save(dataset, tmp_path / "a.dcm"))


def test_as_many_groups_as_frames(tmp_path: Path) -> None:
    dataset = make_enhanced(draw_slices(3))
    dataset.PerFrameFunctionalGroupsSequence = Items(list(dataset.PerFrameFunctionalGroupsSequence)[:2])
    assert "3 frames, but functional groups for 2" in refusal(save(dataset, tmp_path / "a.dcm"))


def test_a_segmentation_is_no_image(tmp_path: Path) -> None:
    dataset: Dataset = make_enhanced(draw_slices(3))
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    assert "a DICOM segmentation is not read" in refusal(save(dataset, tmp_path / "a.dcm"))
    assert dataset.SOPClassUID != CT
