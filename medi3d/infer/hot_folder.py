"""A folder that is watched: what is copied into it is predicted as soon as it has arrived.

A file has arrived when neither its size nor its time has changed for a while: programs that copy do not tell when they
are done, and a system's notices of changes do not reach over network disks.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event

from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.infer.batch import BatchOptions, OnCase, open_batch, raw_source
from medi3d.infer.inputs import list_inputs
from medi3d.infer.predictor import Predictor
from medi3d.infer.summary import PredictionSummary, describe_failure
from medi3d.io import case_name, source_files
from medi3d.preprocess.cases.raw_case import RawCase

logger = logging.getLogger(__name__)

SETTLE_S = 3.0
"""How long a file must have been still."""

_POLL_S = 0.5
_CHANNEL = re.compile(r"_\d{4}$")

State = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""


def watch_folder(
    predictor: Predictor,
    folder: Path,
    output: Path,
    *,
    stop: Event,
    masks: Path | None = None,
    options: BatchOptions | None = None,
    settle_s: float = SETTLE_S,
    on_case: OnCase | None = None,
    on_round: Callable[[PredictionSummary], None] | None = None,
) -> PredictionSummary:
    """Predict what lies in a folder and whatever is put there, until told to stop.

    Args:
        predictor: the trained runs.
        folder: it must exist; see :func:`medi3d.infer.batch.predict_files` for what may lie in it.
        output: another folder.
        stop: when it is set, the case at hand is finished and the call returns.
        masks: see :func:`medi3d.infer.batch.predict_files`.
        options: see :class:`medi3d.infer.batch.BatchOptions`.
        settle_s: how long a file must have been still, in seconds.
        on_case: see :data:`medi3d.infer.batch.OnCase`.
        on_round: called with all that was done so far when the cases that had arrived are done.

    Raises:
        InputError: no such folder, it is the output folder, or another process predicts into that.
        Medi3dError: the output folder cannot be written.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder to watch; make it, or give --input for a file")
    if folder.resolve() == output.resolve():
        raise InputError(f"{folder}: is watched and written to, so that outputs would be inputs; give another --output")
    options = options or BatchOptions()
    arrivals = Arrivals(settle_s)
    with open_batch(predictor, output, raw_source(options), options) as batch:
        while not stop.is_set():
            if arrivals.look(_list_files(folder), time.monotonic()):
                cases, problems = _list_cases(folder, predictor.task, masks)
                batch.summary.entries.update({name: describe_failure(name, text) for name, text in problems.items()})
                new = [case for case in cases if arrivals.take(case)]
                batch.run([(case, predictor) for case in new], on_case=on_case, is_stopped=stop.is_set)
                if on_round is not None and (new or problems):
                    on_round(batch.summary)
            stop.wait(_POLL_S)
    return batch.summary


class Arrivals:
    """Which files have been still for a while, and which cases were taken since.

    Args:
        settle_s: how long a file must have been still.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[Path, tuple[State, float]] = {}
        self._still: dict[Path, State] = {}
        self._taken: dict[str, Mapping[Path, State]] = {}

    def look(self, files: Mapping[Path, State], now: float) -> bool:
        """Take note of the files that there are.

        Args:
            files: path → state.
            now: seconds of a clock.

        Returns:
            Whether other files have arrived than at the last look.
        """
        before = self._still
        self._since = {
            path: seen if (seen := self._since.get(path)) is not None and seen[0] == state else (state, now)
            for path, state in files.items()
        }
        self._still = {path: state for path, (state, since) in self._since.items() if now - since >= self._settle_s}
        return self._still != before and bool(self._still)

    def take(self, case: RawCase) -> bool:
        """Tell whether all files of a case have arrived and it was not taken as it is; if so, it now is."""
        files = [path.resolve() for path in _files_of(case)]
        states = {path: self._still[path] for path in files if path in self._still}
        if len(states) < len(files) or self._taken.get(case.case_id) == states:
            return False
        self._taken[case.case_id] = states
        return True


def _list_files(folder: Path) -> dict[Path, State]:
    """Return all files below a folder, hidden ones left out; one that vanishes meanwhile is none."""
    found: dict[Path, State] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent) / name for name in names if not name.startswith(".")):
            try:
                status = path.stat()
            except OSError:
                continue
            found[path.resolve()] = (status.st_size, status.st_mtime_ns)
    return found


def _list_cases(folder: Path, task: TaskConfig, masks: Path | None) -> tuple[Sequence[RawCase], dict[str, str]]:
    try:
        found = list_inputs(folder, task, masks)
    except InputError as error:
        logger.warning("%s", error)
        return [], {}
    whole = [case for case in found.cases if not _is_part(case, task)]
    return whole, {problem.case_id: problem.message for problem in found.problems}


def _is_part(case: RawCase, task: TaskConfig) -> bool:
    """Tell whether a case is a channel, or some, of one whose other channels have yet to arrive."""
    return len(case.images) < task.in_channels and _CHANNEL.search(case_name(case.images[0])) is not None


def _files_of(case: RawCase) -> list[Path]:
    """Return all files of an image; of one that cannot be opened, those that are named: reading will refuse it."""
    try:
        return [file for path in case.images for file in source_files(path)]
    except InputError:
        return [path for path in case.images if path.is_file()]
