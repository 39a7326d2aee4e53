"""Everything that is known to go wrong with a hospital's files, in one raw folder: each case is left out by name."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from typer.testing import CliRunner

from medi3d.cli.main import app
from medi3d.io import PreparedStore

SHAPE = (12, 10, 9)
AFFINE = np.array([[-0.9, 0, 0, 30], [0, 1.1, 0, -20], [0, 0, 1.4, 10], [0, 0, 0, 1.0]])
TASK = """
name: mixed
kind: segmentation
description: every defect
data: {layout: msd, channels: [T1], labels: {1: front, 2: back}}
preprocess: {spacing_mm: 1.0, normalize: [mr]}
"""
GOOD = ("good", "name with spaces", "größe_肝臓", "-leading-dash")


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)


def labels() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[3:9, 2:5, 2:7], array[3:9, 5:8, 2:7] = 1, 2
    return array


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(array, affine)


class Case:
    """Writes the image and the label map of one case; a defect changes either."""

    def __init__(self, root: Path, name: str) -> None:
        self.image = root / "imagesTr" / f"{name}.nii.gz"
        self.label = root / "labelsTr" / f"{name}.nii.gz"
        nib.save(nifti(voxels()), self.image)
        nib.save(nifti(labels()), self.label)

    def set_image(self, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
        nib.save(nifti(array, affine), self.image)

    def set_label(self, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
        nib.save(nifti(array, affine), self.label)

    def patch_header(self, **fields: object) -> None:
        """Change header fields behind nibabel's back, which mends some of them on writing."""
        content = bytearray(gzip.decompress(self.image.read_bytes()))
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for field, value in fields.items():
            header.structarr[field] = value
        content[:348] = header.binaryblock
        self.image.write_bytes(gzip.compress(bytes(content)))


def with_value(value: float, count: int = 3) -> np.ndarray:
    array = voxels().astype(np.float32)
    array.reshape(-1)[40 : 40 + count] = value
    return array


def moved(**entries: float) -> np.ndarray:
    affine = AFFINE.copy()
    for key, value in entries.items():
        affine[int(key[1]), int(key[2])] = value
    return affine


