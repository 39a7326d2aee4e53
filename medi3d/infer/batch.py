"""Prediction of many cases into one folder: a bad one is named and left out, and what is there already is kept.

Three things go on at once: a thread reads and prepares the next case, the networks are at work on this one, and another
thread writes the last one. Each waits for the next in line, so that memory never holds more than one case of each.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from medi3d._version import __version__
from medi3d.config import dump_task
from medi3d.errors import InputError, Medi3dError
from medi3d.infer.inputs import find_center, list_inputs
from medi3d.infer.journal import PROBABILITIES, Journal, Line, open_journal
from medi3d.infer.predictor import Prediction, Predictor, PreparedInput
from medi3d.infer.summary import PredictionSummary, describe_failure, describe_grid, measure_volumes
from medi3d.io import PreparedCase, Record, atomic, write_label_map, write_volume
from medi3d.preprocess.cases.raw_case import RawCase, RawCases
from medi3d.preprocess.cases.reading import read_image
from medi3d.preprocess.scheduling.jobs import content_hash
from medi3d.seal import hash_file
from medi3d.volume import Volume

logger = logging.getLogger(__name__)

C = TypeVar("C", RawCase, PreparedCase)

OnCase = Callable[[str, int, int], None]
"""Called with a case id, its number and the number of cases before each case."""


@dataclass(frozen=True)
class Source(Generic[C]):
    """How cases of a kind are told apart and read.

    Args:
        hash_case: a case and a hash of the settings → hash of all that its prediction depends on.
        read_case: runs and a case → what their networks take.
    """

    hash_case: Callable[[C, str], str]
    read_case: Callable[[Predictor, C], PreparedInput]


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is predicted.

    Args:
        center_of_image: for tasks that cut a cube: cut it in the middle of the volume.
        out_of_fold: predict each case only with the runs that held it out, and leave out cases that none did.
        probabilities: labels whose probabilities are written as well, into the folder ``probabilities``.
        overwrite: predict again what is there already.
    """

    center_of_image: bool = False
    out_of_fold: bool = False
    probabilities: tuple[int, ...] = ()
    overwrite: bool = False


def predict_files(
    predictor: Predictor,
    source: Path,
    output: Path,
    *,
    masks: Path | None = None,
    options: BatchOptions | None = None,
    on_case: OnCase | None = None,
) -> PredictionSummary:
    """Predict a file, a folder of files, a DICOM series, or the rows of a CSV table.

    Args:
        predictor: the trained runs.
        source: what to predict. Files of several channels bear nnU-Net's suffixes ``_0000``, ``_0001``, ….
        output: folder; a label map bears its input's name, probabilities go to ``predictions.csv``, beside the label
            maps where the task has both. What the same models made there of the same input is kept.
        masks: for tasks that cut a cube: a mask, or a folder of masks with the inputs' names, that tell where.
        options: see :class:`BatchOptions`.
        on_case: called with a case id, its number and the number of cases before each case.

    Raises:
        InputError: there is nothing to predict, or another process predicts into the folder.
        Medi3dError: the folder cannot be written.
    """
    found = list_inputs(source, predictor.task, masks)
    try:
        return predict_cases(predictor, found, output, options=options, on_case=on_case)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def predict_cases(
    predictor: Predictor,
    found: RawCases,
    output: Path,
    *,
    options: BatchOptions | None = None,
    on_case: OnCase | None = None,
) -> PredictionSummary:
    """Predict raw cases, as :func:`predict_files` does.

    Raises:
        InputError: ``out_of_fold``, and these runs held none of the cases out.
    """
    options = options or BatchOptions()
    problems = {problem.case_id: problem.message for problem in found.problems}
    return _predict_all(predictor, found.cases, output, raw_source(options), problems, options, on_case)


def predict_prepared_cases(
    predictor: Predictor,
    cases: Sequence[PreparedCase],
    output: Path,
    *,
    options: BatchOptions | None = None,
    on_case: OnCase | None = None,
) -> PredictionSummary:
    """Predict prepared cases, as :func:`predict_files` does; label maps lie on the prepared grid.

    Raises:
        InputError: ``out_of_fold``, and these runs held none of the cases out.
    """
    return _predict_all(predictor, cases, output, _PREPARED, {}, options or BatchOptions(), on_case)


