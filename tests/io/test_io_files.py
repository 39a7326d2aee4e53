from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medi3d import io
from medi3d.errors import InputError
from medi3d.io import values
from medi3d.volume import LabelMap, Volume

AFFINE = np.array([[0.0, 0, -0.8, 5], [0, 0.9, 0, 6], [2.5, 0, 0, 7], [0, 0, 0, 1]])


def labels(dtype: str = "uint8") -> np.ndarray:
    return (np.arange(3 * 4 * 5).reshape(1, 3, 4, 5) % 4).astype(dtype)


def itk_image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((1.0, 2.0, -3.0))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    return image


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nii.gz"])
def test_every_format_gives_the_same_volume(tmp_path: Path, suffix: str) -> None:
    image = itk_image(labels("int16")[0])
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = io.read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.array[0], labels()[0])
    assert volume.spacing_mm == pytest.approx((3.0, 0.75, 0.5))
    point = np.array(image.TransformIndexToPhysicalPoint((4, 1, 2))) * [-1, -1, 1]
    np.testing.assert_allclose(volume.grid.index_to_world([2, 1, 4]), point, atol=1e-5)


def test_sitk_there_and_back() -> None:
    for channels in (1, 3):
        volume = Volume(np.random.default_rng(0).normal(size=(channels, 3, 4, 5)).astype("f4"), AFFINE)
        image = io.to_sitk(volume)
        assert image.GetNumberOfComponentsPerPixel() == channels
        again = io.from_sitk(image)
        np.testing.assert_array_equal(again.array, volume.array)
        np.testing.assert_allclose(again.affine, AFFINE, atol=1e-12)
        point = np.array(image.TransformIndexToPhysicalPoint((4, 1, 2))) * [-1, -1, 1]
        np.testing.assert_allclose(volume.grid.index_to_world([2, 1, 4]), point)


def test_from_sitk_wants_three_dimensions() -> None:
    with pytest.raises(InputError, match="expected a 3-D image, got 2-D"):
        io.from_sitk(sitk.Image(3, 4, sitk.sitkUInt8))


def test_a_flat_nrrd_names_the_file(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image(3, 4, sitk.sitkUInt8), str(tmp_path / "a.nrrd"))
    with pytest.raises(InputError, match=r"a\.nrrd: a 2-D image"):
        io.read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_damaged_itk_file_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"nothing of the kind" * 30)
    with pytest.raises(InputError, match=rf"a\{suffix}: not a (NRRD|MetaImage) file") as caught:
        io.read_volume(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_truncated_nrrd_is_refused(tmp_path: Path, compressed: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 999, (20, 21, 22)).astype("int16")
    sitk.WriteImage(itk_image(noise), str(tmp_path / "a.nrrd"), compressed)
    content = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(InputError, match=r"a\.nrrd"):
        io.read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("stored", ["uint8", "int16", "float32", "float64", "int64"])
def test_whole_numbers_of_any_type_are_labels(tmp_path: Path, stored: str) -> None:
    nib.save(nib.Nifti1Image(labels(stored)[0].T, np.eye(4), dtype=stored), tmp_path / "a.nii.gz")
    label = io.read_label_map(tmp_path / "a.nii.gz")
    assert isinstance(label, LabelMap)
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.array, labels())


