"""``medi3d compare``: a table, a figure and a page over runs, with paired differences to the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from medi3d.cli.held_out import HeldOut
    from medi3d.evaluate import Interval as EvaluatedInterval
    from medi3d.report.comparison import ComparedRun, Difference
    from medi3d.report.scores import Interval


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more runs, or folders of folds, of one task.")],
    figure: Annotated[Path | None, typer.Option(help="Figure to write, .png or .svg.")] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="Table of all values to write, .csv.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write, .html.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Raw data, to score on the scanner's own grid [data/raw/TASK].")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Compare runs: scores with intervals, paired differences to the first run, size and time.

    The cases that a run held out are predicted and scored first where that has not been done.
    """
    from medi3d.cli.held_out import Overrides, default_place, find_held_out
    from medi3d.errors import ConfigError
    from medi3d.report.comparison import draw_figure, write_page, write_table

    if len(runs) < 2:
        raise ConfigError(f"expected two runs or more to compare; got {len(runs)}")
    overrides = Overrides(data=data, device=device)
    found = [find_held_out([path], overrides, place=default_place([path], path)) for path in runs]
    _require_one_task(runs, found)
    compared = _compare_to_first(_names(runs), found)
    _print(compared)
    written = [
        write(compared, path)
        for write, path in ((draw_figure, figure), (write_table, table), (write_page, html))
        if path is not None
    ]
    for path in written:
        typer.echo(path)


def _require_one_task(runs: list[Path], found: list[HeldOut]) -> None:
    from medi3d.errors import ConfigError

    kinds = [(one.runs[0].load_config().name, sorted(one.evaluations)) for one in found]
    for path, kind in zip(runs, kinds, strict=True):
        if kind != kinds[0]:
            raise ConfigError(
                f"{path}: of task {kind[0]} ({', '.join(kind[1])}), and {runs[0]} of task {kinds[0][0]} "
                f"({', '.join(kinds[0][1])}); compare runs of one task"
            )


def _names(runs: list[Path]) -> list[str]:
    names = [path.resolve().name for path in runs]
    if len(set(names)) == len(names):
        return names
    return ["/".join(path.resolve().parts[-2:]) for path in runs]


def _compare_to_first(names: list[str], found: list[HeldOut]) -> list[ComparedRun]:
    described = [_describe(name, one) for name, one in zip(names, found, strict=True)]
    first = found[0]
    return [
        described[0],
        *(
            replace(run, differences=_differences(one, first))
            for run, one in zip(described[1:], found[1:], strict=True)
        ),
    ]


def _describe(name: str, found: HeldOut) -> ComparedRun:
    from medi3d.infer.predictor import load_model
    from medi3d.report.comparison import ComparedRun
    from medi3d.report.scores import read_scores
    from medi3d.report.training_facts import measure_effort

    task = found.runs[0].load_config()
    scores: dict[str, Mapping[str, Interval]] = {}
    for folder in found.evaluations.values():
        scores |= read_scores(folder).scores
    network = load_model(task, found.runs[0].checkpoint("last"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return ComparedRun(name, task, scores, parameters, measure_effort(found.runs))


def _differences(found: HeldOut, first: HeldOut) -> Mapping[str, Mapping[str, Difference]]:
    """Return the differences on the cases of both; none where they share no case."""
    from medi3d.evaluate import compare_evaluations, read_evaluation
    from medi3d.report.comparison import Difference

    differences: dict[str, Mapping[str, Difference]] = {}
    for kind, folder in found.evaluations.items():
        ours, theirs = read_evaluation(folder), read_evaluation(first.evaluations[kind])
        if not {row["case_id"] for row in ours.rows} & {row["case_id"] for row in theirs.rows}:
            continue
        settings = found.runs[0].load_config()
        comparison = compare_evaluations(ours, theirs, bootstrap=settings.evaluate.bootstrap, seed=settings.train.seed)
        for name, metrics in comparison.scores.items():
            differences[name] = {
                metric: Difference(_known(entry.difference), None if math.isnan(entry.p_value) else entry.p_value)
                for metric, entry in metrics.items()
            }
    return differences


def _known(interval: EvaluatedInterval) -> Interval:
    from medi3d.report.scores import Interval

    value, low, high = (
        None if math.isnan(number) else number for number in (interval.value, interval.low, interval.high)
    )
    return Interval(value, low, high, interval.cases)


def _print(runs: list[ComparedRun]) -> None:
    from medi3d.report.comparison import difference_text, main_rows, row_title, size_texts, value_text

    table = Table("", *(run.name for run in runs))
    for segment, metric in main_rows(runs):
        table.add_row(row_title(segment, metric), *(value_text(run, segment, metric) for run in runs))
        texts = [difference_text(run, segment, metric) for run in runs[1:]]
        if any(texts):
            table.add_row(f"  less {runs[0].name}", "", *(text or "no shared cases" for text in texts), style="dim")
    table.add_section()
    sizes = [size_texts(run) for run in runs]
    for row in sizes[0]:
        table.add_row(row.lower(), *(size[row] for size in sizes))
    Console().print(table)
