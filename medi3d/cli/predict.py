"""``medi3d predict``: label maps in the scanner's own geometry, or a CSV of class probabilities."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from medi3d.cli.options import Checkpoint, parse_assignments
from medi3d.cli.predict_progress import PredictProgress
from medi3d.cli.startup import loading_libraries
from medi3d.errors import ConfigError

if TYPE_CHECKING:
    from medi3d.config import TaskConfig
    from medi3d.infer.batch import BatchOptions
    from medi3d.infer.predictor import Predictor
    from medi3d.infer.summary import PredictionSummary


class Center(str, Enum):
    """Where a task's cube is cut."""

    mask = "mask"
    image = "image"


Runs = Annotated[list[Path], typer.Argument(help="Runs, or folders of folds; all are averaged.")]
Output = Annotated[Path, typer.Option(help="Folder for the results; what is there of the same input is kept.")]
Source = Annotated[Path | None, typer.Option("--input", help="Image, folder of images, DICOM series, or .csv table.")]
Watched = Annotated[
    Path | None, typer.Option(help="Folder: predict what is put there, as it arrives, until told to stop (Ctrl-C).")
]
Masks = Annotated[Path | None, typer.Option(help="Mask, or folder of masks, that tell where a cube is cut.")]
Centered = Annotated[Center, typer.Option(help="Cut a cube at the mask, or in the middle of the image.")]
OutOfFold = Annotated[
    bool, typer.Option("--out-of-fold", help="Predict each case only with the runs that held it out.")
]
Probabilities = Annotated[
    list[str] | None, typer.Option(help="Label, by name or value, whose probabilities are written too; repeat it.")
]
Report = Annotated[
    Path | None, typer.Option(help="JSON file of what was done: geometry, volumes in ml, times, model hashes.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Predict again what is there already.")]
Plain = Annotated[bool, typer.Option("--no-postprocess", help="Leave label maps as the networks answer.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Other settings of the prediction, as infer.overlap=0.25.")
]
Which = Annotated[Checkpoint, typer.Option(help="Best by validation score, or last.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]


def predict(
    runs: Runs,
    output: Output,
    source: Source = None,
    watch: Watched = None,
    masks: Masks = None,
    center: Centered = Center.mask,
    out_of_fold: OutOfFold = False,
    probabilities: Probabilities = None,
    report: Report = None,
    overwrite: Overwrite = False,
    no_postprocess: Plain = False,
    assignments: Settings = None,
    checkpoint: Which = Checkpoint.best,
    device: Device = "auto",
) -> None:
    """Predict new cases with trained runs; an output bears its input's name.

    A case that cannot be predicted is named, and the others go on. Stopped at any time, the same command goes on where
    it was.
    """
    if (source is None) == (watch is None):
        raise ConfigError("give either --input (an image, a folder, a DICOM series, a .csv) or --watch FOLDER")
    if watch is not None and out_of_fold:
        raise ConfigError("--watch waits for new cases, and --out-of-fold is about those of the training; give one")
    with loading_libraries():
        from medi3d.infer.allocator import keep_freed_memory
        from medi3d.infer.batch import BatchOptions
        from medi3d.infer.predictor import Predictor
        from medi3d.infer.summary import write_report
        from medi3d.runs.folds import find_runs

    overrides = parse_assignments(assignments or []) | ({"infer.postprocess": []} if no_postprocess else {})
    predictor = Predictor(find_runs(runs), device=device, checkpoint=checkpoint.value, overrides=overrides)
    if predictor.device.type == "cpu":
        keep_freed_memory()
    options = BatchOptions(
        center_of_image=center is Center.image,
        out_of_fold=out_of_fold,
        probabilities=_find_labels(predictor.task, probabilities or []),
        overwrite=overwrite,
    )
    console = Console()
    _tell_postprocessing(predictor, console)

    def write(done: PredictionSummary) -> None:
        if report is not None:
            write_report(report, predictor, done)

    if source is not None:
        summary = _predict_input(predictor, source, output, masks, options)
    else:
        assert watch is not None
        summary = _predict_arrivals(predictor, watch, output, masks, options, write)
    write(summary)
    _print_summary(summary, console, report)
    if summary.problems:
        raise typer.Exit(1)


def _predict_input(
    predictor: Predictor, source: Path, output: Path, masks: Path | None, options: BatchOptions
) -> PredictionSummary:
    from medi3d.infer.batch import predict_files

    with PredictProgress(Console(stderr=True)).shown() as progress:
        return predict_files(predictor, source, output, masks=masks, options=options, on_case=progress.start_case)


def _predict_arrivals(
    predictor: Predictor,
    folder: Path,
    output: Path,
    masks: Path | None,
    options: BatchOptions,
    on_round: Callable[[PredictionSummary], None],
) -> PredictionSummary:
    from medi3d.infer.hot_folder import watch_folder

    with PredictProgress(Console(stderr=True)).shown() as progress, _until_signal() as stop:
        return watch_folder(
            predictor,
            folder,
            output,
            stop=stop,
            masks=masks,
            options=options,
            on_case=progress.start_case,
            on_round=on_round,
        )


def _find_labels(task: TaskConfig, wanted: list[str]) -> tuple[int, ...]:
    """Return the values of labels that are named or numbered."""
    values = {"background": 0} | {name: value for value, name in task.data.labels.items()}
    values |= {str(value): value for value in list(values.values())}
    unknown = next((name for name in wanted if name not in values), None)
    if unknown is not None:
        known = ", ".join(f"{value} ({name})" for value, name in task.data.labels.items()) or "none: it has classes"
        raise ConfigError(f"--probabilities {unknown}: no label of task {task.name}; its labels are {known}")
    return tuple(dict.fromkeys(values[name] for name in wanted))


def _tell_postprocessing(predictor: Predictor, console: Console) -> None:
    for step in predictor.task.infer.postprocess:
        console.print(f"post-processing: {describe_step(step)}", highlight=False, soft_wrap=True)


def describe_step(step: Any) -> str:
    """Say in a few words what a step of post-processing does."""
    from dataclasses import asdict

    given = {key: value for key, value in asdict(step).items() if key != "step" and value not in ((), None, False)}
    return f"{step.step} " + ", ".join(f"{key} {value}" for key, value in given.items())


@contextmanager
def _until_signal() -> Iterator[Event]:
    """Give an event that Ctrl-C and SIGTERM set; a second one ends the process as always."""
    stop = Event()
    before: dict[int, Any] = {}

    def set_stop(number: int, frame: object) -> None:
        stop.set()
        for caught, earlier in before.items():
            signal.signal(caught, earlier)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, set_stop)
    try:
        yield stop
    finally:
        for caught, earlier in before.items():
            signal.signal(caught, earlier)


def _print_summary(summary: PredictionSummary, console: Console, report: Path | None) -> None:
    kept = f" ({len(summary.kept)} of them kept, made before of the same input)" if summary.kept else ""
    where = f": {summary.output}" if summary.predicted else ""
    console.print(f"{len(summary.predicted)} predicted{kept}{where}", highlight=False, soft_wrap=True)
    if report is not None:
        console.print(str(report), highlight=False, soft_wrap=True)
    for case, warnings in summary.warnings.items():
        for warning in warnings:
            typer.echo(f"warning: {case}: {warning}", err=True)
    for case, problem in summary.problems.items():
        typer.echo(f"{case}: {problem}", err=True)
