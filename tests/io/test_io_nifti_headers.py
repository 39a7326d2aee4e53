from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volume_writing import change_header

from medi3d import io
from medi3d.errors import InputError

# (i, j, k) → RAS: unequal spacing, flipped and oblique
AFFINE = np.array([[-0.7, 0.1, 0.0, 12.0], [0.1, 0.9, 0.2, -30.0], [0.0, -0.15, 2.5, 7.0], [0, 0, 0, 1]])
SHAPE = (7, 6, 5)  # (i, j, k)


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def ramp(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# --- headers that cannot be right, each with its own message


def pixdim(*spacing: float, mirror: float = 1.0) -> list[float]:
    return [mirror, *spacing, 0, 0, 0, 0]


TURNED = np.array([[-0.7, 0.1, 0.0, 12.0], [0.1, 0.7, 0.0, -30.0], [0.0, 0.0, 2.5, 7.0]])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixdim": pixdim(0, 1, 1)}, r"spacing of the header \(pixdim\) is 1 x 1 x 0 mm; expected 0.001 to 100 mm"),
        ({"pixdim": pixdim(1, -1, 1)}, "is it zero, negative, or in another unit"),
        ({"pixdim": pixdim(1, np.nan, 1)}, "is it zero, negative, or in another unit"),
        ({"pixdim": pixdim(500, 500, 500)}, "is it zero, negative, or in another unit"),
        (
            {"pixdim": pixdim(1, 1, 1), "qform_code": 0},
            r"the spacing of the sform.*and of the header \(pixdim\).*disagree",
        ),
        (
            {"sform_code": 0, "qform_code": 0},
            "neither sform nor qform is set, so left, right, front and back are not known",
        ),
        ({"srow_x": [0, 0, 0, 0]}, "is it zero, negative|the sform is singular"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "the sform holds NaN or infinity"),
        ({"srow_y": [0, 1, 0, np.inf]}, "the sform holds NaN or infinity"),
        ({"qoffset_x": np.inf, "sform_code": 0}, "the qform holds NaN or infinity"),
        ({"qoffset_x": 1e9, "sform_code": 0}, "the qform puts the image over 100 m from its origin"),
        ({"quatern_b": 5.0}, r"damaged qform: quaternion \(5, "),
        ({"quatern_c": np.nan, "sform_code": 0}, "damaged qform: quaternion"),
        ({"pixdim": pixdim(1, 1, 1, mirror=3.0)}, r"pixdim\[0\] 3"),
        ({"qoffset_x": 40.0}, r"sform \(code 1: 2.5 x .* origin .*\) and qform \(code 1: .*\) disagree"),
        ({"quatern_b": 0.1, "quatern_c": 0.2}, "and qform .* disagree, and programs choose differently"),
        ({"sform_code": -1}, "sform and qform code -1, 1"),
        ({"sform_code": 9}, "sform and qform code 9, 1"),
        ({"xyzt_units": 5}, "unit of length 5; expected 0 to 3"),
        ({"xyzt_units": 1}, "is it zero, negative, or in another unit"),
        ({"datatype": 77}, "data type 77"),
        ({"datatype": 32, "bitpix": 64}, "voxels must be real numbers, got complex numbers"),
        ({"datatype": 128, "bitpix": 24}, "voxels must be real numbers, got RGB colours"),
        ({"datatype": 2304, "bitpix": 32}, "voxels must be real numbers, got RGBA colours"),
        ({"intent_code": 2003}, "voxels must be real numbers, got RGB colours"),
        ({"datatype": 1536, "bitpix": 128}, "got 128-bit floats"),
        ({"bitpix": 8}, "8 bits a voxel .* its data type is int16"),
        ({"dim": [3, 7, 6, -5, 1, 1, 1, 1]}, r"dimensions \[3, 7, 6, -5"),
        ({"dim": [8, 7, 6, 5, 1, 1, 1, 1]}, r"dimensions \[8, "),
        ({"dim": [2, 7, 30, 1, 1, 1, 1, 1]}, r"a 2-D image \(7 x 30\)"),
        ({"dim": [3, 7, 30, 1, 1, 1, 1, 1]}, r"one slice \(7 x 30 x 1 voxels\)"),
        ({"dim": [5, 7, 3, 2, 2, 2, 1, 1]}, r"a 5-D image \(7 x 3 x 2 x 2 x 2\); at most one axis"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "cut short: the header tells of 703623019"),
        ({"vox_offset": 100}, "voxels begin at byte 100"),
        ({"vox_offset": 2**30}, "cut short: the header tells of"),
        ({"vox_offset": 544 + 352}, "cut short: the header tells of"),
        ({"magic": b"x"}, "no NIfTI mark in its header: an Analyze file"),
        ({"magic": b"ni1"}, "(its header says that it is the header of a pair; name it .hdr and .img|no NIfTI mark)"),
    ],
)
def test_headers_that_cannot_be_right(tmp_path: Path, kind: type, changes: dict[str, object], message: str) -> None:
    image = kind(ramp(), np.vstack([TURNED, [0, 0, 0, 1]]))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.to_filename(tmp_path / "a.nii")
    io.read_header(tmp_path / "a.nii")
    change_header(tmp_path / "a.nii", **changes)
    for read in (io.read_header, io.read_volume, io.read_label_map):
        with pytest.raises(InputError, match=rf"a\.nii: .*{message}"):
            read(tmp_path / "a.nii")


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_one_form_alone_is_used(tmp_path: Path, form: str) -> None:
    image = nib.Nifti1Image(ramp(), np.vstack([TURNED, [0, 0, 0, 1]]))
    getattr(image, f"set_{form}")(image.affine, 2)
    getattr(image, f"set_{'qform' if form == 'sform' else 'sform'}")(None, 0)
    image.to_filename(tmp_path / "a.nii")
    affine = io.read_volume(tmp_path / "a.nii").affine
    np.testing.assert_allclose(affine[:, [2, 1, 0, 3]], nib.load(tmp_path / "a.nii").affine, atol=1e-6)
    np.testing.assert_allclose(affine[:3, [2, 1, 0, 3]], TURNED, atol=1e-3)  # a quaternion's precision near half a turn


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rotation=st.tuples(*[st.floats(-3.2, 3.2)] * 3),
    spacing=st.tuples(*[st.floats(0.01, 20)] * 3),
    mirror=st.sampled_from([-1, 1]),
)
def test_the_quaternion_is_read_as_nibabel_reads_it(
    tmp_path: Path, rotation: tuple[float, ...], spacing: tuple[float, ...], mirror: int
) -> None:
    turned = sitk.Euler3DTransform((0, 0, 0), *rotation)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(turned.GetMatrix(), (3, 3)) * spacing * [1, 1, mirror]
    affine[:3, 3] = 11, -22, 33
    image = nib.Nifti1Image(ramp(), None)
    image.set_qform(affine, 1)
    image.to_filename(tmp_path / "a.nii")
    found = io.read_header(tmp_path / "a.nii").grid.affine[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(found, nib.load(tmp_path / "a.nii").affine, atol=1e-5)
    image.set_sform(affine, 1)
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(io.read_header(tmp_path / "a.nii").grid.affine[:, [2, 1, 0, 3]], affine, atol=1e-5)


def test_programs_place_an_image_without_forms_differently(tmp_path: Path) -> None:
    """This is why medi3d refuses it."""
    image = nib.Nifti1Image(ramp(), None)
    image.to_filename(tmp_path / "a.nii")
    nibabels = nib.load(tmp_path / "a.nii").affine
    itks = io.from_sitk(sitk.ReadImage(str(tmp_path / "a.nii"))).affine[:, [2, 1, 0, 3]]
    assert np.sign(nibabels[1, 1]) != np.sign(itks[1, 1])
    with pytest.raises(InputError, match=r"set the right affine, for example with nibabel's image\.set_sform"):
        io.read_header(tmp_path / "a.nii")


# --- twins and pairs


@pytest.mark.parametrize(
    ("first", "second"),
    [("x.nii", "x.nii.gz"), ("x.nii.gz", "x.nii"), ("x.nii", "x.hdr"), ("x.hdr", "x.nii.gz"), ("x.img", "x.nii")],
)
def test_twins_are_refused(tmp_path: Path, first: str, second: str) -> None:
    for name, shift in ((first, 0), (second, 9)):
        kind = nib.Nifti1Image if ".nii" in name else nib.Nifti1Pair
        nib.save(kind(ramp() + np.int16(shift), AFFINE), tmp_path / name)
    for read in (io.read_header, io.read_volume, io.read_label_map, io.source_files):
        with pytest.raises(InputError, match=rf"{first}: x\.nii.* and x\..* lie side by side.*keep one of them"):
            read(tmp_path / first)


def test_the_defect_that_twins_lead_to(tmp_path: Path) -> None:
    """SimpleITK takes the voxels of ``x.nii`` for ``x.nii.gz`` (InsightSoftwareConsortium/ITK#2243)."""
    write(tmp_path / "x.nii.gz", ramp(), np.eye(4))
    write(tmp_path / "x.nii", ramp() + np.int16(9), np.eye(4))
    if np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "x.nii.gz"))).T, ramp()):
        pytest.skip("this SimpleITK has mended it")
    with pytest.raises(InputError, match="lie side by side"):
        io.read_volume(tmp_path / "x.nii.gz")


