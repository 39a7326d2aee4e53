"""``medi3d evaluate``: predictions against references, with intervals; and two evaluations against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from medi3d.cli.score_tables import print_comparison, print_result
from medi3d.config import DataConfig, EvaluateConfig, TaskConfig, load_task
from medi3d.errors import ConfigError, InputError
from medi3d.evaluate import (
    Evaluation,
    compare_evaluations,
    evaluate_classification,
    evaluate_segmentation,
    find_labels,
    read_evaluation,
)
from medi3d.preprocess.cases.raw_case import CaseProblem, RawCase
from medi3d.preprocess.cases.sources import list_raw_cases

_EVALUATIONS = (".", "classes", "evaluation", "evaluation/labels", "evaluation/classes")
"""Where below a folder that is compared its evaluations may lie; also below its folder ``out_of_fold``."""


def evaluate(
    predictions: Annotated[
        Path | None, typer.Option(help="Label map, folder of them, or CSV of probabilities.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="Label map, folder of them, raw data folder, or table.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task that names labels or classes; without it, labels are found.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for cases.csv and summary.json [<predictions>/evaluation].")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A B",
            help="Two folders to compare case by case: evaluations, predictions that have one, or folds of a run; with "
            "--references, both are scored first. --output is for comparison.json.",
        ),
    ] = None,
    tolerance_mm: Annotated[float | None, typer.Option(help="Tolerance of the surface Dice.")] = None,
    surface: Annotated[str | None, typer.Option(help="Of surface metrics: elements, or voxels as MONAI's.")] = None,
    lesion_iou: Annotated[float | None, typer.Option(help="Least IoU of a lesion that is found.")] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Bootstrap samples of the intervals.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that score cases.")] = 1,
    only_predicted: Annotated[
        bool, typer.Option("--only-predicted", help="References without a prediction are no failure.")
    ] = False,
) -> None:
    """Score predictions against references and write per-case and summary tables.

    Regions of the task are scored beside its labels. Of a segmentation task with classes, the probabilities beside the
    label maps (predictions.csv) are scored as well where the references have their table, into the folder "classes".
    """
    given = {"tolerance_mm": tolerance_mm, "surface": surface, "lesion_iou": lesion_iou, "bootstrap": bootstrap}
    settings = {key: value for key, value in given.items() if value is not None}
    config = None if task is None else load_task(task, overrides={f"evaluate.{k}": v for k, v in settings.items()})
    scoring = _Scoring(config, _check_settings(settings) if config is None else config.evaluate, seed, jobs)
    if compare is not None:
        if predictions is not None:
            raise ConfigError("--compare takes two folders of predictions itself; leave out --predictions")
        failed = _compare(compare, references, scoring, output)
    elif predictions is None or references is None:
        raise ConfigError("give --predictions and --references, or two folders to --compare")
    else:
        results = _score(predictions, references, scoring, output)
        failed = any(result.problems or (result.missing and not only_predicted) for result in results.values())
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Scoring:
    """How predictions are scored: the task, where there is one, and what the flags say."""

    task: TaskConfig | None
    settings: EvaluateConfig
    seed: int
    jobs: int


def _check_settings(values: Mapping[str, object]) -> EvaluateConfig:
    try:
        return TypeAdapter(EvaluateConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{flag}: {first['msg']}. Got: {first['input']!r}") from None


def _score(predictions: Path, references: Path, scoring: _Scoring, output: Path | None) -> dict[str, Evaluation]:
    """Score, write and print what there is to score: folder below the output → scores."""
    maps, tables = _what_to_score(scoring.task, predictions, references)
    results: dict[str, Evaluation] = {}
    if maps:
        results["."] = _evaluate_label_maps(scoring, predictions, references)
    if scoring.task is not None and tables:
        results["classes" if maps else "."] = _evaluate_tables(scoring.task, predictions, references, scoring.seed)
    beside = predictions if predictions.is_dir() else predictions.parent
    for folder, result in results.items():
        print_result(result, result.write((output or beside / "evaluation") / folder))
    return results


def _compare(pair: tuple[Path, Path], references: Path | None, scoring: _Scoring, output: Path | None) -> bool:
    """Compare what both folders have evaluations of, and tell whether a case that was scored for it is faulty."""
    if references is None:
        first, second = (_find_evaluations(folder) for folder in pair)
        scored = []
    else:
        scored = [_score(folder, references, scoring, None) for folder in pair]
        first, second = ({result.kind: result for result in results.values()} for results in scored)
    kinds = [kind for kind in first if kind in second]
    if not kinds:
        raise InputError(
            f"{pair[0]} holds scores of {', '.join(first)}, {pair[1]} of {', '.join(second)}: nothing alike"
        )
    typer.echo(f"A: {pair[0]}\nB: {pair[1]}")
    for kind in kinds:
        bootstrap = scoring.settings.bootstrap
        comparison = compare_evaluations(first[kind], second[kind], bootstrap=bootstrap, seed=scoring.seed)
        print_comparison(comparison)
        if output is not None:
            folder = output / "classes" if kind != kinds[0] else output
            typer.echo(str(comparison.write(folder / "comparison.json")))
    return any(result.problems for results in scored for result in results.values())


def _find_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Return kind → evaluation in or below a folder."""
    places = [folder / below / place for below in ("", "out_of_fold") for place in _EVALUATIONS]
    read = [read_evaluation(place) for place in places if (place / "summary.json").is_file()]
    if not read:
        raise InputError(
            f"{folder}: no evaluation in it (a summary.json in it, in its evaluation/ or out_of_fold/); give "
            "--references, and --task, to score its predictions now"
        )
    return {evaluation.kind: evaluation for evaluation in reversed(read)}


