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
from medi3d.errors import InputError, Medi3dError
from medi3d.volume import LabelMap, Volume

# (i, j, k) → RAS: unequal spacing, flipped and oblique
AFFINE = np.array([[-0.7, 0.1, 0.0, 12.0], [0.1, 0.9, 0.2, -30.0], [0.0, -0.15, 2.5, 7.0], [0, 0, 0, 1]])
SHAPE = (7, 6, 5)  # (i, j, k)


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, kind: type = nib.Nifti1Image) -> Path:
    nib.save(kind(array, affine), path)
    return path


def ramp(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_and_places_are_nibabels(tmp_path: Path, name: str, kind: type) -> None:
    path = write(tmp_path / name, ramp(), kind=kind)
    volume = io.read_volume(path)
    theirs = nib.load(path)
    assert volume.array.shape == (1, 5, 6, 7)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0].transpose(2, 1, 0), theirs.get_fdata())
    np.testing.assert_allclose(volume.affine[:, [2, 1, 0, 3]], theirs.affine)
    np.testing.assert_allclose(volume.grid.index_to_world([4, 1, 6]), theirs.affine[:3] @ [6, 1, 4, 1])


def test_intensity_scaling_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), AFFINE)
    image.header.set_slope_inter(0.5, -1024)
    image.to_filename(tmp_path / "a.nii.gz")
    stored = nib.load(tmp_path / "a.nii.gz")
    expected = stored.dataobj.get_unscaled() * stored.dataobj.slope + stored.dataobj.inter
    np.testing.assert_allclose(io.read_volume(tmp_path / "a.nii.gz").array[0].T, expected, rtol=1e-6)
    assert stored.dataobj.slope == pytest.approx(0.5)


def test_big_endian(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), AFFINE, header=nib.Nifti1Header(endianness=">"))
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_array_equal(io.read_volume(tmp_path / "a.nii").array[0].T, ramp())


def test_micrometres_become_millimetres(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), np.diag([500.0, 600.0, 700.0, 1.0]))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "a.nii")
    assert io.read_volume(tmp_path / "a.nii").spacing_mm == pytest.approx((0.7, 0.6, 0.5))


@pytest.mark.parametrize("shape", [(*SHAPE, 2), (*SHAPE, 1, 2)])
def test_last_axis_is_channels_only_if_asked_for(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.nii", ramp(shape))
    volume = io.read_volume(path, channels=2)
    assert volume.array.shape == (2, 5, 6, 7)
    np.testing.assert_array_equal(volume.array[1].T, ramp(shape)[..., -1].reshape(SHAPE))
    with pytest.raises(InputError, match=r"a\.nii: expected 1 channel in the file, got 2"):
        io.read_volume(path)
    with pytest.raises(InputError, match="expected 3 channels in the file, got 2"):
        io.read_volume(path, channels=3)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rotation=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    flip=st.booleans(),
    channels=st.integers(1, 2),
)
def test_write_then_read_keeps_voxels_and_affine(
    tmp_path: Path, rotation: tuple[float, ...], spacing: tuple[float, ...], flip: bool, channels: int
) -> None:
    turned = sitk.Euler3DTransform((0, 0, 0), *rotation)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(turned.GetMatrix(), (3, 3)) * spacing * ([-1, 1, 1] if flip else [1, 1, 1])
    affine[:3, 3] = 11, -22, 33
    volume = Volume(ramp((channels, 4, 5, 6), "float32"), affine)
    io.write_volume(volume, tmp_path / "a.nii.gz")
    again = io.read_volume(tmp_path / "a.nii.gz", channels=channels)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, affine, atol=1e-4)


def test_what_is_written_itk_reads_at_the_same_place(tmp_path: Path) -> None:
    affine = np.array([[0.0, 0, 0.8, 1], [0, -0.9, 0, 2], [3.0, 0, 0, 3], [0, 0, 0, 1]])
    io.write_volume(Volume(ramp((1, 3, 4, 5), "int16"), affine), tmp_path / "a.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert image[4, 2, 1] == ramp((3, 4, 5))[1, 2, 4]
    lps = np.array(image.TransformIndexToPhysicalPoint((4, 2, 1)))
    np.testing.assert_allclose(lps * [-1, -1, 1], affine[:3] @ [1, 2, 4, 1], atol=1e-4)


def test_the_header_geometry_of_a_file_survives_a_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", ramp())
    io.write_volume(io.read_volume(path), tmp_path / "b.nii.gz")
    first, second = nib.load(path), nib.load(tmp_path / "b.nii.gz")
    assert first.shape == second.shape
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)


