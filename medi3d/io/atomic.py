"""Whole or not at all: files and folders are written under a temporary name and renamed when complete.

Small files that say what is valid are forced to the disk; a folder of arrays is not (see
:func:`medi3d.io.prepared.stored_hash` for how a power cut in between is noticed).
"""

from __future__ import annotations

import errno
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


class LockedError(InputError):
    """Another process is at work in a folder."""


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
        disk, free = find_disk(path)
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise Medi3dError(
            f"{path}: could not be written ({reason}); {free / 1e6:,.1f} MB are free on the disk {disk}; "
            "make room there or write to another place"
        ) from error


def find_disk(path: Path) -> tuple[Path, int]:
    """Return the disk that ``path`` lies on, or would, and how many bytes of it are free."""
    disk = next(folder for folder in (path.resolve(), *path.resolve().parents) if os.path.ismount(folder))
    return disk, shutil.disk_usage(disk).free


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, so that a power cut takes back no rename that was made there."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a disk answers that knows no such thing
            raise
    finally:
        os.close(descriptor)


_locks_held: set[TextIO] = set()


def _leave_locks_to_the_parent() -> None:
    """Close the lock files that a forked process has inherited: it would keep the lock when its parent is killed."""
    while _locks_held:
        _locks_held.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextmanager
def lock(folder: Path, *, way_out: str = "give another --output") -> Iterator[bool]:
    """Keep every other process from writing into ``folder``; the system frees the lock of a killed process.

    Args:
        folder: it must exist.
        way_out: what the message about a lock that another process holds suggests besides waiting.

    Yields:
        Whether there is a lock: not every network disk knows locks, which is logged.

    Raises:
        LockedError: another process holds the lock; the message names it.
    """
    with name_the_disk(folder):
        file = (folder / ".lock").open("a+", encoding="utf-8")
    with file:
        locked = _take_lock(file, folder, way_out)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        _locks_held.add(file)
        try:
            yield locked
        finally:
            _locks_held.discard(file)
            if not file.closed:  # as it is in a process that was forked meanwhile
                file.truncate(0)


def _take_lock(file: TextIO, folder: Path, way_out: str) -> bool:
    try:
        import fcntl  # not there on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "just started"
        raise LockedError(
            f"{folder}: another run is writing here ({holder}); wait until it has ended, or {way_out}"
        ) from None
    except (ImportError, OSError) as error:
        logger.warning("%s: no lock to be had here (%s); do not start two runs on it at once", folder, error)
        return False
    return True
