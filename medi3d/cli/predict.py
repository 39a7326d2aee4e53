"""``medi3d predict``: label maps in the scanner's own geometry, or a CSV of class probabilities."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from medi3d.cli.options import Checkpoint


class Center(str, Enum):
    """Where a task's cube is cut."""

    mask = "mask"
    image = "image"


def predict(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders of folds; all are averaged.")],
    source: Annotated[Path, typer.Option("--input", help="Image, folder of images, DICOM series, or .csv table.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    masks: Annotated[Path | None, typer.Option(help="Mask, or folder of masks, that tell where a cube is cut.")] = None,
    center: Annotated[
        Center, typer.Option(help="Cut a cube at the mask, or in the middle of the image.")
    ] = Center.mask,
    out_of_fold: Annotated[
        bool, typer.Option("--out-of-fold", help="Predict each case only with the runs that held it out.")
    ] = False,
    checkpoint: Annotated[Checkpoint, typer.Option(help="Best by validation score, or last.")] = Checkpoint.best,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Predict new cases with trained runs; an output bears its input's name."""
    from medi3d.infer.batch import predict_files
    from medi3d.infer.predictor import Predictor
    from medi3d.runs.folds import find_runs

    predictor = Predictor(find_runs(runs), device=device, checkpoint=checkpoint.value)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("predict", total=None)
        summary = predict_files(
            predictor,
            source,
            output,
            masks=masks,
            center_of_image=center is Center.image,
            out_of_fold=out_of_fold,
            on_case=lambda case, number, total: bar.update(row, description=case, completed=number, total=total),
        )
    console = Console()
    where = f": {summary.output}" if summary.predicted else ""
    console.print(f"{len(summary.predicted)} predicted{where}", highlight=False, soft_wrap=True)
    for case, problem in summary.problems.items():
        typer.echo(f"{case}: {problem}", err=True)
    if summary.problems:
        raise typer.Exit(1)
