"""Identifiers planted wherever a raw file, its name or its table can hold them come out nowhere: store, page, log."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import yaml
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medi3d import io
from medi3d.volume import LabelMap

NEEDLE = "Xq7PLANT"
DATE = "19470203"
UID = "1.2.826.0.1.3680043.8.498.777777"
SHAPE = (6, 14, 12)

TASK = {
    "name": "private",
    "kind": "segmentation",
    "data": {
        "layout": "csv",
        "channels": ["CT"],
        "labels": {1: "lesion"},
        "hash_case_ids": True,
        "columns": {"images": ["image"], "label": "mask"},
    },
}


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-200, 300, SHAPE).astype("int16")


def write_dicom(folder: Path) -> Path:
    folder.mkdir(parents=True)
    series, study = f"{UID}.1", f"{UID}.2"
    for number, stored in enumerate(draw(1)):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID, slice_.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid(prefix=f"{UID}.")
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.FrameOfReferenceUID = series, study, f"{UID}.3"
        slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "CT", 1, number + 1
        slice_.PatientName, slice_.PatientID = f"{NEEDLE}^Name", f"{NEEDLE}-id"
        slice_.PatientBirthDate = slice_.StudyDate = slice_.SeriesDate = slice_.AcquisitionDate = DATE
        slice_.AccessionNumber, slice_.InstitutionName = f"{NEEDLE}acc", f"{NEEDLE} hospital"
        slice_.ReferringPhysicianName = slice_.OperatorsName = f"{NEEDLE}^Doctor"
        slice_.StudyDescription = slice_.SeriesDescription = slice_.PatientComments = f"{NEEDLE} remark"
        slice_.private_block(0x0099, NEEDLE, create=True).add_new(0x01, "LO", f"{NEEDLE} private")
        slice_.Rows, slice_.Columns = stored.shape
        slice_.PixelSpacing, slice_.SliceThickness = ["0.8", "0.8"], "2.5"
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 2.5 * number], [1, 0, 0, 0, 1, 0]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = "1", "0"
        slice_.PixelData = stored.tobytes()
        slice_.save_as(folder / f"{NEEDLE}_{number}.dcm", enforce_file_format=True)
    return folder


def write_nifti(path: Path, seed: int = 2) -> Path:
    image = nib.Nifti1Image(draw(seed).transpose(2, 1, 0), np.diag([0.8, 0.8, 2.5, 1]))
    image.header["descrip"] = f"{NEEDLE} descrip".encode()
    image.header["aux_file"] = f"{NEEDLE} aux".encode()
    image.header["db_name"] = NEEDLE.encode()
    image.header["intent_name"] = NEEDLE.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{NEEDLE} born {DATE}".encode()))
    image.to_filename(path)
    return path


def write_sitk(path: Path, seed: int) -> Path:
    image = sitk.GetImageFromArray(draw(seed))
    image.SetSpacing([0.8, 0.8, 2.5])
    image.SetMetaData("PatientName" if path.suffix == ".nrrd" else "Comment", f"{NEEDLE} {DATE}")
    sitk.WriteImage(image, str(path))
    assert NEEDLE.encode() in path.read_bytes()
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Five cases; the last one is damaged, so that a problem is told of it."""
    folder = tmp_path / f"{NEEDLE}_study"
    images = [
        write_dicom(folder / f"{NEEDLE}_dicom"),
        write_nifti(folder / f"{NEEDLE}_1.nii.gz"),
        write_sitk(folder / f"{NEEDLE}_2.nrrd", 3),
        write_sitk(folder / f"{NEEDLE}_3.mha", 4),
        write_nifti(folder / f"{NEEDLE}_4.nii.gz", seed=5),
    ]
    images[-1].write_bytes(images[-1].read_bytes()[:-30])
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case_id", "patient_id", "image", "mask", "remark"])
        for number, image in enumerate(images):
            grid = io.read_header(image).grid
            mask = np.zeros((1, *grid.shape), "uint8")
            mask[0, 2:4, 3:7, 4:8] = 1
            name = f"{NEEDLE}_mask_{number}.nii.gz"
            io.write_label_map(LabelMap(mask, grid.affine), folder / name)
            writer.writerow([f"{NEEDLE}-case-{number}", f"{NEEDLE} {DATE}", image.name, name, f"{NEEDLE} seen {DATE}"])
    return folder


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_identifier_gets_through(raw: Path, tmp_path: Path, workers: str) -> None:
    task = tmp_path / "private.yaml"
    task.write_text(yaml.safe_dump(TASK))
    store = tmp_path / "store"
    code = "import logging; logging.basicConfig(level=logging.DEBUG); from medi3d.cli.main import run; run()"
    arguments = ["preprocess", "--task", str(task), "--data", str(raw), "--output", str(store), "--workers", workers]
    answer = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=120, check=False)
    assert answer.returncode == 1, answer.stderr.decode()[-2000:]
    assert answer.stdout.decode().count("problem: ") == 1

    files = [path for path in store.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name == "case.json"]) == 4
    assert {"dataset.json", "fingerprint.json", "quality.json", "quality.html"} <= {path.name for path in files}
    kept = {str(path.relative_to(store)): str(path.relative_to(store)).encode() + path.read_bytes() for path in files}
    kept["the log"] = answer.stderr
    for path in store.rglob("*.b2nd"):
        array = blosc2.open(str(path), mode="r")
        kept[f"metadata of {path.name}"] = repr(array.schunk.vlmeta.getall()).encode()
    for place, content in kept.items():
        for secret in (NEEDLE, NEEDLE.lower(), DATE, "1947-02-03", UID):
            assert secret.encode() not in content, f"{secret} in {place}"


def test_the_console_names_the_file_to_mend(raw: Path, tmp_path: Path) -> None:
    task = tmp_path / "private.yaml"
    task.write_text(yaml.safe_dump(TASK))
    command = [str(Path(sys.executable).with_name("medi3d")), "preprocess", "--task", str(task), "--data", str(raw)]
    answer = subprocess.run(
        [*command, "--output", str(tmp_path / "s")], capture_output=True, encoding="utf-8", check=False
    )
    problem = next(line for line in answer.stdout.splitlines() if line.startswith("problem: "))
    assert f"{NEEDLE}_4.nii.gz" in problem
    assert f"{NEEDLE}-case" not in problem.split(":")[1]