def raw_source(options: BatchOptions) -> Source[RawCase]:
    """Return how raw cases are read."""

    def read_case(runs: Predictor, case: RawCase) -> PreparedInput:
        task = runs.task
        volume = read_image(case.images, channels=task.in_channels, frame=case.frame, quantities=task.quantities)
        center_mm = find_center(case, volume, task, center_of_image=options.center_of_image)
        return runs.prepare(volume, center_mm=center_mm)

    return Source(content_hash, read_case)


def _read_prepared(runs: Predictor, case: PreparedCase) -> PreparedInput:
    grid = case.record.prepared
    return PreparedInput(torch.from_numpy(np.asarray(case.image()[:])), Record(native=grid, prepared=grid))


_PREPARED: Source[PreparedCase] = Source(
    lambda case, settings: hashlib.sha256(f"{settings} {case.content_hash}".encode()).hexdigest(), _read_prepared
)


def _predict_all(
    predictor: Predictor,
    cases: Sequence[C],
    output: Path,
    source: Source[C],
    problems: dict[str, str],
    options: BatchOptions,
    on_case: OnCase | None,
) -> PredictionSummary:
    chosen = [predictor.holding_out(case.case_id) if options.out_of_fold else predictor for case in cases]
    jobs = [(case, runs) for case, runs in zip(cases, chosen, strict=True) if runs is not None]
    if not jobs and not problems:
        raise InputError("nothing to predict" + (" that these runs held out" if options.out_of_fold else ""))
    with open_batch(predictor, output, source, options) as batch:
        batch.summary.entries.update({case: describe_failure(case, message) for case, message in problems.items()})
        batch.run(jobs, on_case=on_case)
        return batch.summary


@contextmanager
def open_batch(predictor: Predictor, output: Path, source: Source[C], options: BatchOptions) -> Iterator[Batch[C]]:
    """Open a folder to predict cases into; while it is open, no other process does.

    Raises:
        InputError: another process predicts into it.
        Medi3dError: it cannot be written.
    """
    with open_journal(output) as journal:
        yield Batch(predictor, output, source, options, journal)


@dataclass(frozen=True)
class _Opened:
    """A case that is ready for the networks."""

    key: str
    prepared: PreparedInput
    read_s: float


