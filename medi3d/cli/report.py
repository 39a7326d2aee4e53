"""``medi3d report``: one page about a run, its held-out cases predicted and scored first where that is not done yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medi3d.cli.options import RUNS

if TYPE_CHECKING:
    from medi3d.cli.held_out import HeldOut
    from medi3d.report.gallery import LoadCase


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="A run, a folder of folds, or several runs of a task, taken as one model.")
    ],
    output: Annotated[Path | None, typer.Option(help="The HTML file [RUN/report.html].")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Raw data, to score on the scanner's own grid [data/raw/TASK].")
    ] = None,
    prepared: Annotated[Path | None, typer.Option(help="Prepared data [where the run was trained].")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Predictions to show [the run's held-out cases].")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="What `medi3d evaluate` wrote about them [PREDICTIONS/evaluation].")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Case to show in pictures; again for more [worst, median, best].")
    ] = None,
    viewer: Annotated[bool, typer.Option("--viewer/--no-viewer", help="With the interactive viewer.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Write one HTML page that fetches nothing: scores, pictures, viewer, data, training.

    RUN alone is enough: the cases that it held out are predicted and scored first where that has not been done.
    """
    from medi3d.cli.held_out import Overrides, default_place, find_held_out
    from medi3d.errors import ConfigError
    from medi3d.report import Material, write_report

    if output is None and len(runs) > 1:
        raise ConfigError(f"--output: several runs make one page; say where, for example --output {RUNS}/report.html")
    page = output or runs[0] / "report.html"
    overrides = Overrides(data, prepared, predictions, evaluation, device)
    found = find_held_out(runs, overrides, place=default_place(runs, page))
    given = predictions is not None or evaluation is not None
    material = Material(
        evaluations=tuple(found.evaluations.values()),
        store=found.store,
        load_case=_loader(found, device),
        held_out=not given,
        cases=tuple(case or ()),
        viewer=viewer,
        notes=found.notes,
    )
    typer.echo(write_report(runs, page, material))


def _loader(found: HeldOut, device: str) -> LoadCase:
    from medi3d.cli.case_images import load_class_case, load_label_case

    if found.store is None:
        return lambda case_id: None
    by_id = {one.case_id: one for one in found.store.cases()}
    if "segmentation" in found.evaluations:
        return lambda case_id: load_label_case(by_id.get(case_id), found.predictions)
    return load_class_case(by_id, [run.path for run in found.runs], device)
