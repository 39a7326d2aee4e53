"""Which steps of post-processing help: tried on cases that the networks were not trained on, one after the other.

The search is greedy, as nnU-Net's (Isensee et al. 2021) is for its one kind of step: of all candidates for a structure
the one is taken that raises the mean Dice most, then the next one on top of it, until none does. Steps on single labels
change no other label's Dice, so labels are searched one by one, after the steps that take all labels together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medi3d.config import TaskConfig
from medi3d.config.postprocess import FillHoles, LargestComponent, PostprocessStep, RemoveSmall, Smooth
from medi3d.errors import ConfigError, InputError
from medi3d.evaluate import Interval, bootstrap_difference, dice_scores, mean_of
from medi3d.infer.batch import BatchOptions, predict_cases, predict_prepared_cases
from medi3d.infer.postprocess import postprocess
from medi3d.infer.predictor import Predictor
from medi3d.io import PreparedCase, PreparedStore, atomic, read_label_map
from medi3d.preprocess.cases.raw_case import RawCases
from medi3d.preprocess.cases.sources import find_raw_cases
from medi3d.runs.folder import RunFolder
from medi3d.types import Array, FloatArray
from medi3d.volume import LabelMap

MIN_ML = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Volumes below which pieces are removed, that are tried."""
SIGMA_MM = (0.5, 1.0, 2.0)
"""Standard deviations of smoothing that are tried."""

MOST_STEPS = 3
"""For a structure."""

_CHECKPOINT = "last"
"""The best one was chosen by its score on the very cases that are predicted here."""

OnCase = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """A step that was taken, and what it did to the cases.

    Args:
        step: the step.
        structure: label name, or ``all labels``.
        before: mean Dice of the structure without it.
        gain: by how much the step raises it, with the paired bootstrap interval.
        improved: number of cases whose Dice it raises.
        worsened: number of cases whose Dice it lowers.
    """

    step: PostprocessStep
    structure: str
    before: float
    gain: Interval
    improved: int
    worsened: int


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Args:
        steps: in the order in which they are done.
        trials: of each of them.
        candidates: how many were tried.
        cases: on how many cases.
        grid: ``native``, or ``prepared`` where the raw data is not at hand.
        before: mean Dice of all labels without any step.
        after: with all steps.
        gain: their difference, with the paired bootstrap interval.
    """

    steps: tuple[PostprocessStep, ...]
    trials: tuple[Trial, ...]
    candidates: int
    cases: int
    grid: str
    before: float
    after: float
    gain: Interval

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A case that was held out.

    Args:
        case_id: its name.
        group: its patient's hash.
        read: returns prediction and reference.
    """

    case_id: str
    group: str
    read: Callable[[], tuple[LabelMap, LabelMap]]


def predict_plainly(
    runs: Sequence[Path], *, prepared: Path, raw: Path, output: Path, device: str, on_case: OnCase
) -> tuple[list[Case], str]:
    """Predict the cases that runs held out, without post-processing; what is there already is kept.

    Args:
        runs: of one task; each case is predicted by those that held it out.
        prepared: the prepared store.
        raw: folder of the raw data; where it does not exist, the prepared grid takes the scanner's place.
        output: folder of the predictions.
        device: to predict on.
        on_case: called before each case.

    Returns:
        The cases that could be predicted, and the grid, ``native`` or ``prepared``.

    Raises:
        InputError: the runs held no case of the store out.
        ConfigError: the task is no segmentation.
    """
    predictor = Predictor(runs, device=device, checkpoint=_CHECKPOINT, overrides={"infer.postprocess": []})
    task = predictor.task
    if task.kind != "segmentation":
        raise ConfigError(f"{runs[0]}: task {task.name} is a classification; it has no label maps to post-process")
    held_out = {case_id for run in runs for case_id in RunFolder(run).load_split().validation}
    stored = {case.case_id: case for case in PreparedStore(prepared).cases() if case.case_id in held_out}
    options = BatchOptions(out_of_fold=True)
    if not raw.exists():
        done = predict_prepared_cases(predictor, list(stored.values()), output, options=options, on_case=on_case)
        return [_prepared_case(stored[name], output) for name in done.predicted], "prepared"
    found = find_raw_cases(raw, task.data, need_label=True)
    wanted = {case.case_id: case.label for case in found.cases if case.case_id in stored}
    chosen = RawCases([case for case in found.cases if case.case_id in wanted])
    done = predict_cases(predictor, chosen, output, options=options, on_case=on_case)
    return [_raw_case(stored[name], output, wanted[name]) for name in done.predicted], "native"