def test_interpolated_labels_are_refused(tmp_path: Path) -> None:
    array = labels("float32")
    array[0, 1, 1, :2] += 0.5
    io.write_volume(Volume(array, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="2 voxels of the label map are not whole numbers"):
        io.read_label_map(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("value", "dtype"), [(300, np.int32), (-1, np.int32), (255, np.uint8)])
def test_label_type_fits_the_values(tmp_path: Path, value: int, dtype: type) -> None:
    array = labels("int16")
    array[0, 0, 0, 0] = value
    io.write_label_map(LabelMap(array, AFFINE), tmp_path / "a.nii.gz")
    label = io.read_label_map(tmp_path / "a.nii.gz")
    assert label.array.dtype == dtype
    assert int(label.array[0, 0, 0, 0]) == value


def test_huge_label_values_are_refused(tmp_path: Path) -> None:
    io.write_volume(Volume(np.full((1, 2, 2, 2), 1e12, "float32"), AFFINE), tmp_path / "a.nii")
    with pytest.raises(InputError, match="do not fit 32 bits"):
        io.read_label_map(tmp_path / "a.nii")


def test_a_label_map_has_one_channel(tmp_path: Path) -> None:
    io.write_volume(Volume(np.zeros((2, 3, 4, 5), "uint8"), AFFINE), tmp_path / "a.nii")
    with pytest.raises(InputError, match="a label map has one value a voxel, got 2 channels"):
        io.read_label_map(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.nii.gz", None, "no such file"),
        ("a.png", b"x", "not a known image format"),
        ("a.nii", b"", "the file is empty"),
    ],
)
def test_unusable_paths(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        io.read_volume(tmp_path / name)


def test_a_folder_without_dicom_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder without DICOM files"):
        io.read_volume(tmp_path)


def test_other_formats_are_not_written(tmp_path: Path) -> None:
    volume = Volume(labels("float32"), AFFINE)
    with pytest.raises(InputError, match=r"a\.nrrd: cannot write this format"):
        io.write_volume(volume, tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x/case_1_0000.nii.gz", "case_1_0000"),
        ("case.v2.NII.GZ", "case.v2"),
        ("a.nrrd", "a"),
        ("b.mha", "b"),
        ("series", "series"),
    ],
)
def test_case_name(path: str, name: str) -> None:
    assert io.case_name(path) == name


def test_image_files(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nrrd", "notes.txt", "._b.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    assert [path.name for path in io.image_files(tmp_path)] == ["a.nrrd", "b.nii.gz"]
    assert io.image_files(tmp_path / "a.nrrd") == [tmp_path / "a.nrrd"]
    with pytest.raises(InputError, match="no image in it"):
        io.image_files(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file or folder"):
        io.image_files(tmp_path / "absent")


@pytest.mark.real_data
def test_odd_volumes(real_data: Callable[[str], Path]) -> None:
    folder = real_data("odd_volumes")
    big_endian = io.read_volume(folder / "big_endian_int16.nii")
    np.testing.assert_array_equal(big_endian.array[0].T, nib.load(folder / "big_endian_int16.nii").get_fdata())
    assert big_endian.orientation == "SAL"
    for name in ("four_dimensional.nii.gz", "nifti2_4d.nii.gz"):
        volume = io.read_volume(folder / name, channels=2)
        theirs = nib.load(folder / name)
        np.testing.assert_array_equal(volume.array.T, theirs.get_fdata())
        np.testing.assert_allclose(volume.affine[:, [2, 1, 0, 3]], theirs.affine)
        with pytest.raises(InputError, match="expected 1 channel"):
            io.read_volume(folder / name)
    image, label = io.read_volume(folder / "brain1_image.nrrd"), io.read_label_map(folder / "brain1_label.nrrd")
    assert image.grid.is_close(label.grid)
    assert image.spacing_mm == pytest.approx((6.5, 0.78125, 0.78125))
    assert image.orientation == "SAL"  # LPS directions 1, -1, 1 along x, y, z


# --- paths


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".hdr", ".img"])
def test_files_that_are_none_of_their_name(tmp_path: Path, suffix: str) -> None:
    """Each has its own message, in reading and in asking for the header; in listing the files, where that needs it."""
    (tmp_path / f"text{suffix}").write_text("this was moved to another server, see there " * 20)
    (tmp_path / f"empty{suffix}").touch()
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    (tmp_path / f"gone{suffix}").symlink_to(tmp_path / "nothing")
    (tmp_path / f"folder{suffix}").mkdir()
    if suffix in (".hdr", ".img"):
        for name in ("text", "empty"):
            (tmp_path / name).with_suffix({".hdr": ".img", ".img": ".hdr"}[suffix]).write_text("text")
    messages = {
        "text": r"it is a text file",
        "empty": "the file is empty|it is a text file",
        "loop": "a symbolic link that leads back to itself|there is none",
        "gone": "a symbolic link to nothing|there is none",
        "folder": "a folder without DICOM files",
    }
    for name, message in messages.items():
        names_others = suffix not in (".nii", ".nii.gz", ".hdr", ".img")
        lists = [io.source_files] if names_others or name in ("loop", "gone", "folder") else []
        for read in (io.read_volume, io.read_label_map, io.read_header, *lists):
            with pytest.raises(InputError, match=rf"{name}.*: .*({message})") as caught:
                read(tmp_path / f"{name}{suffix}")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["two words.nii.gz", "größe 脳.nii", "-o.nii.gz", "a'b\"c.nii", "#1.nii", "x" * 240 + ".nii"]
)
def test_unusual_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    volume = Volume(labels("float32"), AFFINE)
    (tmp_path / "other.nii").touch()
    io.write_volume(volume, "plain.nii.gz" if name.endswith(".gz") else "plain.nii")
    next(tmp_path.glob("plain*")).rename(tmp_path / name)
    np.testing.assert_array_equal(io.read_volume(name).array, volume.array)
    assert Path(name) in io.image_files(".")
    assert io.case_name(name) == name.removesuffix(".gz").removesuffix(".nii")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users here")
