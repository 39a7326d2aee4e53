"""The prepared store: one folder a case with chunked, compressed arrays, so that a patch is read without the volume.

    folder/dataset.json             what was prepared with which settings, and which cases belong to it
    folder/fingerprint.json         statistics of the raw data
    folder/cases/<case_id>/         case.json, image.b2nd, label.b2nd, foreground.b2nd

Arrays are blosc2 b2nd files, LZ4 with byte shuffle. A case appears whole or not at all, and ``dataset.json`` is written
last. It holds no patient identifier: patients are known by a hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from medi3d.errors import InputError
from medi3d.io import atomic
from medi3d.io.record import Record
from medi3d.types import Array, IntTriple, PathLike
from medi3d.volume import LabelMap, Volume

FORMAT = 1
"""Version of the layout above; prepared data of another one is prepared anew."""

MAX_FOREGROUND_SAMPLES = 2000
_CHUNK, _BLOCK = 64, 32
_ONE_THREAD = {"nthreads": 1}
_DATASET, _FINGERPRINT, _CASES, _CASE = "dataset.json", "fingerprint.json", "cases", "case.json"
_IMAGE, _LABEL, _FOREGROUND = "image.b2nd", "label.b2nd", "foreground.b2nd"


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
        path = self.folder / _FOREGROUND
        if not path.exists():
            return {}
        rows = np.asarray(_open(path)[:])
        return {int(value): rows[rows[:, 0] == value, 1:] for value in np.unique(rows[:, 0])}


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
        """Statistics of the raw data, see :mod:`medi3d.preprocess.fingerprint`."""
        return _read_json(self.folder / _FINGERPRINT)

    def cases(self) -> list[PreparedCase]:
        """Return the cases, sorted by ``case_id``."""
        return [read_case(case_folder(self.folder, case_id)) for case_id in sorted(self._dataset["cases"])]


def case_folder(store: Path, case_id: str) -> Path:
    """Return where a case lies in a store."""
    return store / _CASES / case_id


def open_for_writing(store: Path, task_values: Mapping[str, Any]) -> None:
    """Make the folders of a store and drop half-written leftovers.

    A store of the same settings stays readable meanwhile: its cases are replaced whole, one by one. One of other
    settings is unfinished from now until :func:`finish`, so that no one trains on a mixture.

    Args:
        store: the store's folder.
        task_values: what ``dataset.json`` holds as ``task``.
    """
    cases = store / _CASES
    cases.mkdir(parents=True, exist_ok=True)
    atomic.remove_leftovers(cases)
    try:
        earlier = PreparedStore(store).task_values
    except InputError:
        earlier = {}
    if earlier != json.loads(json.dumps(task_values)):
        withdraw(store)


def withdraw(store: Path) -> None:
    """Mark a store as unfinished; its cases stay."""
    (store / _DATASET).unlink(missing_ok=True)


def finish(store: Path, *, dataset: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Write ``fingerprint.json`` and, last, ``dataset.json`` of a store whose cases are all written."""
    atomic.write_bytes(store / _FINGERPRINT, _to_json(fingerprint))
    atomic.write_bytes(store / _DATASET, _to_json({"format": FORMAT, **dataset}))


def stored_case_ids(store: Path) -> list[str]:
    """List the cases that lie in a store's folder, whether they belong to its data set or not."""
    return sorted(path.parent.name for path in (store / _CASES).glob(f"*/{_CASE}"))


def write_case(case: PreparedCase, image: Volume, label: LabelMap | None) -> None:
    """Write a case to ``case.folder``, in place of an earlier version; it appears whole or not at all.

    Args:
        case: its description; ``case.record.prepared`` is the grid of ``image`` and ``label``.
        image: ``(C, D, H, W)``, stored as float32.
        label: ``(1, D, H, W)`` with values up to 255, or ``None``.

    Raises:
        InputError: label values do not fit uint8.
    """
    if label is not None and (label.array.min() < 0 or label.array.max() > 255):
        raise InputError(f"case {case.case_id}: prepared label values must lie in 0..255")
    with atomic.new_folder(case.folder) as folder:
        _write_array(np.asarray(image.array, dtype=np.float32), folder / _IMAGE)
        if label is not None:
            _write_array(label.array.astype(np.uint8), folder / _LABEL)
            _write_foreground(label.array[0], folder / _FOREGROUND)
        values = {
            "format": FORMAT,
            "case_id": case.case_id,
            "group": case.group,
            "target": case.target,
            "content_hash": case.content_hash,
            "record": case.record.to_json(),
            "statistics": case.statistics,
        }
        (folder / _CASE).write_bytes(_to_json(values))


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
    """Return the content hash of the case in ``folder``, ``None`` where there is no readable one of this format."""
    try:
        values = _read_json(folder / _CASE)
    except (OSError, InputError):
        return None
    return values.get("content_hash") if values.get("format") == FORMAT else None


def _open(path: Path) -> blosc2.NDArray:
    try:
        return blosc2.open(str(path), mode="r", dparams=_ONE_THREAD)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: unreadable prepared array ({error}); run `medi3d preprocess --overwrite`") from None


def _write_array(array: Array, path: Path) -> None:
    lead = (1,) * (array.ndim - 3)
    chunks = lead + tuple(min(_CHUNK, n) for n in array.shape[-3:])
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=str(path),
        mode="w",
        chunks=chunks,
        blocks=lead + tuple(min(_BLOCK, n) for n in array.shape[-3:]),
        cparams={"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], **_ONE_THREAD},
    )


def _write_foreground(label: Array, path: Path) -> None:
    """Store rows ``(value, d, h, w)`` of sampled voxels of every foreground value of ``label``, ``(D, H, W)``."""
    generator = np.random.default_rng(0)
    rows = []
    for value in np.unique(label[label > 0]):
        flat = np.flatnonzero(label == value)
        if flat.size > MAX_FOREGROUND_SAMPLES:
            flat = np.sort(generator.choice(flat, MAX_FOREGROUND_SAMPLES, replace=False))
        where = np.stack(np.unravel_index(flat, label.shape), axis=1)
        rows.append(np.insert(where, 0, value, axis=1))
    if rows:
        blosc2.asarray(np.concatenate(rows).astype(np.int32), urlpath=str(path), mode="w", cparams=_ONE_THREAD)


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