def choose_steps(cases: Sequence[Case], task: TaskConfig, *, grid: str) -> Choice:
    """Search the steps that raise the mean Dice of the task's labels.

    Args:
        cases: see :func:`predict_plainly`.
        task: names the labels; ``evaluate.bootstrap`` and ``train.seed`` are used.
        grid: for the record.

    Raises:
        InputError: there are no cases.
    """
    if not cases:
        raise InputError("no held-out case could be predicted, so there is nothing to choose by")
    names = list(task.data.labels.values())
    steps: list[PostprocessStep] = []
    trials: list[Trial] = []
    tried = 0
    for structure, candidates in _list_candidates(task):
        columns = [names.index(structure)] if structure in names else list(range(len(names)))
        for _ in range(MOST_STEPS):
            table = np.stack([_score(case, task, steps, candidates) for case in cases])
            tried += len(candidates)
            scores = _mean_of_known(table[..., columns])  # (cases, 1 + candidates)
            means = _mean_of_known(scores.T)
            best = int(np.nanargmax(means[1:])) + 1 if np.isfinite(means[1:]).any() else 0
            if best == 0 or not means[best] > means[0]:
                break
            steps.append(candidates[best - 1])
            trials.append(_describe_trial(steps[-1], structure, scores[:, 0], scores[:, best], cases, task))
    plain, final = (np.stack([_score(case, task, chosen, ())[0] for case in cases]) for chosen in ((), steps))
    before, after = _mean_of_known(plain), _mean_of_known(final)
    gain = _gain(before, after, cases, task)
    return Choice(tuple(steps), tuple(trials), tried, len(cases), grid, _mean_over(before), _mean_over(after), gain)


def _list_candidates(task: TaskConfig) -> Iterator[tuple[str, Sequence[PostprocessStep]]]:
    """Yield what is tried, the mildest first: of equally good steps the first is taken.

    For all labels together, where there are several, then for each.
    """
    labels = tuple(sorted(task.data.labels))
    if len(labels) > 1:
        yield "all labels", _list_steps(labels, together=True)
    for label in labels:
        yield task.data.labels[label], _list_steps((label,), together=False)


def _list_steps(labels: tuple[int, ...], *, together: bool) -> list[PostprocessStep]:
    return [
        *(RemoveSmall(labels=labels, together=together, min_ml=ml) for ml in MIN_ML),
        FillHoles(labels=labels),
        LargestComponent(labels=labels, together=together),
        *(Smooth(labels=labels, sigma_mm=mm) for mm in SIGMA_MM),
    ]


def _score(
    case: Case, task: TaskConfig, steps: Sequence[PostprocessStep], candidates: Sequence[PostprocessStep]
) -> FloatArray:
    """Return the Dice of a case's labels after ``steps``, and after each candidate on top: ``(1 + candidates, L)``."""
    prediction, reference = case.read()
    base = postprocess(prediction, steps)
    maps = [base, *(postprocess(base, [candidate]) for candidate in candidates)]
    rows: list[list[float]] = []
    for label in maps:
        if rows and np.array_equal(label.array, base.array):
            rows.append(rows[0])
        else:
            rows.append(_dice(label.array[0], reference.array[0], task))
    return np.array(rows)


def _dice(prediction: Array, reference: Array, task: TaskConfig) -> list[float]:
    scores = dice_scores(prediction, reference, labels=task.data.labels, ignore_label=task.data.ignore_label)
    return [scores[name] for name in task.data.labels.values()]


def _describe_trial(
    step: PostprocessStep,
    structure: str,
    before: FloatArray,
    after: FloatArray,
    cases: Sequence[Case],
    task: TaskConfig,
) -> Trial:
    improved, worsened = (int(np.count_nonzero(sign * (after - before) > 0)) for sign in (1, -1))
    return Trial(step, structure, _mean_over(before), _gain(before, after, cases, task), improved, worsened)


def _gain(before: FloatArray, after: FloatArray, cases: Sequence[Case], task: TaskConfig) -> Interval:
    return bootstrap_difference(
        mean_of(after),
        mean_of(before),
        len(cases),
        groups=[case.group for case in cases],
        samples=task.evaluate.bootstrap,
        seed=task.train.seed,
    )


def _mean_of_known(table: FloatArray) -> FloatArray:
    """Average over the last axis what is not NaN; NaN where nothing is known."""
    known = np.isfinite(table)
    total: FloatArray = np.where(known, table, 0).sum(axis=-1)
    count = known.sum(axis=-1)
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _mean_over(values: FloatArray) -> float:
    return float(_mean_of_known(values[None])[0])


def _prepared_case(case: PreparedCase, output: Path) -> Case:
    def read() -> tuple[LabelMap, LabelMap]:
        stored = case.label()
        assert stored is not None  # a store of a segmentation task has one for each case
        return _read_prediction(case.case_id, output), LabelMap(np.asarray(stored[:]), case.record.prepared.affine)

    return Case(case.case_id, case.group, read)


def _raw_case(case: PreparedCase, output: Path, reference: Path | None) -> Case:
    assert reference is not None  # it was asked for
    return Case(case.case_id, case.group, lambda: (_read_prediction(case.case_id, output), read_label_map(reference)))


def _read_prediction(case_id: str, output: Path) -> LabelMap:
    return read_label_map(output / f"{case_id}.nii.gz")


def write_choice(runs: Sequence[RunFolder], choice: Choice, where: Mapping[str, str]) -> None:
    """Put the chosen steps into the configuration of each run, from where `medi3d predict` takes them, and note why.

    Args:
        runs: the runs.
        choice: what was chosen.
        where: more for the record, ``postprocess.json`` in the run's folder.
    """
    for run in runs:
        with run.lock():
            task = run.load_config()
            record = {**where, "replaced": [asdict(step) for step in task.infer.postprocess], **choice.to_json()}
            text = json.dumps(record, indent=1) + "\n"
            atomic.write_bytes(run.path / "postprocess.json", text.encode())
            if task.infer.postprocess != choice.steps:  # else scores of this configuration stay what they are
                run.write_config(replace(task, infer=replace(task.infer, postprocess=choice.steps)))
