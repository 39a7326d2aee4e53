"""DICOM series written by pydicom, as scanners write them, for the tests of the reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, PET, ENHANCED_CT = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "4", "128", "2.1"))
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SERIES, STUDY, FRAME_OF_REFERENCE = "1.2.826.0.1.3680043.2.1125.1", "1.2.3", "1.2.3.4"
SECRETS = ("SECRET", "19991231", "1.2.826.0.1.3680043")
"""What must never be part of a message."""


def draw_slices(depth: int = 5, rows: int = 6, columns: int = 4, *, seed: int = 3) -> np.ndarray:
    """Noise that compresses a little, int16 (D, H, W)."""
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.add.outer(100 * np.arange(depth), 7 * np.arange(rows)), np.arange(columns))
    return (smooth + rng.integers(-9, 9, (depth, rows, columns))).astype(np.int16)


def make_slice(stored: np.ndarray, position: Sequence[float], **elements: Any) -> Dataset:
    """One classic CT slice; ``elements`` replace those of the table or, where ``None``, leave them out."""
    rows, columns = stored.shape
    dataset = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": CT,
        "SOPInstanceUID": generate_uid(),
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyDate": "19991231",
        "SeriesDate": "19991231",
        "Modality": "CT",
        "PatientName": "Secret^Name",
        "PatientID": "SECRET-ID",
        "PatientBirthDate": "19991231",
        "SeriesDescription": "SECRET",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SeriesNumber": "2",
        "FrameOfReferenceUID": FRAME_OF_REFERENCE,
        "ImagePositionPatient": [f"{number:.10g}" for number in position],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": ["0.75", "0.5"],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 8 * stored.dtype.itemsize,
        "BitsStored": 8 * stored.dtype.itemsize,
        "HighBit": 8 * stored.dtype.itemsize - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
    }
    for keyword, value in (values | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = stored.tobytes() + bytes(stored.nbytes % 2)
    dataset["PixelData"].VR = "OW" if stored.dtype.itemsize > 1 else "OB"
    return dataset


def save(dataset: Dataset, path: Path, *, syntax: str = ExplicitVRLittleEndian, big_endian: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if big_endian:
        size = dataset.BitsAllocated // 8
        dataset.PixelData = np.frombuffer(dataset.PixelData, f"<u{size}").byteswap().tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    stored: np.ndarray | None = None,
    *,
    depths: Sequence[float] | None = None,
    tilt: float = 0.0,
    per_slice: Sequence[dict[str, Any]] = (),
    prefix: str = "IM",
    **elements: Any,
) -> Path:
    """Write a CT series whose file names run against the positions."""
    stored = draw_slices(5 if depths is None else len(depths)) if stored is None else stored
    depths = 2.5 * np.arange(len(stored)) if depths is None else depths
    for number, (voxels, z) in enumerate(zip(stored, depths, strict=True)):
        own = elements | (per_slice[number] if per_slice else {})
        own.setdefault("ImagePositionPatient", [3.0, 4.0 + tilt * z, float(z)])
        save(make_slice(voxels, (0, 0, 0), **own), folder / f"{prefix}{99 - number:02d}.dcm")
    return folder


def edit(path: Path, **elements: Any) -> Path:
    """Change elements of a file, or leave them out (``None``)."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def make_enhanced(stored: np.ndarray, *, step: float = 2.5, slopes: Sequence[float] | None = None) -> Dataset:
    """An Enhanced CT file: places for each frame, spacing and orientation shared by all."""
    dataset = make_slice(stored[0], (0, 0, 0), SOPClassUID=ENHANCED_CT)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(dataset, keyword)
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([_dataset(PixelSpacing=["0.75", "0.5"], SliceThickness="2.5")])
    shared.PlaneOrientationSequence = Items([_dataset(ImageOrientationPatient=list(AXIAL))])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for number in range(len(stored)):
        frame = Dataset()
        frame.PlanePositionSequence = Items([_dataset(ImagePositionPatient=["3", "4", f"{step * number:g}"])])
        frame.FrameContentSequence = Items([_dataset(FrameAcquisitionNumber=1)])
        slope = f"{slopes[number]:g}" if slopes is not None else "1"
        frame.PixelValueTransformationSequence = Items(
            [_dataset(RescaleSlope=slope, RescaleIntercept="-1000", RescaleType="HU")]
        )
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.NumberOfFrames = len(stored)
    dataset.PixelData = stored.tobytes()
    return dataset


def _dataset(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
