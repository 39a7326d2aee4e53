"""One case, from its raw files to the prepared store: what a worker process does, and so imports little."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medi3d.config import TaskConfig, dump_task
from medi3d.errors import Medi3dError
from medi3d.io import atomic, prepared
from medi3d.io.files import source_files
from medi3d.io.prepared import PreparedCase
from medi3d.preprocess.cases.raw_case import RawCase
from medi3d.preprocess.cases.sources import hash_patient
from medi3d.preprocess.pipeline import open_case

logger = logging.getLogger(__name__)

_HASHED_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class Job:
    """What is to be done for one case.

    Args:
        raw: the case.
        task: the task, with nothing left to be measured.
        settings: see :func:`settings_hash`.
        store: folder of the prepared store.
        stored: content hash of the case as the run found it in the store; ``None`` where there is none, or where it
            shall be prepared whatever is there. What a run has written itself is not unchanged, though a case is tried
            again where the process that had just written it was killed with another's.
        scratch: folder for voxels that shall not be held in memory.
    """

    raw: RawCase
    task: TaskConfig
    settings: str
    store: Path
    stored: str | None = None
    scratch: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case: prepared now, unchanged, or a problem in one line."""

    case_id: str
    is_new: bool = False
    problem: str | None = None


def prepare_one(job: Job) -> Outcome:
    """Prepare one case and store it; whatever is wrong with it is part of the outcome."""
    raw = job.raw
    try:
        return Outcome(raw.case_id, is_new=_prepare_and_write(job))
    except (Medi3dError, OSError, MemoryError) as error:
        return Outcome(raw.case_id, problem=_one_line(error))
    except Exception as error:
        # a bug, or a file as no one has seen it yet: the other cases go on. A message may name files: it is not logged
        logger.debug(
            "case %s: %s\n%s", raw.case_id, type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
        )
        return Outcome(raw.case_id, problem=f"{raw.images[0]}: unexpected {_one_line(error)}")


def content_hash(raw: RawCase, settings: str) -> str:
    """Hash the bytes of a case's files, whatever they are called, with all that its result depends on."""
    digest = hashlib.blake2b(digest_size=16)
    case = [settings, raw.target, raw.frame, hash_patient(raw.patient_id)]
    digest.update(json.dumps(case).encode())
    for path in (*raw.images, raw.label, raw.center):
        digest.update(b"|")
        for file in source_files(path) if path is not None else ():
            digest.update(_hash_file(file))
    return digest.hexdigest()


def settings_hash(task: TaskConfig) -> str:
    """Hash the settings that a prepared case depends on, and the store's format."""
    values = dump_task(task)
    keys = ("channels", "labels", "ignore_label", "classes", "fourth_axis", "quantities")
    # without an ignore label, cases are what they were before there was one
    data = {key: values["data"][key] for key in keys if values["data"][key] is not None}
    settings = json.dumps([prepared.FORMAT, task.kind, data, values["preprocess"]], sort_keys=True)
    return hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()


def _hash_file(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_A_TIME):
            digest.update(block)
    return digest.digest()


def _prepare_and_write(job: Job) -> bool:
    raw = job.raw
    folder = prepared.case_folder(job.store, raw.case_id)
    digest = content_hash(raw, job.settings)
    if job.stored == digest:
        return False
    with _scratch_folder(job.scratch) as scratch:
        opened = open_case(raw, job.task, scratch=scratch)
        case = PreparedCase(
            folder=folder,
            case_id=raw.case_id,
            group=hash_patient(raw.patient_id),
            target=raw.target,
            record=opened.record,
            content_hash=digest,
            statistics=opened.statistics,
        )
        prepared.write_case(case, opened.image, opened.label, ignore_label=job.task.data.ignore_label)
    return True


@contextmanager
def _scratch_folder(parent: Path | None) -> Iterator[Path | None]:
    """Give a folder of one's own inside ``parent``, removed afterwards."""
    if parent is None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=parent, prefix=atomic.TEMPORARY_PREFIX) as folder:
        yield Path(folder)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Medi3dError) else f"{type(error).__name__}: {text}"