def truncate(case: Case) -> None:
    content = case.image.read_bytes()
    case.image.write_bytes(content[: len(content) // 3])


def flip_byte(case: Case) -> None:
    content = bytearray(case.image.read_bytes())
    content[len(content) // 2] ^= 0x10
    case.image.write_bytes(bytes(content))


def colour(case: Case) -> None:
    array = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nifti(array), case.image)


def disagree(case: Case) -> None:
    image = nifti(voxels())
    image.set_sform(AFFINE, code=1)
    image.set_qform(moved(a03=55.0), code=1)
    nib.save(image, case.image)


def twin(case: Case) -> None:
    nib.save(nifti(voxels()[::-1]), case.image.with_suffix(""))


def link_to_itself(case: Case) -> None:
    case.image.unlink()
    case.image.symlink_to(case.image.name)


def forbid(case: Case) -> None:
    case.image.chmod(0)


def slices(folder: Path, positions: list[float], **more: object) -> None:
    """Write a small CT series; ``more`` maps attribute names to one value a slice."""
    folder.mkdir()
    study, frame, series = generate_uid(), generate_uid(), generate_uid()
    for number, position in enumerate(positions):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID, data.Modality = CTImageStorage, generate_uid(), "CT"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.SeriesNumber, data.InstanceNumber = 3, number + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, position], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [1.0, 1.0], 2.0
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 8, 7, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        for name, values in more.items():
            setattr(data, name, values[number])  # type: ignore[index]
        shape = (data.Rows, data.Columns)
        data.PixelData = np.random.default_rng(number).integers(0, 2000, shape).astype("<i2").tobytes()
        data.save_as(folder / f"slice{number:03d}.dcm", enforce_file_format=True)


def series(positions: list[float], **more: object) -> Callable[[Case], None]:
    def write(case: Case) -> None:
        case.image.unlink()
        slices(case.image.with_name(case.image.name.removesuffix(".nii.gz")), positions, **more)

    return write


def header(**fields: object) -> Callable[[Case], None]:
    return lambda case: case.patch_header(**fields)


SIDEWAYS = [1, 0, 0, 0, 0, -1]
DEFECTS: dict[str, tuple[Callable[[Case], object], str]] = {
    "no_label": (lambda case: case.label.unlink(), "has no label"),
    "label_of_another_shape": (lambda case: case.set_label(labels()[:-1]), "shapes .* disagree"),
    "label_elsewhere": (lambda case: case.set_label(labels(), moved(a03=34.0)), "affines disagree.*4.00 mm apart"),
    "label_mirrored": (lambda case: case.set_label(labels(), moved(a00=0.9)), "affines disagree"),
    "label_undeclared": (lambda case: case.set_label(labels() * 3), "unknown label values 3, 6"),
    "label_interpolated": (lambda case: case.set_label(labels() * np.float32(0.7)), "not whole numbers"),
    "label_empty": (lambda case: case.set_label(labels() * 0), "all background"),
    "constant": (lambda case: case.set_image(voxels() * 0 + 7), "same value|constant"),
    "all_nan": (lambda case: case.set_image(with_value(np.nan, voxels().size)), "(all|every).* NaN"),
    "some_nan": (lambda case: case.set_image(with_value(np.nan)), "3 of 1080 voxels are NaN"),
    "infinite": (lambda case: case.set_image(with_value(-np.inf, 2)), "2 of 1080 voxels are .*infinite"),
    "colour": (colour, "colou?r|real numbers"),
    "complex": (lambda case: case.set_image(voxels().astype(np.complex64)), "complex|real numbers"),
    "gzip_cut": (truncate, "gzip|cut short"),
    "gzip_flipped": (flip_byte, "gzip"),
    "zero_bytes": (lambda case: case.image.write_bytes(b""), "empty"),
    "text": (lambda case: case.image.write_text("Dear colleague, the scan is attached.\n" * 20), "gzip|not a NIfTI"),
    "gzipped_text": (lambda case: case.image.write_bytes(gzip.compress(b"not an image " * 99)), "not a NIfTI"),
    "spacing_zero": (header(pixdim=[1, 1, 0, 1, 0, 0, 0, 0], sform_code=0, qform_code=1), "spacing|voxel size"),
    "spacing_negative": (header(pixdim=[1, 1, -2, 1, 0, 0, 0, 0], sform_code=0, qform_code=1), "spacing|voxel size"),
    "spacing_absurd": (lambda case: case.set_image(voxels(), np.diag([1e7, 1, 1, 1])), "spacing|voxel size"),
    "affine_singular": (header(srow_x=[0, 0, 0, 0], qform_code=0), "singular|invertible|spacing"),
    "affine_not_finite": (header(srow_y=[0, np.nan, 0, 0], qform_code=0), "finite"),
    "forms_disagree": (disagree, "sform.*qform|qform.*sform"),
    "two_dimensions": (lambda case: case.set_image(voxels()[:, :, 0]), "2-D|two"),
    "one_slice": (lambda case: case.set_image(voxels()[:, :, :1]), "one slice|single slice"),
    "five_dimensions": (lambda case: case.set_image(np.zeros((*SHAPE, 2, 3), np.int16)), "5-D|channels"),
    "twin": (twin, "twin|side by side|both|beside|called"),
    "link_loop": (link_to_itself, "a symbolic link that leads back to itself"),
    "forbidden": (forbid, "[Pp]ermission|not allowed|may not be read"),
    "series_with_gap": (series([0, 2, 4, 8, 10]), "gap|missing"),
    "series_of_two_acquisitions": (series([0, 2, 4, 0, 2, 4], AcquisitionNumber=[1, 1, 1, 2, 2, 2]), "acquisition"),
    "series_with_foreign_slice": (
        series([0, 2, 4, 6], ImageOrientationPatient=[[1, 0, 0, 0, 1, 0]] * 3 + [SIDEWAYS]),
        "parallel|orientation|foreign",
    ),
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    root = tmp_path_factory.mktemp("raw")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for name in GOOD:
        Case(root, name)
    for name, (spoil, _) in DEFECTS.items():
        spoil(Case(root, name))
    (root / "task.yaml").write_text(TASK, encoding="utf-8")
    store = tmp_path_factory.mktemp("store")
    arguments = ["preprocess", "--task", str(root / "task.yaml"), "--data", str(root), "--output", str(store)]
    result = CliRunner().invoke(app, [*arguments, "--workers", "1"])
    return result.exit_code, result.output, store


def test_the_good_cases_are_prepared_and_the_run_says_that_others_were_not(outcome: tuple[int, str, Path]) -> None:
    code, output, store = outcome
    assert code == 1, output
    expected = sorted([*GOOD, "forbidden"] if os.geteuid() == 0 else GOOD)
    assert sorted(case.case_id for case in PreparedStore(store).cases()) == expected
    assert "Traceback" not in output


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_named(outcome: tuple[int, str, Path], name: str) -> None:
    if name == "forbidden" and os.geteuid() == 0:
        pytest.skip("root reads every file")
    lines = [line for line in outcome[1].splitlines() if line.startswith(f"problem: {name}: ")]
    assert len(lines) == 1, outcome[1]
    assert re.search(DEFECTS[name][1], lines[0]), lines[0]
    assert "unexpected" not in lines[0], lines[0]
    assert len(lines[0]) < 500
