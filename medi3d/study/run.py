"""Run the cells of a comparison, each once, whatever interrupts it.

A cell is finished when its ``result.json`` is there; one that was begun is resumed from its checkpoint. Several
processes may work on one folder, each on cells that no other is at.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medi3d.config import PLANNED_KEYS, TaskConfig, dump_task, flatten_keys, parse_task
from medi3d.errors import ConfigError, InputError
from medi3d.evaluate import ALL_LABELS, Evaluation
from medi3d.io import atomic
from medi3d.runs.folder import RunFolder
from medi3d.study.design import ARM_KEYS, Cell, StudyDesign
from medi3d.study.out_of_fold import score_held_out
from medi3d.train import train_task
from medi3d.train.events import TrainEvent

METRIC = {"segmentation": "dice", "classification": "auc"}
"""What cells are compared by: Dice, mean over a case's labels, or AUC."""

OnCell = Callable[[Cell, int, int], None]
"""Called with a cell, its number and the number of cells before each that is run."""


@dataclass(frozen=True)
class CellResult:
    """What came of a cell.

    Args:
        cell: which.
        train_cases: how many cases it was trained on.
        steps: of the optimiser.
        cpu_minutes: of this process, training and scoring.
        score: :data:`METRIC` of its kind, on the held-out cases, on the prepared grid, with the last weights.
        curve: (step, score) of each validation on the way.
        cases: one row a held-out case: ``case_id``, ``patient`` (a number), ``value`` (mean Dice of its labels, or
            probability of the last class) and ``target`` (1 for the last class; absent in a segmentation).
    """

    cell: Cell
    train_cases: int
    steps: int
    cpu_minutes: float
    score: float
    curve: tuple[tuple[int, float], ...]
    cases: tuple[Mapping[str, Any], ...]


class Study:
    """The folder of a comparison.

    Args:
        folder: holds ``study.json``, ``cells/`` and the tables, which :func:`run_study` writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.design_file = folder / "study.json"
        self.scores_file, self.cases_file = folder / "scores.csv", folder / "cases.csv"

    def cell(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.folder / "cells" / cell.name

    def begin(self, design: StudyDesign) -> None:
        """Note the design, so that cells of another one never mix with these.

        Raises:
            ConfigError: the folder is of another task or other settings; inits, fractions and seeds may be added.
        """
        if self.design_file.is_file():
            kept = parse_task(json.loads(self.design_file.read_text(encoding="utf-8"))["task"], where=str(self.folder))
            before, now = _shared_settings(kept), _shared_settings(design.task)
            differing = [key for key in now if before[key] != now[key]]
            if differing:
                raise ConfigError(
                    f"{self.folder}: a comparison with other settings ({', '.join(differing)}); give another --name"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "task": dump_task(design.task),
            "inits": design.inits,
            "fractions": design.fractions,
            "seeds": design.seeds,
        }
        atomic.write_bytes(self.design_file, json.dumps(content, indent=1).encode())

    def read_plan(self) -> dict[str, Any]:
        """Return what was planned for a comparison that was begun here, dotted key → value; nothing before that."""
        if not self.design_file.is_file():
            return {}
        task = json.loads(self.design_file.read_text(encoding="utf-8"))["task"]
        pairs = ((key, key.split(".")) for key in PLANNED_KEYS)
        return {key: task[section][name] for key, (section, name) in pairs}

    def results(self, design: StudyDesign) -> list[CellResult]:
        """Return what is finished, in the design's order."""
        return [result for cell in design.cells() if (result := self.read(cell)) is not None]

    def read(self, cell: Cell) -> CellResult | None:
        """Return what came of a cell; ``None`` before it is finished."""
        file = self.cell(cell) / "result.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        content["curve"] = tuple((int(step), float(score)) for step, score in content["curve"])
        return CellResult(**content | {"cell": cell, "cases": tuple(content["cases"])})

    def write(self, result: CellResult) -> None:
        """Keep what came of a cell."""
        content = {key: value for key, value in asdict(result).items() if key != "cell"}
        file = self.cell(result.cell) / "result.json"
        atomic.write_bytes(file, json.dumps(content, indent=1).encode())

    def write_tables(self, results: Sequence[CellResult]) -> None:
        """Write ``scores.csv``, a row a cell, and ``cases.csv``, a row a held-out case of each cell."""
        cells: list[dict[str, Any]] = []
        cases: list[dict[str, Any]] = []
        for result in results:
            key = {"init": result.cell.init, "cases": result.cell.cases or "all", "seed": result.cell.seed}
            facts = {"train_cases": result.train_cases, "steps": result.steps, "cpu_minutes": result.cpu_minutes}
            cells.append(key | facts | {"score": f"{result.score:.6g}"})
            cases += [key | {**row, "value": f"{row['value']:.6g}"} for row in result.cases]
        _write_csv(self.scores_file, cells)
        _write_csv(self.cases_file, cases)


