"""The prepared store: one folder a case with chunked, compressed arrays, so that a patch is read without the volume.

    folder/dataset.json             what was prepared with which settings, and which cases belong to it
    folder/fingerprint.json         statistics of the raw data
    folder/quality.json             which cases stand out, and why
    folder/cases/<case_id>/         case.json, image.b2nd, label.b2nd, foreground.npy

Arrays are blosc2 b2nd files, written a slab of planes at a time, so that no volume has to fit in memory. A case appears
whole or not at all, and ``dataset.json`` is written last. It holds no patient identifier: patients are known by a hash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from medi3d.errors import InputError
from medi3d.io import atomic
from medi3d.io.foreground import count_labels, sample_foreground
from medi3d.io.record import Record
from medi3d.types import Array, IntTriple, PathLike

if TYPE_CHECKING:
    import blosc2

FORMAT = 2
"""Version of the layout above; prepared data of another one is prepared anew."""

SLAB_PLANES, _BLOCK = 64, 32
"""Planes of a slab, and voxels of a chunk and of a block of the compressed arrays along every axis."""
_ONE_THREAD = {"nthreads": 1}
_DATASET, _FINGERPRINT, _QUALITY = "dataset.json", "fingerprint.json", "quality.json"
_CASES, _CASE = "cases", "case.json"
_IMAGE, _LABEL, _FOREGROUND = "image.b2nd", "label.b2nd", "foreground.npy"


class Slabs(Protocol):
    """A prepared array that is computed, or read, one slab of planes at a time."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(C, D, H, W)``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the slabs' entries."""

    def slab(self, start: int, stop: int) -> Array:
        """Return the planes ``start`` to ``stop`` (not included), ``(C, stop - start, H, W)``."""


@dataclass(frozen=True, eq=False)
class ArraySlabs:
    """The slabs of an array that is there already, ``(C, D, H, W)``.

    Example:
        >>> ArraySlabs(np.zeros((1, 5, 6, 7), np.uint8)).slab(2, 4).shape
        (1, 2, 6, 7)
    """

    array: Array

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(C, D, H, W)``."""
        c, d, h, w = self.array.shape
        return int(c), int(d), int(h), int(w)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the entries."""
        return self.array.dtype

    def slab(self, start: int, stop: int) -> Array:
        """Return a view of some planes."""
        return self.array[:, start:stop]


@dataclass(frozen=True)
class PreparedCase:
    """One case of the store; its arrays are read on demand.

    Args:
        folder: where the case lies, ``<store>/cases/<case_id>``.
        case_id: the case's name.
        group: hash of the patient, equal for cases that must not be split apart.
        target: class index, for classification.
        record: native and prepared grid.
        content_hash: hash of the raw files and of the settings it was prepared with.
        statistics: of the raw case, for the fingerprint.
    """

    folder: Path
    case_id: str
    group: str
    target: int | None
    record: Record
    content_hash: str
    statistics: dict[str, Any]

    @property
    def shape(self) -> IntTriple:
        """Number of voxels of the prepared arrays along ``(D, H, W)``."""
        return self.record.prepared.shape

    def image(self) -> blosc2.NDArray:
        """Return the image, ``(C, D, H, W)`` float32; indexing reads only the chunks it touches."""
        return _open(self.folder / _IMAGE)

    def label(self) -> blosc2.NDArray | None:
        """Return the label map, ``(1, D, H, W)`` uint8, or ``None`` where the case has none."""
        path = self.folder / _LABEL
        return _open(path) if path.exists() else None

    @cached_property
    def foreground(self) -> dict[int, Array]:
        """Label value → up to 2000 of its voxels, ``(n, 3)`` indices ``(d, h, w)``; absent labels are left out."""
        return {value: voxels for value, voxels in self._samples.items() if value}

    @property
    def annotated_background(self) -> Array | None:
        """Up to 2000 background voxels, ``(n, 3)``, of a case that holds the ignore label.

        ``None`` where every voxel is annotated, so that any place will do, and where no background is.
        """
        return self._samples.get(0)

    @cached_property
    def _samples(self) -> dict[int, Array]:
        path = self.folder / _FOREGROUND
        if not path.exists():
            return {}
        try:
            # mapped, not read: of a thousand cases with a hundred labels the samples take gigabytes
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        first = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))  # rows are sorted by value
        return {int(part[0, 0]): part[:, 1:] for part in np.split(rows, first[1:])}


