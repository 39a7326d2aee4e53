"""Whole or not at all: files and folders are written under a temporary name and renamed when complete.

Small files that say what is valid are forced to the disk; a folder of arrays is not (see
:func:`medi3d.io.prepared.stored_hash` for how a power cut in between is noticed).
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from medi3d.errors import InputError, Medi3dError

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; its file becomes ``path``, in place of what is there, when the block ends well."""
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that either the old or the whole new content is there, whatever happens, a power cut included."""
    with name_the_disk(path.parent), new_file(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``path``, in place of what is there, when the block ends without an error."""
    temporary = _temporary_sibling(path)
    with name_the_disk(path.parent):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            old = _temporary_sibling(path)
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written in ``folder``; hold the folder's :func:`lock` meanwhile."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def name_the_disk(path: Path) -> Iterator[None]:
    """Say on which disk a write below the folder ``path`` failed, and how much of it is free.

    Raises:
        Medi3dError: in place of an ``OSError``, and of the ``RuntimeError`` that blosc2 raises without its cause.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        disk = next(folder for folder in (path.resolve(), *path.resolve().parents) if os.path.ismount(folder))
        free = shutil.disk_usage(disk).free
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise Medi3dError(
            f"{path}: could not be written ({reason}); {free / 1e6:,.1f} MB are free on the disk {disk}; "
            "make room there or write to another place"
        ) from error


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Keep every other process from writing into ``folder``; the system frees the lock of a killed process.

    Yields:
        Whether there is a lock: not every network disk knows locks, which is logged.

    Raises:
        InputError: another process holds the lock; the message names it.
    """
    with name_the_disk(folder):
        file = (folder / ".lock").open("a+", encoding="utf-8")
    with file:
        locked = _take_lock(file, folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield locked
        finally:
            file.truncate(0)


def _take_lock(file: TextIO, folder: Path) -> bool:
    try:
        import fcntl  # not there on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "just started"
        raise InputError(
            f"{folder}: another run is writing here ({holder}); wait until it has ended, or give another --output"
        ) from None
    except (ImportError, OSError) as error:
        logger.warning("%s: no lock to be had here (%s); do not start two runs on it at once", folder, error)
        return False
    return True