def test_a_doubled_half_of_a_pair_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(ramp(), AFFINE), tmp_path / "x.hdr")
    (tmp_path / "x.img.gz").write_bytes(gzip.compress((tmp_path / "x.img").read_bytes()))
    with pytest.raises(InputError, match=r"x\.hdr: x\.img and x\.img\.gz lie side by side"):
        io.read_volume(tmp_path / "x.hdr")
    (tmp_path / "x.img").unlink()
    np.testing.assert_array_equal(io.read_volume(tmp_path / "x.hdr").array[0].T, ramp())
    (tmp_path / "x.img.gz").unlink()
    with pytest.raises(InputError, match=r"x\.hdr: expected x\.img or x\.img\.gz beside it, there is none"):
        io.read_volume(tmp_path / "x.hdr")


def test_names_in_capitals(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(ramp(), AFFINE), tmp_path / "x.hdr")
    (tmp_path / "x.hdr").rename(tmp_path / "X.HDR")
    (tmp_path / "x.img").rename(tmp_path / "X.IMG")
    np.testing.assert_array_equal(io.read_volume(tmp_path / "X.IMG").array[0].T, ramp())


def test_a_single_file_by_the_name_of_a_header(tmp_path: Path) -> None:
    write(tmp_path / "a.nii", ramp()).rename(tmp_path / "b.hdr")
    (tmp_path / "b.img").write_bytes(ramp().tobytes())
    with pytest.raises(InputError, match=r"b\.hdr: its header says that it is a single file; name it \.nii"):
        io.read_volume(tmp_path / "b.hdr")