def run_study(
    design: StudyDesign,
    folder: Path,
    *,
    prepared: Path,
    device: str = "auto",
    keep: bool = False,
    on_cell: OnCell | None = None,
    on_event: Callable[[TrainEvent], None] | None = None,
) -> list[CellResult]:
    """Run every cell that is not finished and that no other process is at.

    Args:
        design: which cells.
        folder: of the comparison; going on in the same folder does what is missing.
        prepared: the prepared store.
        device: see :func:`~medi3d.train.train_task`.
        keep: keep the cells' checkpoints and predictions, else they are removed once scored.
        on_cell: called before each cell that is run.
        on_event: called after each step of training.

    Returns:
        What is finished now, in the design's order; fewer than all cells if a signal stopped it or others are at them.

    Raises:
        ConfigError: the folder holds a comparison with other settings.
    """
    study = Study(folder)
    study.begin(design)
    cells = list(design.cells())
    for number, cell in enumerate(cells):
        if study.read(cell) is not None:
            continue
        study.cell(cell).mkdir(parents=True, exist_ok=True)
        try:
            with atomic.lock(study.cell(cell)):
                if study.read(cell) is not None:  # another process has just finished it
                    continue
                if on_cell is not None:
                    on_cell(cell, number, len(cells))
                result = _run_cell(design.configure(cell), study.cell(cell), cell, prepared, device, on_event)
                if result is None:
                    break
                study.write(result)
                if not keep:
                    _remove_what_is_large(study.cell(cell))
        except atomic.LockedError:
            continue
    results = study.results(design)
    if results:
        study.write_tables(results)
    return results


def _shared_settings(task: TaskConfig) -> dict[str, object]:
    """Return what all cells have in common, dotted key → value."""
    return {key: value for key, value in flatten_keys(dump_task(task), where=task.name).items() if key not in ARM_KEYS}


def _run_cell(
    task: TaskConfig,
    folder: Path,
    cell: Cell,
    prepared: Path,
    device: str,
    on_event: Callable[[TrainEvent], None] | None,
) -> CellResult | None:
    """Train and score a cell; ``None`` where a signal ended it."""
    began = time.process_time()
    run = RunFolder(folder / "run")
    trained = train_task(
        task,
        prepared=prepared,
        run=run.path,
        device=device,
        resume=run.config_file.is_file(),
        on_event=on_event,
    )
    if trained.stopped:
        return None
    scored = score_held_out(
        [run], prepared=prepared, raw=None, output=folder / "predictions", device=device, on_case=lambda *_: None
    )
    evaluation = scored.evaluations["labels" if task.kind == "segmentation" else "classes"]
    if evaluation.problems:
        raise InputError(f"{cell.name}: held-out cases could not be scored: {evaluation.problems[0]}")
    metric = METRIC[task.kind]
    names = [ALL_LABELS] if ALL_LABELS in evaluation.scores else []
    value = next(evaluation.scores[name][metric] for name in (*names, *evaluation.scores))
    return CellResult(
        cell=cell,
        train_cases=len(run.load_split().train),
        steps=trained.steps,
        cpu_minutes=round((time.process_time() - began) / 60, 2),
        score=value.value,
        curve=tuple(_read_curve(run.metrics_file)),
        cases=tuple(_case_rows(evaluation, task)),
    )


def _case_rows(evaluation: Evaluation, task: TaskConfig) -> list[dict[str, Any]]:
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in evaluation.rows:
        rows.setdefault(str(row["case_id"]), []).append(row)
    found = []
    for case_id, own in rows.items():
        entry: dict[str, Any] = {"case_id": case_id, "patient": evaluation.groups.get(case_id, case_id)}
        if task.kind == "segmentation":
            scores = [float(row["dice"]) for row in own if row["label"] in task.data.labels.values()]
            known = [score for score in scores if math.isfinite(score)]
            entry["value"] = sum(known) / len(known) if known else math.nan
        else:
            entry["value"] = float(own[0][task.data.classes[-1]])
            entry["target"] = int(own[0]["target"] == task.data.classes[-1])
        found.append(entry)
    return found


def _read_curve(metrics: Path) -> list[tuple[int, float]]:
    with metrics.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        return [(int(row["step"]), round(float(row["score"]), 5)) for row in rows if row.get("score")]


def _remove_what_is_large(folder: Path) -> None:
    for name in ("predictions", "run/checkpoints", "run/tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic.new_file(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
