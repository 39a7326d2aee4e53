"""Damaged DICOM files: an error of ours, or the right volume, or a difference that nothing in the format could tell.

Each encoding is damaged in a process of its own, so that a decoder that crashes or hangs is noticed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_files

from medi3d.errors import InputError
from medi3d.io import dicom

COUNT = 96
ENCODINGS = [
    "plain", "implicit", "rle", "JPEG", "jpeg_ls", "JPEG2000", "frames_plain", "frames_rle", "frames_JPEG2000",
]  # fmt: skip

READABLE = {
    "CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "MR_small.dcm", "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm",
    "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "image_dfl.dcm", "examples_overlay.dcm",
    "rtdose_1frame.dcm", "rtdose_expb_1frame.dcm", "rtdose_rle_1frame.dcm",
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_damaged_files(encoding: str, tmp_path: Path) -> None:
    program = Path(__file__).with_name("dicom_fuzzing.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), encoding, str(COUNT), str(tmp_path)],
        capture_output=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    assert sum(result["outcomes"].values()) == COUNT
    assert result["outcomes"]["refused"] > COUNT / 4


def local_test_files() -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(Path(name) for name in get_testdata_files() if Path(name).is_file())


@pytest.mark.parametrize("path", local_test_files(), ids=lambda path: path.name)
def test_pydicom_files(path: Path) -> None:
    """Single slices, reports, plans, colours, videos and broken files: none is a volume, and each is told so."""
    with pytest.raises(InputError, match=re.escape(str(path))):
        dicom.read_dicom(path)


@pytest.mark.parametrize("path", [path for path in local_test_files() if path.suffix == ".dcm"], ids=lambda p: p.name)
def test_pydicom_images_as_a_series(path: Path, tmp_path: Path) -> None:
    """Each grey image twice, at two places, as other encoders wrote it: as pydicom and its plug-ins read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        for index in range(2):
            dataset.ImagePositionPatient = [0, 0, 3 * index]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.PixelSpacing = [1, 1]
            dataset.SOPInstanceUID = f"1.2.3.{index}"
            try:
                dataset.save_as(tmp_path / f"{index}.dcm")
            except (AttributeError, ValueError, TypeError):
                pytest.skip("pydicom cannot write it again")
    try:
        raw = dicom.read_dicom(tmp_path)
    except InputError as error:
        assert path.name not in READABLE, error  # noqa: PT017
        return
    assert path.name in READABLE
    expected = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    np.testing.assert_array_equal(raw.array[0], np.stack([expected] * 2))