# --- more damage


def test_bytes_behind_the_last_voxel_are_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "a.nii", ramp()).read_bytes() + b"\0"
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii: too long: the header tells of 772 bytes, the file holds 773"):
        io.read_header(tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"b\.nii\.gz: the file goes on after the last voxel"):
        io.read_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("scratch", [False, True])
def test_a_bomb_is_refused(tmp_path: Path, scratch: bool) -> None:
    content = write(tmp_path / "a.nii", ramp()).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content + bytes(1 << 26)))
    with pytest.raises(InputError, match="the file goes on after the last voxel"):
        io.read_volume(tmp_path / "b.nii.gz", scratch=tmp_path if scratch else None)


def test_a_header_that_asks_for_more_than_gzip_can_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", ramp())
    change_header(path, dim=[3, 7, 6, 32767, 1, 1, 1, 1])
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match=r"b\.nii\.gz: cut short: .* bytes of gzip cannot hold"):
        io.read_header(tmp_path / "b.nii.gz")


def test_wrong_names_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.nii", ramp()).rename(tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match=r"b\.nii\.gz: damaged gzip"):
        io.read_volume(tmp_path / "b.nii.gz")
    write(tmp_path / "a.nii.gz", ramp()).rename(tmp_path / "c.nii")
    with pytest.raises(InputError, match=r"c\.nii: not a NIfTI file \(it is gzip-compressed\)"):
        io.read_volume(tmp_path / "c.nii")
