"""Whole or not at all: files and folders are written under a temporary name and renamed when complete."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """Write a file so that either the old or the whole new content is there, whatever happens."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``path``, in place of what is there, when the block ends without an error."""
    temporary = _temporary_sibling(path)
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
    """Delete what a killed process left half-written in ``folder``."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
