"""``medi3d evaluate``: predictions against references, with intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from medi3d.config import DataConfig, EvaluateConfig, TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.evaluate import METRIC_TITLES, Evaluation, evaluate_classification, evaluate_segmentation, find_labels
from medi3d.preprocess.cases.raw_case import CaseProblem, RawCase
from medi3d.preprocess.cases.sources import list_raw_cases


def evaluate(
    predictions: Annotated[Path, typer.Option(help="Label map, folder of them, or CSV of probabilities.")],
    references: Annotated[Path, typer.Option(help="Label map, folder of them, raw data folder, or table.")],
    task: Annotated[
        str | None, typer.Option(help="Task that names labels or classes; without it, labels are found.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for cases.csv and summary.json [<predictions>/evaluation].")
    ] = None,
    tolerance_mm: Annotated[float | None, typer.Option(help="Tolerance of the surface Dice.")] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Bootstrap samples of the intervals.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    only_predicted: Annotated[
        bool, typer.Option("--only-predicted", help="References without a prediction are no failure.")
    ] = False,
) -> None:
    """Score predictions against references and write per-case and summary tables.

    Regions of the task are scored beside its labels. Of a segmentation task with classes, the probabilities beside the
    label maps (predictions.csv) are scored as well where the references have their table, into the folder "classes".
    """
    flags = {"evaluate.tolerance_mm": tolerance_mm, "evaluate.bootstrap": bootstrap}
    overrides = {key: value for key, value in flags.items() if value is not None}
    config = None if task is None else load_task(task, overrides=overrides)
    settings = EvaluateConfig(tolerance_mm or 1.0, bootstrap or 2000) if config is None else config.evaluate
    maps, tables = _what_to_score(config, predictions, references)
    results: dict[str, Evaluation] = {}
    if maps:
        results["."] = _evaluate_label_maps(config, settings, predictions, references, seed)
    if config is not None and tables:
        results["classes" if maps else "."] = _evaluate_tables(config, predictions, references, seed)
    beside = predictions if predictions.is_dir() else predictions.parent
    for folder, result in results.items():
        print_result(result, result.write((output or beside / "evaluation") / folder))
    if any(result.problems or (result.missing and not only_predicted) for result in results.values()):
        raise typer.Exit(1)


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


def _evaluate_label_maps(
    task: TaskConfig | None, settings: EvaluateConfig, predictions: Path, references: Path, seed: int
) -> Evaluation:
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
            seed=seed,
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


def print_result(result: Evaluation, written: tuple[Path, ...]) -> None:
    """Print the scores, where they are written, and what could not be scored."""
    table = Table("", "metric", "value", "95 % interval", "cases")
    for name, metrics in result.scores.items():
        for metric, interval in metrics.items():
            bounds = f"{interval.low:.3f} – {interval.high:.3f}"
            table.add_row(name, METRIC_TITLES[metric], f"{interval.value:.3f}", bounds, str(interval.cases))
            name = ""  # the name stands in its first row only
        table.add_section()
    console = Console()
    console.print(table)
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)
    for problem in result.problems:
        typer.echo(problem, err=True)
    for title, names in (
        ("references without a prediction", result.missing),
        ("predictions without a reference", result.unmatched),
    ):
        if names:
            listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            typer.echo(f"{len(names)} {title}: {listed}", err=True)