def test_a_file_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        io.write_volume(Volume(labels("float32"), AFFINE), folder / "a.nii.gz")
        io.write_volume(Volume(labels("float32"), AFFINE), folder / "closed" / "b.nii.gz")
        (folder / "a.nii.gz").chmod(0)
        (folder / "closed").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            for path in (folder / "a.nii.gz", folder / "closed" / "b.nii.gz"):
                for read in (io.read_volume, io.read_header, io.source_files, io.image_files):
                    with pytest.raises(InputError, match=rf"{path.name}: no permission to read it"):
                        read(path)
        finally:
            os.seteuid(user)
            (folder / "closed").chmod(0o755)


def test_broken_links_and_pairs_are_listed_once(tmp_path: Path) -> None:
    """What cannot be read is listed, so that it is told of; the voxels of a pair are listed under its header."""
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    nib.save(nib.Nifti1Pair(labels()[0].T, np.eye(4)), tmp_path / "pair.hdr")
    (tmp_path / "folder.nii").mkdir()
    sitk.WriteImage(itk_image(labels()[0]), str(tmp_path / "a.mhd"))
    sitk.WriteImage(itk_image(labels()[0]), str(tmp_path / "b.nhdr"))
    assert [path.name for path in io.image_files(tmp_path)] == ["a.mhd", "b.nhdr", "loop.nii.gz", "pair.hdr"]
    assert io.case_name("x/pair.img.gz") == "pair"
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "pair.img").array, labels())


# --- every voxel


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_voxel_is_looked_at(tmp_path: Path, suffix: str, scratch: bool, dtype: str) -> None:
    folder = tmp_path if scratch else None
    voxels = {"nan": [np.nan], "both": [np.nan, np.inf, -np.inf], "infinite": [np.inf]}
    messages = {
        "nan": r"1 of 60 voxels are NaN or infinite \(1 NaN, 0 infinite\)",
        "both": r"3 of 60 voxels are NaN or infinite \(1 NaN, 2 infinite\)",
        "infinite": r"1 of 60 voxels are NaN or infinite \(0 NaN, 1 infinite\)",
    }
    for name, bad in voxels.items():
        array = labels(dtype)[0]
        array.flat[-len(bad) :] = bad
        save(array, tmp_path / f"{name}{suffix}")
        for read in (io.read_volume, io.read_label_map):
            with pytest.raises(InputError, match=rf"{name}\{suffix}: {messages[name]}"):
                read(tmp_path / f"{name}{suffix}", scratch=folder)
    save(np.full((3, 4, 5), np.nan, dtype), tmp_path / f"all{suffix}")
    with pytest.raises(InputError, match="all 60 voxels are NaN; leave out the case"):
        io.read_volume(tmp_path / f"all{suffix}", scratch=folder)


def save(array: np.ndarray, path: Path) -> None:
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array.T, np.eye(4)), path)
    else:
        sitk.WriteImage(itk_image(array), str(path))