class PreparedStore:
    """A folder written by ``medi3d preprocess``.

    Raises:
        InputError: the folder holds no finished store, or one of another format.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        path = self.folder / _DATASET
        if not path.is_file():
            raise InputError(f"{self.folder}: no finished prepared data here; run `medi3d preprocess` (again) first")
        self._dataset = _read_json(path)
        if self._dataset.get("format") != FORMAT:
            raise InputError(
                f"{self.folder}: prepared with format {self._dataset.get('format')}, this medi3d reads {FORMAT}; "
                "run `medi3d preprocess` again"
            )

    @property
    def task_values(self) -> dict[str, Any]:
        """Name, kind, ``data`` and ``preprocess`` of the task that the data was prepared for."""
        return dict(self._dataset["task"])

    @property
    def fingerprint_hash(self) -> str:
        """Hash of all cases' content hashes: equal for equal data and settings."""
        return str(self._dataset["fingerprint_hash"])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Statistics of the raw data, see :mod:`medi3d.preprocess.quality.fingerprint`."""
        return _read_json(self.folder / _FINGERPRINT)

    @property
    def quality(self) -> dict[str, Any]:
        """Which cases stand out, and why, see :mod:`medi3d.preprocess.quality.findings`."""
        return _read_json(self.folder / _QUALITY)

    def cases(self) -> list[PreparedCase]:
        """Return the cases, sorted by ``case_id``."""
        return [read_case(case_folder(self.folder, case_id)) for case_id in sorted(self._dataset["cases"])]


def case_folder(store: Path, case_id: str) -> Path:
    """Return where a case lies in a store."""
    return store / _CASES / case_id


@contextmanager
def open_for_writing(store: Path, task_values: Mapping[str, Any]) -> Iterator[None]:
    """Keep a store to oneself while it is written: make its folders, drop half-written leftovers, before and after.

    A store of the same settings stays readable meanwhile: its cases are replaced whole, one by one. One of other
    settings is unfinished from now until :func:`finish`, so that no one trains on a mixture.

    Args:
        store: the store's folder.
        task_values: what ``dataset.json`` holds as ``task``.

    Raises:
        InputError: another process writes into the store.
    """
    cases = store / _CASES
    with atomic.name_the_disk(store):
        cases.mkdir(parents=True, exist_ok=True)
    with atomic.lock(store) as locked:
        _tidy(store, locked)
        try:
            earlier = PreparedStore(store).task_values
        except InputError:
            earlier = {}
        if earlier != json.loads(json.dumps(task_values)):
            withdraw(store)
        try:
            yield
        finally:
            _tidy(store, locked)


def _tidy(store: Path, locked: bool) -> None:
    """Delete what killed processes left, where a lock tells that no other one is at work."""
    if locked:
        atomic.remove_leftovers(store)
        atomic.remove_leftovers(store / _CASES)


def withdraw(store: Path) -> None:
    """Mark a store as unfinished; its cases stay."""
    (store / _DATASET).unlink(missing_ok=True)


def finish(
    store: Path, *, dataset: Mapping[str, Any], fingerprint: Mapping[str, Any], quality: Mapping[str, Any]
) -> None:
    """Write what is known of all cases and, last, ``dataset.json`` of a store whose cases are all written."""
    atomic.write_bytes(store / _QUALITY, _to_json(quality))
    atomic.write_bytes(store / _FINGERPRINT, _to_json(fingerprint))
    atomic.write_bytes(store / _DATASET, _to_json({"format": FORMAT, **dataset}))


def stored_case_ids(store: Path) -> list[str]:
    """List the whole cases that lie in a store's folder, whether they belong to its data set or not."""
    names = (path.parent.name for path in (store / _CASES).glob(f"*/{_CASE}"))
    return sorted(name for name in names if not name.startswith(atomic.TEMPORARY_PREFIX))