class Batch(Generic[C]):
    """The cases that are predicted into a folder.

    Args:
        predictor: all the runs.
        output: the folder.
        source: how cases are read.
        options: how they are predicted.
        journal: of the folder, see :func:`open_batch`.

    Attributes:
        summary: what has been done so far.
    """

    def __init__(
        self, predictor: Predictor, output: Path, source: Source[C], options: BatchOptions, journal: Journal
    ) -> None:
        self._task, self._output = predictor.task, output
        self._source: Source[C] = source
        self._options, self._journal = options, journal
        self._classes: dict[str, list[float]] = {}
        segmentation = self._task.kind == "segmentation"
        self.summary = PredictionSummary(output if segmentation else output / "predictions.csv")

    def run(
        self,
        jobs: Sequence[tuple[C, Predictor]],
        *,
        on_case: OnCase | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Predict cases, each by its runs, and write what came of them.

        Args:
            jobs: cases and who predicts them.
            on_case: see :data:`OnCase`.
            is_stopped: asked before each case whether to leave it and all that follow.

        Raises:
            Medi3dError: the folder cannot be written.
        """
        with ThreadPoolExecutor(1, "read") as ahead, ThreadPoolExecutor(1, "write") as behind:
            coming = [ahead.submit(self._open, *jobs[0])] if jobs else []
            writing: list[Future[None]] = []
            for number, (case, runs) in enumerate(jobs):
                if is_stopped():
                    break
                if on_case is not None:
                    on_case(case.case_id, number, len(jobs))
                opened = coming.pop().result()
                if number + 1 < len(jobs):
                    coming.append(ahead.submit(self._open, *jobs[number + 1]))
                finish = self._predict(case, runs, opened)
                if writing:
                    writing.pop().result()
                writing.append(behind.submit(finish))
            for last in writing:
                last.result()
        if self._classes:
            _write_table(self._output / "predictions.csv", self._task.data.classes, self._classes)

    def _open(self, case: C, runs: Predictor) -> _Opened | Line | str:
        """Read and prepare a case, unless its outputs are there; return what is wrong with it as a message."""
        start = time.perf_counter()
        try:
            key = self._source.hash_case(case, self._hash_settings(runs))
            line = None if self._options.overwrite else self._journal.find(case.case_id, key)
            if line is not None:
                return line
            prepared = self._source.read_case(runs, case)
        except Exception as error:
            return _describe(error, case.case_id)
        return _Opened(key, prepared, time.perf_counter() - start - prepared.seconds)

    def _predict(self, case: C, runs: Predictor, opened: _Opened | Line | str) -> Callable[[], None]:
        """Let the networks predict a case; return what is left to do, which needs them no more."""
        case_id = case.case_id
        if isinstance(opened, str):
            return lambda: self._note_failure(case_id, opened)
        if isinstance(opened, Line):
            return lambda: self._note(opened, "kept")
        try:
            prediction = runs.predict_input(opened.prepared, probabilities=self._options.probabilities)
        except Exception as error:
            message = _describe(error, case_id)
            return lambda: self._note_failure(case_id, message)
        grid = opened.prepared.record.native
        start = {"case_id": case_id, "status": "predicted", "warnings": list(prediction.warnings)}
        entry = start | {"input": describe_grid(grid), "seconds": {"read": opened.read_s, **prediction.seconds}}
        key = opened.key
        return lambda: self._write(key, entry, prediction)

    def _write(self, key: str, entry: dict[str, Any], prediction: Prediction) -> None:
        start, case_id = time.perf_counter(), str(entry["case_id"])
        with atomic.name_the_disk(self._output):
            files = list(self._write_files(case_id, prediction))
        if prediction.label is not None:
            entry["volumes_ml"] = measure_volumes(prediction.label, self._task.data.labels)
        classes = None if prediction.classes is None else [float(value) for value in prediction.classes]
        if classes is not None:
            entry["classes"] = dict(zip(self._task.data.classes, classes, strict=True))
        entry["seconds"]["write"] = time.perf_counter() - start
        entry["seconds"] = {part: round(seconds, 4) for part, seconds in entry["seconds"].items()}
        hashes = {str(file.relative_to(self._output)): hash_file(file) for file in files}
        line = Line(case_id, key, entry, hashes, classes)
        self._journal.add(line)
        self._note(line, "predicted")

    def _write_files(self, case_id: str, prediction: Prediction) -> Iterator[Path]:
        if prediction.label is not None:
            path = self._output / f"{case_id}.nii.gz"
            write_label_map(prediction.label, path)
            yield path
        if prediction.probabilities is not None:
            volume = prediction.probabilities
            for label, channel in zip(self._options.probabilities, volume.array, strict=True):
                path = self._output / PROBABILITIES / f"{case_id}_{label}.nii.gz"
                write_volume(Volume(channel[None], volume.affine), path)
                yield path

    def _note(self, line: Line, status: str) -> None:
        self.summary.entries[line.case_id] = line.entry | {"status": status}
        if line.classes is not None:
            self._classes[line.case_id] = line.classes

    def _note_failure(self, case_id: str, message: str) -> None:
        self.summary.entries[case_id] = describe_failure(case_id, message)
        self._classes.pop(case_id, None)

    def _hash_settings(self, runs: Predictor) -> str:
        """Hash what a prediction depends on besides the input: models, the way they predict, the program."""
        models = [(model.checkpoint_sha256, model.plan_sha256) for model in runs.models]
        options = self._options.center_of_image, self._options.probabilities
        settings = [__version__, models, dump_task(runs.task)["infer"], options]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _write_table(path: Path, names: Sequence[str], classes: Mapping[str, Sequence[float]]) -> None:
    with atomic.new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("case_id", *names, "predicted"))
        for case_id, values in classes.items():
            row = np.asarray(values)
            writer.writerow([case_id, *row.round(6).tolist(), names[int(row.argmax())]])


def _describe(error: Exception, case_id: str) -> str:
    """Say in one line what is wrong with a case; the others go on."""
    text = " ".join(str(error).split())
    if isinstance(error, Medi3dError):
        return text
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"out of memory ({text[:160]}); free some, or predict it on another machine or with --device cpu"
    # a bug, or a file as no one has seen it yet. A message may name files: it is not logged
    trace = "".join(traceback.format_tb(error.__traceback__))
    logger.debug("case %s: %s\n%s", case_id, type(error).__name__, trace)
    return f"unexpected {type(error).__name__}: {text[:300]}"