def test_a_sheared_grid_survives(tmp_path: Path) -> None:
    affine = np.array([[0.0, 0, 1, 0], [0.5, 1, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    io.write_volume(Volume(ramp((1, 3, 4, 5), "float32"), affine), tmp_path / "a.nii")
    np.testing.assert_allclose(io.read_volume(tmp_path / "a.nii").affine, affine, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "stored"), [("bool", "uint8"), ("float16", "float32"), ("int64", "int32"), ("uint8", "uint8")]
)
def test_types_that_nifti_readers_know_are_written(tmp_path: Path, dtype: str, stored: str) -> None:
    io.write_volume(Volume((ramp((1, 3, 4, 5)) % 2).astype(dtype), np.eye(4)), tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == np.dtype(stored)


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int64 values do not fit int32"):
        io.write_label_map(LabelMap(np.full((1, 2, 2, 2), 2**40), np.eye(4)), tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []


def test_writing_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(ramp((1, 3, 4, 5), "float32"), np.eye(4))
    io.write_volume(volume, tmp_path / "a.nii")
    before = (tmp_path / "a.nii").read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((OSError, Medi3dError), match="disk full"):
        io.write_volume(Volume(volume.array + 1, np.eye(4)), tmp_path / "a.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
    assert (tmp_path / "a.nii").read_bytes() == before


# --- damaged files


@pytest.fixture
def gzipped(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 1000, (20, 21, 22)).astype("int16")
    return write(tmp_path / "a.nii.gz", noise)


@pytest.mark.parametrize("keep", [5, 300, 0.5, -4])
def test_a_truncated_gzip_is_refused(gzipped: Path, keep: float) -> None:
    content = gzipped.read_bytes()
    gzipped.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"a\.nii\.gz: damaged gzip"):
        io.read_volume(gzipped)


def test_every_flipped_bit_is_noticed(gzipped: Path) -> None:
    content = gzipped.read_bytes()
    for position in np.linspace(20, len(content) - 1, 60).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 4
        gzipped.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged gzip|cut short|goes on after"):
            io.read_volume(gzipped)


def test_a_file_shorter_than_its_header_says_is_refused(gzipped: Path, tmp_path: Path) -> None:
    content = gzip.decompress(gzipped.read_bytes())[:-10]
    (tmp_path / "b.nii").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.nii: cut short: the header tells of 18832 bytes, the file holds 18822"):
        io.read_header(tmp_path / "b.nii")
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"c\.nii\.gz: cut short: the file ends 10 bytes"):
        io.read_volume(tmp_path / "c.nii.gz")


@pytest.mark.parametrize("content", [b"hello" * 200, b"\0" * 4000])
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii: (not a NIfTI file|unreadable NIfTI header)"):
        io.read_volume(tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged gzip \(it (is a text file|begins with zeros)\)"):
        io.read_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("offset_and_value", [(70, b"\xff\x7f"), (40, b"\x09\x00"), (42, b"\xff\xff")])
def test_a_damaged_header_is_refused(tmp_path: Path, offset_and_value: tuple[int, bytes]) -> None:
    offset, value = offset_and_value
    content = bytearray(write(tmp_path / "a.nii", ramp()).read_bytes())
    content[offset : offset + 2] = value
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii: "):
        io.read_volume(tmp_path / "a.nii")


def test_colour_and_complex_voxels_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.nii", ramp(dtype="complex64"))
    with pytest.raises(InputError, match="must be real numbers, got complex numbers"):
        io.read_volume(tmp_path / "a.nii")
    write(tmp_path / "b.nii", np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(InputError, match="must be real numbers"):
        io.read_volume(tmp_path / "b.nii")


def test_non_finite_voxels_are_counted(tmp_path: Path) -> None:
    array = ramp(dtype="float32")
    array[1, 2, 3], array[2, 2, 2], array[0, 0, 0] = np.nan, np.inf, -np.inf
    write(tmp_path / "a.nii.gz", array)
    with pytest.raises(InputError, match=r"a\.nii\.gz: 3 of 210 voxels are NaN or infinite"):
        io.read_volume(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="3 of 210 voxels"):
        io.read_label_map(tmp_path / "a.nii.gz")


def test_a_singular_affine_names_the_file(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 1] = 2 * affine[:3, 0] + affine[:3, 2]
    image = nib.Nifti1Image(ramp(), None)
    image.header.set_sform(affine, code=1)
    image.to_filename(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    (tmp_path / "a.nii").write_bytes(content)
    header = nib.Nifti1Header(bytes(content[:348]))
    header.set_sform(affine, code=1)
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(content[348:]))
    with pytest.raises(InputError, match=r"a\.nii: the sform is singular.* an affine must be invertible"):
        io.read_volume(tmp_path / "a.nii")


# --- voxels as stored


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.img.gz"])
def test_every_type_and_byte_order_in_memory_and_mapped(tmp_path: Path, dtype: str, order: str, name: str) -> None:
    image = nib.Nifti1Pair if "nii" not in name else nib.Nifti1Image
    array = ramp(dtype=order + dtype)
    nib.save(image(array, AFFINE, header=image.header_class(endianness=order), dtype=order + dtype), tmp_path / name)
    for scratch in (None, tmp_path):
        volume = io.read_volume(tmp_path / name, dtype=None, scratch=scratch)
        assert volume.array.dtype == np.dtype(dtype)
        assert volume.array.dtype.isnative
        assert volume.array.flags.c_contiguous
        np.testing.assert_array_equal(volume.array[0].T, array)
        assert isinstance(volume.array, np.memmap) == (scratch is not None)
    assert io.read_header(tmp_path / name).dtype == np.dtype(dtype)
    assert len(io.source_files(tmp_path / name)) == (1 if "nii" in name else 2)


def test_a_plain_file_is_mapped_in_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", ramp())
    (tmp_path / "scratch").mkdir()
    volume = io.read_volume(path, dtype=None, scratch=tmp_path / "scratch")
    assert isinstance(volume.array, np.memmap)
    assert str(volume.array.filename) == str(path)
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0, 0] = 3


@pytest.mark.parametrize(
    ("stored", "scaling", "dtype"),
    [
        ("i2", (1.0, -1024.0), "f4"),
        ("u1", (0.1, 3.0), "f4"),
        ("f4", (2.0, 0.5), "f4"),
        ("i4", (0.25, 0.0), "f8"),
        ("f8", (3.0, 1.0), "f8"),
        ("i2", (1.0, 0.0), "i2"),
        ("i2", (0.0, 7.0), "i2"),
        ("i2", (0.0, np.nan), "i2"),
    ],
)
def test_scaled_voxels(tmp_path: Path, stored: str, scaling: tuple[float, float], dtype: str) -> None:
    path = write(tmp_path / "a.nii", ramp(dtype=stored))
    change_header(path, scl_slope=scaling[0], scl_inter=scaling[1])
    slope, intercept = (np.float64(np.float32(number)) for number in scaling)
    expected = ramp(dtype=stored) * slope + intercept if slope else ramp(dtype=stored)
    for scratch in (None, tmp_path):
        volume = io.read_volume(path, dtype=None, scratch=scratch)
        assert volume.array.dtype == io.read_header(path).dtype == np.dtype(dtype)
        np.testing.assert_array_equal(volume.array[0].T, expected.astype(dtype))
    np.testing.assert_allclose(volume.array[0].T, nib.load(path).get_fdata(), rtol=1e-6)


def test_scaled_whole_numbers_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", (ramp() % 3).astype("i2"))
    label = io.read_label_map(path)
    path = write(tmp_path / "b.nii", (ramp() % 3).astype("i2"))
    change_header(path, scl_slope=2.0, scl_inter=1.0)
    for scratch in (None, tmp_path):
        scaled = io.read_label_map(path, scratch=scratch)
        assert scaled.array.dtype == np.uint8
        np.testing.assert_array_equal(scaled.array, 2 * label.array + 1)


@pytest.mark.parametrize(("slope", "intercept"), [(np.nan, 0.0), (np.inf, 0.0), (1.0, np.nan), (2.0, -np.inf)])
def test_scaling_that_is_not_finite_is_refused(tmp_path: Path, slope: float, intercept: float) -> None:
    path = write(tmp_path / "a.nii", ramp())
    change_header(path, scl_slope=slope, scl_inter=intercept)
    with pytest.raises(InputError, match=r"a\.nii: the intensity scaling is not finite"):
        io.read_header(path)


def test_extensions_are_passed_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    for name in ("a.nii", "b.nii.gz"):
        image.to_filename(tmp_path / name)
        np.testing.assert_array_equal(io.read_volume(tmp_path / name).array[0].T, ramp())


def test_vector_components_behind_a_time_axis_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", ramp((*SHAPE, 1, 3)))
    np.testing.assert_array_equal(io.read_volume(path, channels=3).array.T, ramp((*SHAPE, 3)))
    np.testing.assert_array_equal(io.read_volume(path, frame=2).array[0].T, ramp((*SHAPE, 3))[..., 2])
