"""A whole data set into the prepared store: parallel, resumable, one bad case stops nothing.

A case is prepared again only when its files or the settings that matter have changed (a hash over both tells). What
belongs to the data set is what the raw folder holds now: a case that was prepared earlier and is no longer there, or
can no longer be used, stays on disk untouched but is not listed in ``dataset.json``, so nothing reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medi3d._version import __version__
from medi3d.config import TaskConfig, dump_task
from medi3d.io import prepared
from medi3d.preprocess.cases.raw_case import CaseProblem, RawCase
from medi3d.preprocess.cases.sources import find_raw_cases
from medi3d.preprocess.pipeline import estimate_bytes
from medi3d.preprocess.quality.findings import assess
from medi3d.preprocess.quality.fingerprint import join_fingerprint
from medi3d.preprocess.scheduling.budget import Budget
from medi3d.preprocess.scheduling.executors import Cluster, Piece, Pool, Processes, run_all
from medi3d.preprocess.scheduling.jobs import Job, Outcome, prepare_one, settings_hash
from medi3d.preprocess.survey import CaseSurvey, resolve
from medi3d.preprocess.threads import one_thread
from medi3d.types import PathLike

Progress = Callable[[int, int], None]
"""Called with (cases done, cases in all)."""

_MOST_GROWTH = 8 * 1032
"""Bytes of memory for a byte of a file, at most: deflate packs 1032 into one, and voxels may become larger types."""

KILLED = (
    "the process that worked on this case was killed twice, most likely for lack of memory; give more memory, or less "
    "to others (--memory, --workers)"
)


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

    def problems_to_keep(self, task: TaskConfig) -> list[tuple[str, str]]:
        """Return case ids and messages for files that are kept and passed on.

        A message names files, whose names may name patients; where ``data.hash_case_ids`` says that they do, it is left
        to the console.
        """
        hidden = "cannot be used; `medi3d preprocess` says why (the message names files, so it is not kept here)"
        return [(problem.case_id, hidden if task.data.hash_case_ids else problem.message) for problem in self.problems]


def prepare_dataset(
    raw_folder: PathLike,
    task: TaskConfig,
    output: PathLike,
    *,
    workers: int = 1,
    memory_bytes: int | None = None,
    scheduler: str | None = None,
    scratch: PathLike | None = None,
    on_progress: Progress | None = None,
    overwrite: bool = False,
) -> Summary:
    """Prepare every case of a raw folder.

    Args:
        raw_folder: raw data in the layout that ``task.data`` describes.
        task: the task.
        output: folder of the prepared store.
        workers: number of processes; 1 works in this one.
        memory_bytes: memory of all cases under way together; ``None`` takes 80 % of what is free. A case that needs
            more than that is prepared alone, its voxels in a file that is mapped into memory.
        scheduler: address of a Dask scheduler, ``tcp://host:port``, whose workers then do the work.
        scratch: folder for such files; ``None`` is the store's own.
        on_progress: called after every case.
        overwrite: prepare unchanged cases as well.

    Raises:
        InputError: there is no raw data, another run writes into the store, or no scheduler answers. Where none of the
            cases can be used, all are problems and the store stays unfinished.
        Medi3dError: the store cannot be written; what is prepared is kept.
    """
    store = Path(output)
    raw = find_raw_cases(Path(raw_folder), task.data, need_label=True)
    budget = Budget.of(memory_bytes)
    pool: Pool | None = Processes(workers, budget) if min(workers, len(raw.cases)) > 1 else None
    if scheduler is not None:
        pool = Cluster(scheduler)
        budget = pool.budget
    width = 1 if pool is None else pool.width
    needs = {case.case_id: _needed_bytes(case, task, budget.case_bytes // width) for case in raw.cases}
    task = resolve(task, raw.cases, lambda function, cases: _survey(function, cases, needs, pool))
    settings = settings_hash(task)
    spill = Path(scratch or store)
    with one_thread(), prepared.open_for_writing(store, task_values(task)):
        jobs = [
            Job(
                case,
                task,
                settings,
                store,
                stored=None if overwrite else prepared.stored_hash(prepared.case_folder(store, case.case_id)),
                scratch=spill if needs[case.case_id] > budget.case_bytes else None,
            )
            for case in raw.cases
        ]
        outcomes = _prepare_all([Piece(job, needs[job.raw.case_id]) for job in jobs], pool, on_progress)
        usable = [outcome.case_id for outcome in outcomes if outcome.problem is None]
        failed = [CaseProblem(outcome.case_id, outcome.problem) for outcome in outcomes if outcome.problem is not None]
        finish_store(store, usable, task)
    return Summary(
        prepared=tuple(outcome.case_id for outcome in outcomes if outcome.is_new),
        skipped=tuple(outcome.case_id for outcome in outcomes if outcome.problem is None and not outcome.is_new),
        problems=tuple(sorted([*raw.problems, *failed], key=lambda problem: problem.case_id)),
        left_out=raw.left_out,
        stale=tuple(case_id for case_id in prepared.stored_case_ids(store) if case_id not in set(usable)),
    )


def task_values(task: TaskConfig) -> dict[str, Any]:
    """Return what a store keeps of its task."""
    values = dump_task(task)
    return {key: values[key] for key in ("name", "kind", "data", "preprocess")}


def _needed_bytes(case: RawCase, task: TaskConfig, plenty: int) -> int:
    """Return the memory that a case takes; headers are read only where it might be more than ``plenty``."""
    paths = [path for path in (*case.images, case.label) if path is not None]
    if all(path.name.endswith((".nii", ".nii.gz")) and path.is_file() for path in paths):
        most = _MOST_GROWTH * sum(path.stat().st_size for path in paths)
        if most <= plenty:
            return most
    return estimate_bytes(case, task)


def _survey(
    function: Callable[[RawCase], CaseSurvey | None],
    cases: Iterable[RawCase],
    needs: Mapping[str, int],
    pool: Pool | None,
) -> list[CaseSurvey | None]:
    with closing(run_all(function, [Piece(case, needs[case.case_id]) for case in cases], pool)) as results:
        return [survey for _, survey in results]


def _prepare_all(pieces: Sequence[Piece[Job]], pool: Pool | None, on_progress: Progress | None) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with closing(run_all(prepare_one, pieces, pool)) as results:
        for job, outcome in results:
            outcomes.append(outcome or Outcome(job.raw.case_id, problem=f"{job.raw.images[0]}: {KILLED}"))
            if on_progress is not None:
                on_progress(len(outcomes), len(pieces))
    return sorted(outcomes, key=lambda outcome: outcome.case_id)


def finish_store(store: Path, case_ids: Sequence[str], task: TaskConfig) -> None:
    """Write what is known of a store's cases together; without any it stays unfinished."""
    cases = [prepared.read_case(prepared.case_folder(store, case_id)) for case_id in case_ids]
    if not cases:
        prepared.withdraw(store)
        return
    digest = hashlib.blake2b("".join(case.content_hash for case in cases).encode(), digest_size=16)
    dataset: dict[str, Any] = {
        "medi3d_version": __version__,
        "task": task_values(task),
        "channels": list(task.data.channels),
        "labels": {str(value): name for value, name in task.data.labels.items()},
        "classes": list(task.data.classes),
        "cases": list(case_ids),
        "fingerprint_hash": digest.hexdigest(),
    }
    fingerprint, quality = join_fingerprint(cases, task), assess(cases, task)
    prepared.finish(store, dataset=dataset, fingerprint=fingerprint, quality=quality)