def test_a_bad_frame_leaves_the_others(tmp_path: Path) -> None:
    frames = np.stack([labels("float32")[0]] * 3)
    frames[1, 0, 0, 0] = np.nan
    save(frames, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(io.read_volume(tmp_path / "a.nii.gz", frame=2).array, labels())
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "a.nii.gz", frame=0).array, labels())
    with pytest.raises(InputError, match="1 of 60 voxels"):
        io.read_volume(tmp_path / "a.nii.gz", frame=1)
    with pytest.raises(InputError, match=r"frame -1 of 3"):
        io.read_label_map(tmp_path / "a.nii.gz", frame=-1)


def test_values_that_a_type_cannot_hold(tmp_path: Path) -> None:
    save(np.full((3, 4, 5), 1e300), tmp_path / "a.nii")
    assert io.read_volume(tmp_path / "a.nii", dtype=None).array.max() == 1e300
    with pytest.raises(InputError, match="60 of 60 voxels are NaN or infinite"):
        io.read_volume(tmp_path / "a.nii")


def test_the_blocks_of_a_big_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_BLOCK_VOXELS", 7)
    array = np.random.default_rng(0).integers(0, 300, (2, 3, 4, 5)).astype("f4")
    values.check_finite(array, tmp_path)
    label = values.to_label_array(array[:1], tmp_path, scratch=tmp_path)
    assert isinstance(label, np.memmap)
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, array[:1])
    array[1, 2, 3, 4] = np.inf
    with pytest.raises(InputError, match="1 of 120 voxels"):
        values.check_finite(array, tmp_path)


@pytest.mark.parametrize("dtype", ["int64", "uint32", "float32", "float64", "int16", "uint8"])
@pytest.mark.parametrize("scratch", [False, True])
def test_labels_of_any_type_mapped_or_not(tmp_path: Path, dtype: str, scratch: bool) -> None:
    nib.save(nib.Nifti1Image(labels(dtype)[0].T, np.eye(4), dtype=dtype), tmp_path / "a.nii.gz")
    label = io.read_label_map(tmp_path / "a.nii.gz", scratch=tmp_path if scratch else None)
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.array, labels())
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_labels_beyond_32_bits(tmp_path: Path, value: int) -> None:
    array = labels("int64")
    array[0, 0, 0, 0] = value
    nib.save(nib.Nifti1Image(array[0].T, np.eye(4), dtype="int64"), tmp_path / "a.nii")
    with pytest.raises(InputError, match="do not fit 32 bits"):
        io.read_label_map(tmp_path / "a.nii")


def test_suv_needs_dicom(tmp_path: Path) -> None:
    save(labels("float32")[0], tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a\.nii: only DICOM holds what 'suv' is computed from"):
        io.read_volume(tmp_path / "a.nii", quantity="suv")


# --- memory


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_reading_takes_the_voxels_memory_and_little_more(tmp_path: Path, suffix: str) -> None:
    array = np.random.default_rng(0).integers(0, 9, (64, 128, 128)).astype("int16")
    save(array, tmp_path / f"a{suffix}")
    for scratch, most in ((None, array.nbytes + 1.2e6), (tmp_path, 1.2e6)):
        tracemalloc.start()
        volume = io.read_volume(tmp_path / f"a{suffix}", dtype=None, scratch=scratch)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most
        np.testing.assert_array_equal(volume.array[0], array)


def test_voxels_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(labels("int16")[0], tmp_path / "a.nii.gz")

    def refuse(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(
        InputError, match=r"a\.nii\.gz: the header tells of 0\.0 GB of voxels, more than there is memory"
    ):
        io.read_volume(tmp_path / "a.nii.gz")


def test_mapped_voxels_need_no_file_of_their_name(tmp_path: Path) -> None:
    """The scratch file is gone before it is used, so a kill leaves nothing."""
    save(labels("int16")[0], tmp_path / "a.nii.gz")
    (tmp_path / "scratch").mkdir()
    volume = io.read_volume(tmp_path / "a.nii.gz", dtype=None, scratch=tmp_path / "scratch")
    assert isinstance(volume.array, np.memmap)
    assert list((tmp_path / "scratch").iterdir()) == []
    np.testing.assert_array_equal(volume.array, labels())
