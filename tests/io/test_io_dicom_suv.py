"""SUV by body weight against values worked out by hand; every element that is missing is named, none is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writing import PET, draw_slices, edit, make_enhanced, save, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from test_io_dicom import refusal

from medi3d.io import dicom

HALF_LIFE = 6586.2
DOSE, WEIGHT = 370e6, 74.0


def isotope(**elements: Any) -> Items:
    item = Dataset()
    values = {
        "RadiopharmaceuticalStartTime": "100000",
        "RadionuclideTotalDose": f"{DOSE:.0f}",
        "RadionuclideHalfLife": str(HALF_LIFE),
    }
    for keyword, value in (values | elements).items():
        if value is not None:
            setattr(item, keyword, value)
    return Items([item])


def write_pet(folder: Path, *, stored: np.ndarray | None = None, **elements: Any) -> Path:
    values: dict[str, Any] = {
        "SOPClassUID": PET,
        "Modality": "PT",
        "Units": "BQML",
        "CorrectedImage": ["NORM", "ATTN", "DECY", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": str(WEIGHT),
        "SeriesTime": "110000",
        "AcquisitionDate": "19991231",
        "AcquisitionTime": "110500.25",
        "RescaleSlope": "2.5",
        "RadiopharmaceuticalInformationSequence": isotope(),
    }
    return write_series(folder, stored, **(values | elements))


def suv_of(folder: Path) -> np.ndarray:
    raw = dicom.read_dicom(folder, quantity="suv")
    assert raw.array.dtype == dicom.read_dicom_header(folder, quantity="suv").dtype == np.float32
    return raw.array[0]


def test_an_hour_after_the_injection(tmp_path: Path) -> None:
    folder = write_pet(tmp_path / "s")
    # 10:00 → 11:00: the dose of 370 MBq is down by 2^(-3600 / 6586.2) = 0.684633
    factor = 74_000 / (370e6 * 0.684633)
    np.testing.assert_allclose(suv_of(folder), draw_slices() * 2.5 * factor, rtol=1e-5)
    np.testing.assert_allclose(dicom.read_dicom(folder).array[0], draw_slices() * 2.5)


def left(seconds: float) -> float:
    return DOSE * math.exp(-math.log(2) * seconds / HALF_LIFE)


@pytest.mark.parametrize(
    ("elements", "dose"),
    [
        ({"DecayCorrection": "ADMIN"}, DOSE),
        ({"SeriesTime": "000500", "AcquisitionTime": "001000",
          "RadiopharmaceuticalInformationSequence": isotope(RadiopharmaceuticalStartTime="230500")}, left(3600)),
        ({"RadiopharmaceuticalInformationSequence": isotope(
            RadiopharmaceuticalStartTime=None, RadiopharmaceuticalStartDateTime="19991231093000.5+0100")},
         left(5399.5)),
        ({"RadiopharmaceuticalInformationSequence": isotope(RadiopharmaceuticalStartDateTime="19991230110000")},
         left(86400)),
        ({"AcquisitionDate": None, "AcquisitionTime": None, "AcquisitionDateTime": "19991231110001"}, left(3600)),
        # a series made afterwards: frame of 600 s from 11:00 on, Frame Reference Time 100 s after the start of the scan
        ({"SeriesTime": "180000", "AcquisitionTime": "110000", "FrameReferenceTime": "400000",
          "ActualFrameDuration": "600000"}, left(3600 - 400 + 298.421)),
    ],
)  # fmt: skip
def test_times(tmp_path: Path, elements: dict[str, Any], dose: float) -> None:
    expected = draw_slices() * 2.5 * WEIGHT * 1000 / dose
    np.testing.assert_allclose(suv_of(write_pet(tmp_path / "s", **elements)), expected, rtol=2e-6)


def private(folder: Path, group: int, creator: str, element: int, kind: str, value: str) -> Path:
    import pydicom

    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.private_block(group, creator, create=True).add_new(element, kind, value)
        dataset.save_as(path)
    return folder


def test_scan_time_of_ge(tmp_path: Path) -> None:
    folder = write_pet(tmp_path / "s", SeriesTime="180000")
    private(folder, 0x0009, "GEMS_PETD_01", 0x0D, "DT", "19991231103000.00")
    np.testing.assert_allclose(suv_of(folder), draw_slices() * 2.5 * WEIGHT * 1000 / left(1800), rtol=1e-6)


@pytest.mark.parametrize(
    ("element", "value", "factor"), [(0x00, "0.0004", 0.0004), (0x09, "1.5", 1.5 * WEIGHT * 1000 / left(3600))]
)
def test_counts_of_philips(tmp_path: Path, element: int, value: str, factor: float) -> None:
    folder = write_pet(tmp_path / "s", Units="CNTS")
    assert "Units CNTS without Philips' factor (7053,1000) or (7053,1009)" in refusal(folder, quantity="suv")
    private(folder, 0x7053, "Philips PET Private Group", element, "DS", value)
    np.testing.assert_allclose(suv_of(folder), draw_slices() * 2.5 * factor, rtol=1e-6)


def test_a_private_factor_of_another_creator_does_not_count(tmp_path: Path) -> None:
    folder = private(write_pet(tmp_path / "s", Units="CNTS"), 0x7053, "Somebody", 0x00, "DS", "0.0004")
    assert "counts give no SUV" in refusal(folder, quantity="suv")


@pytest.mark.parametrize("kind", [None, "BW"])
def test_values_that_are_suv_already(tmp_path: Path, kind: str | None) -> None:
    folder = write_pet(tmp_path / "s", Units="GML", SUVType=kind, PatientWeight=None)
    np.testing.assert_allclose(suv_of(folder), draw_slices() * 2.5)


def refused(tmp_path: Path, **elements: Any) -> str:
    return refusal(write_pet(tmp_path / "s", **elements), quantity="suv")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom, writing it
@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PatientWeight": None}, "PatientWeight is missing, which SUV needs"),
        ({"PatientWeight": "0"}, "PatientWeight must be above 0"),
        ({"Units": None}, "SUV needs Units BQML, CNTS, GML"),
        ({"Units": "PROPCNTS"}, "SUV needs Units BQML, CNTS, GML"),
        ({"Units": "GML", "SUVType": "LBM"}, "SUVType is not BW"),
        ({"CorrectedImage": ["DECY"]}, "CorrectedImage must hold ATTN and DECY"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection must be START or ADMIN"),
        ({"DecayCorrection": None}, "DecayCorrection must be START or ADMIN"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "needs a PET series"),
        ({"SeriesTime": None}, "SeriesTime is missing"),
        ({"SeriesDate": None}, "SeriesTime or its date is missing"),
        ({"SeriesTime": "1x0000"}, "SeriesTime is unreadable"),
        ({"SeriesTime": "256161"}, "SeriesTime is unreadable"),
        ({"AcquisitionTime": None}, "AcquisitionDateTime is missing"),
        ({"SeriesTime": "180000"}, "ActualFrameDuration is missing"),
        ({"SeriesTime": "180000", "ActualFrameDuration": "1000"}, "FrameReferenceTime is missing"),
        ({"RadiopharmaceuticalInformationSequence": None}, "RadiopharmaceuticalInformationSequence must hold one item"),
        ({"RadiopharmaceuticalInformationSequence": Items([*isotope(), *isotope()])}, "must hold one item"),
        ({"RadiopharmaceuticalInformationSequence": isotope(RadionuclideTotalDose=None)},
         "RadionuclideTotalDose is missing"),
        ({"RadiopharmaceuticalInformationSequence": isotope(RadionuclideHalfLife=None)},
         "RadionuclideHalfLife is missing"),
        ({"RadiopharmaceuticalInformationSequence": isotope(RadiopharmaceuticalStartTime=None)},
         "RadiopharmaceuticalStartTime is missing"),
        ({"RadiopharmaceuticalInformationSequence": isotope(RadiopharmaceuticalStartDateTime="19991231120000")},
         "the injection must be at most two days before the scan"),
        ({"RadiopharmaceuticalInformationSequence": isotope(RadiopharmaceuticalStartDateTime="19991201120000")},
         "the injection must be at most two days before the scan"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    # a weight that is odd enough to be looked for in the message
    told = refused(tmp_path, **({"PatientWeight": "83.71"} | elements))
    assert message in told
    assert "83.71" not in told


def test_one_slice_without_units(tmp_path: Path) -> None:
    folder = write_pet(tmp_path / "s")
    edit(folder / "IM97.dcm", Units="CNTS")
    assert "the same in all slices" in refusal(folder, quantity="suv")


def test_an_enhanced_file_gives_no_suv(tmp_path: Path) -> None:
    path = save(make_enhanced(draw_slices(3)), tmp_path / "a.dcm")
    assert "needs a PET series of one file a slice" in refusal(path, quantity="suv")
