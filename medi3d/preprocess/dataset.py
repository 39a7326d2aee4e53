"""A whole data set into the prepared store: parallel, resumable, one bad case stops nothing.

A case is prepared again only when its files or the settings that matter have changed (a hash over both tells). What
belongs to the data set is what the raw folder holds now: a case that was prepared earlier and is no longer there, or
can no longer be used, stays on disk untouched but is not listed in ``dataset.json``, so nothing reads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from medi3d._version import __version__
from medi3d.config import TaskConfig, dump_task
from medi3d.errors import InputError, Medi3dError
from medi3d.io import prepared
from medi3d.io.prepared import ArraySlabs, PreparedCase
from medi3d.preprocess.fingerprint import join_fingerprint
from medi3d.preprocess.pipeline import prepare_and_measure
from medi3d.preprocess.raw_case import CaseProblem, RawCase
from medi3d.preprocess.sources import find_raw_cases
from medi3d.types import PathLike

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (cases done, cases in all)."""


@dataclass(frozen=True)
class Summary:
    """What :func:`prepare_dataset` did.

    Args:
        prepared: ids of the cases prepared now.
        skipped: ids of the cases that were prepared before and are unchanged.
        problems: cases that could not be used.
        left_out: rows of the table without a label.
        stale: ids of prepared cases on disk that no longer belong to the data set.
    """

    prepared: tuple[str, ...]
    skipped: tuple[str, ...]
    problems: tuple[CaseProblem, ...]
    left_out: int
    stale: tuple[str, ...]


@dataclass(frozen=True)
class _Outcome:
    case_id: str
    is_new: bool = False
    problem: str | None = None


def prepare_dataset(
    raw_folder: PathLike,
    task: TaskConfig,
    output: PathLike,
    *,
    workers: int = 1,
    on_progress: Progress | None = None,
    overwrite: bool = False,
) -> Summary:
    """Prepare every case of a raw folder.

    Args:
        raw_folder: raw data in the layout that ``task.data`` describes.
        task: the task.
        output: folder of the prepared store.
        workers: number of processes; 1 works in this one.
        on_progress: called after every case.
        overwrite: prepare unchanged cases as well.

    Raises:
        InputError: there is no raw data. Where none of it can be used, all are problems and the store stays unfinished.
    """
    store = Path(output)
    raw = find_raw_cases(Path(raw_folder), task.data, need_label=True)
    prepared.open_for_writing(store, _task_values(task))
    jobs = [(case, task, store, overwrite) for case in raw.cases]
    outcomes: list[_Outcome] = []
    for outcome in _run(jobs, workers):
        outcomes.append(outcome)
        if on_progress is not None:
            on_progress(len(outcomes), len(jobs))
    outcomes.sort(key=lambda outcome: outcome.case_id)
    usable = [outcome.case_id for outcome in outcomes if outcome.problem is None]
    failed = [CaseProblem(outcome.case_id, outcome.problem) for outcome in outcomes if outcome.problem is not None]
    _finish(store, usable, task)
    return Summary(
        prepared=tuple(outcome.case_id for outcome in outcomes if outcome.is_new),
        skipped=tuple(outcome.case_id for outcome in outcomes if outcome.problem is None and not outcome.is_new),
        problems=tuple(sorted([*raw.problems, *failed], key=lambda problem: problem.case_id)),
        left_out=raw.left_out,
        stale=tuple(case_id for case_id in prepared.stored_case_ids(store) if case_id not in set(usable)),
    )


def content_hash(raw: RawCase, task: TaskConfig) -> str:
    """Hash the bytes of a case's files together with the settings and the store's format: equal hash, equal result."""
    digest = hashlib.blake2b(digest_size=16)
    values = dump_task(task)
    data = {key: values["data"][key] for key in ("channels", "labels", "classes")}
    settings = [prepared.FORMAT, task.kind, data, values["preprocess"], raw.target, hash_patient(raw.patient_id)]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in (*raw.images, raw.label, raw.center):
        digest.update(b"|")
        for file in _files_of(path):
            digest.update(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    return digest.hexdigest()


def hash_patient(patient_id: str) -> str:
    """Return 12 hexadecimal digits that stand for a patient."""
    return hashlib.blake2b(patient_id.encode(), digest_size=6).hexdigest()


def _files_of(path: Path | None) -> list[Path]:
    if path is None:
        return []
    return sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]


Job = tuple[RawCase, TaskConfig, Path, bool]


def _run(jobs: list[Job], workers: int) -> Iterator[_Outcome]:
    if min(workers, len(jobs)) <= 1:
        yield from map(_prepare_one, jobs)
        return
    executor = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        for future in as_completed([executor.submit(_prepare_one, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise Medi3dError(
            "a worker process was killed, most likely for lack of memory; use fewer --workers. What is prepared is kept"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Let the parent handle Ctrl-C, and use one thread a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _prepare_one(job: Job) -> _Outcome:
    raw, task, store, overwrite = job
    try:
        return _Outcome(raw.case_id, is_new=_prepare_and_write(raw, task, store, overwrite))
    except (Medi3dError, OSError, MemoryError) as error:
        return _Outcome(raw.case_id, problem=_one_line(error))
    except Exception as error:
        # a bug, or a file as no one has seen it yet: the other cases go on, the trace is in the log
        logger.debug("case %s", raw.case_id, exc_info=True)
        return _Outcome(raw.case_id, problem=f"{raw.images[0]}: unexpected {_one_line(error)}")


def _prepare_and_write(raw: RawCase, task: TaskConfig, store: Path, overwrite: bool) -> bool:
    folder = prepared.case_folder(store, raw.case_id)
    digest = content_hash(raw, task)
    if not overwrite and prepared.stored_hash(folder) == digest:
        return False
    image, label, record, statistics = prepare_and_measure(raw, task)
    case = PreparedCase(
        folder=folder,
        case_id=raw.case_id,
        group=hash_patient(raw.patient_id),
        target=raw.target,
        record=record,
        content_hash=digest,
        statistics=statistics,
    )
    prepared.write_case(case, ArraySlabs(image.array), None if label is None else ArraySlabs(label.array))
    return True


def _finish(store: Path, case_ids: list[str], task: TaskConfig) -> None:
    cases = [prepared.read_case(prepared.case_folder(store, case_id)) for case_id in case_ids]
    if not cases:
        prepared.withdraw(store)
        return
    digest = hashlib.blake2b("".join(case.content_hash for case in cases).encode(), digest_size=16)
    dataset: dict[str, Any] = {
        "medi3d_version": __version__,
        "task": _task_values(task),
        "channels": list(task.data.channels),
        "labels": {str(value): name for value, name in task.data.labels.items()},
        "classes": list(task.data.classes),
        "cases": case_ids,
        "fingerprint_hash": digest.hexdigest(),
    }
    prepared.finish(store, dataset=dataset, fingerprint=join_fingerprint(cases, task))


def _task_values(task: TaskConfig) -> dict[str, Any]:
    values = dump_task(task)
    return {key: values[key] for key in ("name", "kind", "data", "preprocess")}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