def write_case(case: PreparedCase, image: Slabs, label: Slabs | None, *, ignore_label: int | None = None) -> None:
    """Write a case to ``case.folder``, in place of an earlier version; it appears whole or not at all.

    Args:
        case: its description; ``case.record.prepared`` is the grid of ``image`` and ``label``.
        image: ``(C, D, H, W)``, stored as float32; asked for slabs of 64 planes, in order, each once.
        label: ``(1, D, H, W)`` with values up to 255, or ``None``; likewise.
        ignore_label: value of voxels that nobody has annotated.

    Raises:
        InputError: label values do not fit uint8.
    """
    with atomic.new_folder(case.folder) as folder:
        _write_slabs(image, folder / _IMAGE, np.float32)
        if label is not None:
            _write_label(label, folder, case.case_id, ignore_label)
        values = {
            "format": FORMAT,
            "case_id": case.case_id,
            "group": case.group,
            "target": case.target,
            "content_hash": case.content_hash,
            "record": case.record.to_json(),
            "statistics": case.statistics,
            "file_bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        }
        with atomic.name_the_disk(folder):
            (folder / _CASE).write_text(json.dumps(values), encoding="utf-8")


def read_case(folder: Path) -> PreparedCase:
    """Read the description of a case.

    Raises:
        InputError: the folder holds no case, or its description is damaged.
    """
    path = folder / _CASE
    if not path.is_file():
        raise InputError(f"{folder}: this prepared case is missing; run `medi3d preprocess` again")
    values = _read_json(path)
    try:
        return PreparedCase(
            folder=folder,
            case_id=values["case_id"],
            group=values["group"],
            target=values["target"],
            record=Record.from_json(values["record"]),
            content_hash=values["content_hash"],
            statistics=values["statistics"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not the description of a prepared case ({error}); prepare it again") from None


def stored_hash(folder: Path) -> str | None:
    """Return the content hash of the case in ``folder``, ``None`` where there is no whole one of this format.

    A case is whole where its files are as long as they were when written: a power cut leaves shorter ones behind,
    because they are not forced to the disk one by one (``fsync`` took 5 ms a case).
    """
    try:
        values = _read_json(folder / _CASE)
        whole = all((folder / name).stat().st_size == size for name, size in values["file_bytes"].items())
    except (OSError, InputError, KeyError):
        return None
    return values.get("content_hash") if whole and values.get("format") == FORMAT else None


def _open(path: Path) -> blosc2.NDArray:
    import blosc2  # 0.1 s that a prediction from image files does without

    try:
        return blosc2.open(str(path), mode="r", dparams=_ONE_THREAD)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: unreadable prepared array ({error}); run `medi3d preprocess --overwrite`")


def _slabs_of(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return (start, stop) along D of the layers of chunks that cover ``(C, D, H, W)``."""
    return [(start, min(start + SLAB_PLANES, shape[1])) for start in range(0, shape[1], SLAB_PLANES)]


def _write_slabs(
    slabs: Slabs, path: Path, dtype: npt.DTypeLike, *, look: Callable[[Array], None] = lambda _: None
) -> blosc2.NDArray:
    """Write an array layer by layer of its chunks; ``look`` sees each before it is stored."""
    import blosc2

    # A CT of 375x358x358 float32, one thread: bit shuffle 0.21 CPU-s to write and 1.3 ms to read a patch of 64 voxels,
    # byte shuffle 0.32 and 1.6, zstd 0.51 and 3.0; 8 to 12 % larger than byte shuffle on MR, equal on CT. Blocks of 16
    # read patches in 1.0 ms but take longer to write; larger blocks read in up to 2.7 ms.
    compression = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.BITSHUFFLE], **_ONE_THREAD}
    c, *space = slabs.shape
    chunks = [min(SLAB_PLANES, n) for n in space]
    # blocks of equal size: blosc2 pads chunks to whole blocks, and 36x50x35 voxels as 64x64x64 took twice as long
    blocks = [-(-n // -(-n // _BLOCK)) for n in chunks]
    layout = {"chunks": (1, *chunks), "blocks": (1, *blocks), "cparams": compression, "dparams": _ONE_THREAD}
    stored: blosc2.NDArray | None = None
    for start, stop in _slabs_of(slabs.shape):
        slab = slabs.slab(start, stop)
        look(slab)
        slab = np.ascontiguousarray(slab, dtype=dtype)
        with atomic.name_the_disk(path.parent):
            if slab.shape == slabs.shape:  # 0.2 ms an array faster than to fill an empty one
                return blosc2.asarray(slab, urlpath=str(path), mode="w", **layout)
            if stored is None:
                stored = blosc2.empty((c, *space), dtype=dtype, urlpath=str(path), mode="w", **layout)
            stored[:, start:stop] = slab
    return stored


def _write_label(label: Slabs, folder: Path, case_id: str, ignore_label: int | None) -> None:
    """Store a label map, and rows ``(value, d, h, w)`` of sampled voxels, see :func:`sample_foreground`."""
    counts: list[Array] = []

    def look(slab: Array) -> None:
        if slab.dtype != np.uint8 and (slab.min() < 0 or slab.max() > 255):
            raise InputError(f"case {case_id}: prepared label values must lie in 0..255")
        counts.extend(count_labels(slab[0].astype(np.uint8, copy=False)))

    stored = _write_slabs(label, folder / _LABEL, np.uint8, look=look)
    rows = sample_foreground(
        counts,
        _slabs_of(label.shape),
        lambda start, stop: np.asarray(stored[0, start:stop]),
        ignore_label=ignore_label,
    )
    if len(rows):
        with atomic.name_the_disk(folder):
            np.save(folder / _FOREGROUND, rows, allow_pickle=False)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable JSON ({error}); run `medi3d preprocess` again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object; run `medi3d preprocess` again")
    return values


def _to_json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode()
