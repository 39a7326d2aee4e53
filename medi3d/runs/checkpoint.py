"""Checkpoints: written whole or not at all, verified when read, and the one before is kept.

A checkpoint is torch's archive, sealed by its SHA-256 (:mod:`medi3d.seal`). ``last.previous.pt`` lies beside
``last.pt``. Writing goes through these states, and whatever ends it (a kill, a full disk, a power cut) leaves one:

1. The new one grows under a temporary name, hashed while it is written. A crash leaves ``last.pt`` and
   ``last.previous.pt`` as they were, and a leftover that :func:`remove_leftovers` deletes when the run goes on.
2. It is forced to the disk (``fsync``): from here on its name cannot reach the disk before its bytes.
3. ``last.pt`` is renamed to ``last.previous.pt``. A crash leaves no ``last.pt``, and reading takes
   ``last.previous.pt``, which is the last good one. A ``last.pt`` whose seal is not right is not renamed: it would take
   the place of a good one.
4. The new one is renamed to ``last.pt``. Both renames replace their target in one step.
5. The folder is forced to the disk. Before that, a power cut may undo 4, or 4 and 3, or 3 alone: then ``last.pt`` is
   the new one and ``last.previous.pt`` the one before the last. All of these hold whole files.

Reading takes ``last.pt`` and, where that is missing or damaged, ``last.previous.pt`` with a warning that says why.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

from medi3d.errors import Medi3dError, WeightsError
from medi3d.io import atomic
from medi3d.seal import SealingWriter, check_seal

logger = logging.getLogger(__name__)

State = dict[str, Any]

_PLAIN = (bool, int, float, str, type(None))
_BYTES_BESIDE = 512
"""Most that a tensor takes in a file besides its values: its names, padding, the archive's two headers (0.3 kB)."""


def previous_of(path: Path) -> Path:
    """Return where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint in place of the one at ``path``, which becomes the previous one.

    Args:
        state: tensors, which are stored as those of a CPU, plain values, and dicts, lists and tuples of them.
        path: of the file; its folder is made.

    Raises:
        Medi3dError: the disk is full or fails; what was there is whole.
        TypeError: the state holds what could not be read back.
    """
    stored = _to_host(state, "state")
    needed = sum(size + _BYTES_BESIDE for size in _sizes(stored).values())
    with _name_what_is_left(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with atomic.new_file(path) as temporary:
            _write(stored, temporary)
            if _is_good(path):
                path.replace(previous_of(path))
        atomic.sync_folder(path.parent)


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint onto the host; where it is missing or damaged, the one before it, with a warning.

    Raises:
        WeightsError: both are missing, damaged, or hold anything but tensors and plain values.
    """
    problems: list[str] = []
    for candidate in (path, previous_of(path)):
        try:
            state = _read(candidate)
        except WeightsError as error:
            problems.append(str(error))
            continue
        if problems:
            logger.warning("%s; took the one before it, %s, instead", problems[0], candidate.name)
        return state
    raise WeightsError(problems[0] if not previous_of(path).exists() else "; ".join(problems))


def has_checkpoint(path: Path) -> bool:
    """Return whether a checkpoint or the one before it is there, good or not."""
    return path.exists() or previous_of(path).exists()


def _write(state: State, path: Path) -> None:
    with path.open("wb") as stream:
        writer = SealingWriter(stream)
        try:
            torch.save(state, cast(IO[bytes], writer))
        except RuntimeError:
            if writer.failure is None:
                raise
        if writer.failure is not None:
            raise writer.failure
        writer.seal()
        stream.flush()
        os.fsync(stream.fileno())


def _read(path: Path) -> State:
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    try:
        # One open file from check to load: a rename in between changes neither.
        with path.open("rb") as stream:
            sealed = check_seal(stream, path)
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable checkpoint ({reason[:160]})") from None
    if not isinstance(state, dict) or "model" not in state:
        raise WeightsError(f"{path}: not a checkpoint of a medi3d run")
    if not sealed:
        logger.warning("%s: carries no hash, as checkpoints of older versions do not; damage would go unnoticed", path)
    return state


def _is_good(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return check_seal(stream, path)
    except (OSError, WeightsError):
        return False


@contextmanager
def _name_what_is_left(path: Path, needed: int) -> Iterator[None]:
    """Say of a failed write what it needed, on which disk, and what the run still has."""
    try:
        yield
    except OSError as error:
        disk, free = atomic.find_disk(path.parent)
        kept = next((candidate for candidate in (path, previous_of(path)) if _is_good(candidate)), None)
        raise Medi3dError(
            f"{path}: this checkpoint could not be written ({error.strerror or error}): it needs {needed / 1e6:,.1f} "
            f"MB, {free / 1e6:,.1f} MB are free on the disk {disk}; "
            + (f"the last good checkpoint, {kept}, is whole; " if kept else "there is no earlier one; ")
            + "make room there, then `medi3d train --resume` goes on"
        ) from error


def _to_host(value: Any, name: str) -> Any:
    """Return a state whose tensors lie on the CPU, of the classes that are read back without running code."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _to_host(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_to_host(item, f"{name}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if type(value) not in _PLAIN:
        raise TypeError(f"{name}: a {type(value).__name__} cannot be read back from a checkpoint; give plain values")
    return value


def _sizes(value: Any) -> dict[int, int]:
    """Return address → bytes of the memory that all tensors of a state lie in; tied ones share it, in the file too."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return {address: size for item in items for address, size in _sizes(item).items()}