def _what_to_score(task: TaskConfig | None, predictions: Path, references: Path) -> tuple[bool, bool]:
    """Tell whether label maps and whether classes are scored: of a segmentation task, those it has the tables of."""
    if task is None or not task.data.classes:
        return True, False
    if task.kind == "classification" or predictions.suffix == ".csv":
        return False, True
    missing = [path for path in _class_tables(task, predictions, references) if not _is_table(path)]
    for path in missing:
        typer.echo(f"{path}: no such table, so the task's classes are not scored", err=True)
    return True, not missing


def _is_table(path: Path) -> bool:
    return path.suffix == ".csv" and path.is_file()


def _class_tables(task: TaskConfig, predictions: Path, references: Path) -> tuple[Path, Path]:
    return (
        predictions / "predictions.csv" if predictions.is_dir() else predictions,
        references / task.data.table if references.is_dir() else references,
    )


def _evaluate_tables(task: TaskConfig, predictions: Path, references: Path, seed: int) -> Evaluation:
    columns = task.data.columns
    return evaluate_classification(
        *_class_tables(task, predictions, references),
        task.data.classes,
        case_column=columns.case,
        target_column=columns.target or "target",
        group_column=columns.patient,
        bootstrap=task.evaluate.bootstrap,
        seed=seed,
    )


def _evaluate_label_maps(scoring: _Scoring, predictions: Path, references: Path) -> Evaluation:
    task, settings = scoring.task, scoring.settings
    if task is None and predictions.suffix == ".csv":
        raise ConfigError(f"{predictions}: give --task, which tells the classes and the table's columns")
    raw, raw_problems = _list_raw_references(references, task.data) if task is not None else (None, [])
    wanted = references if raw is None else {case.case_id: case.label for case in raw if case.label is not None}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("evaluate", total=None)
        result = evaluate_segmentation(
            predictions,
            wanted,
            task.data.labels if task is not None else find_labels(references),
            tolerance_mm=settings.tolerance_mm,
            bootstrap=settings.bootstrap,
            seed=scoring.seed,
            surface=settings.surface,
            lesion_iou=settings.lesion_iou,
            jobs=scoring.jobs,
            regions=task.data.regions if task is not None else None,
            ignore_label=task.data.ignore_label if task is not None else None,
            groups={case.case_id: case.patient_id for case in raw or []},
            on_case=lambda case, done, total: bar.update(row, description=case, completed=done, total=total),
        )
    unusable = tuple(f"{problem.case_id}: {problem.message}" for problem in raw_problems)
    return replace(result, problems=result.problems + unusable)


def _list_raw_references(references: Path, data: DataConfig) -> tuple[list[RawCase] | None, list[CaseProblem]]:
    """Return the labelled cases where the references are raw data, else ``None``, and the problems."""
    is_raw = {
        "msd": (references / "labelsTr").is_dir(),
        "csv": references.suffix == ".csv" or (references / data.table).is_file(),
        "patterns": references.is_dir(),
    }
    return list_raw_cases(references, data, need_label=True) if is_raw[data.layout] else (None, [])
