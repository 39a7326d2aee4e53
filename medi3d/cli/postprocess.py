"""``medi3d postprocess``: which steps of post-processing help, told by the cases that the runs held out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medi3d.cli.options import RAW
from medi3d.cli.predict import describe_step
from medi3d.cli.predict_progress import PredictProgress

if TYPE_CHECKING:
    from medi3d.study.postprocess_choice import Choice


def postprocess(
    runs: Annotated[list[Path], typer.Argument(help="Runs of one task, or a folder of folds.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the raw data [data/raw/<task>].")] = None,
    prepared: Annotated[Path | None, typer.Option(help="Prepared data [where the run had it].")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the held-out predictions [<run>/plain_predictions].")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell; leave the runs as they are.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Choose steps of post-processing by the Dice of held-out cases, and write them into the runs' configurations.

    From then on `medi3d predict` does them, and says so.
    """
    from medi3d.runs.folder import RunFolder
    from medi3d.runs.folds import find_runs
    from medi3d.study.postprocess_choice import choose_steps, predict_plainly, write_choice

    folders = [RunFolder(run) for run in find_runs(runs)]
    task = folders[0].load_config()
    store = prepared or folders[0].load_prepared()
    console = Console()
    with PredictProgress(Console(stderr=True)).shown() as progress:
        cases, grid = predict_plainly(
            [folder.path for folder in folders],
            prepared=store,
            raw=data or RAW / task.name,
            output=output or runs[0] / "plain_predictions",
            device=device,
            on_case=progress.start_case,
        )
    choice = choose_steps(cases, task, grid=grid)
    _print_choice(choice, console)
    if dry_run:
        console.print("nothing was written (--dry-run)")
        return
    write_choice(folders, choice, {"prepared": str(store)})
    for folder in folders:
        console.print(f"{folder.config_file}: infer.postprocess", highlight=False, soft_wrap=True)


def _print_choice(choice: Choice, console: Console) -> None:
    table = Table("step", "of", "mean Dice", "gain", "95 % interval", "better", "worse")
    for trial in choice.trials:
        gain = trial.gain
        interval = f"{gain.low:+.4f} – {gain.high:+.4f}" + (" (may be chance)" if gain.low < 0 else "")
        counts = str(trial.improved), str(trial.worsened)
        table.add_row(
            describe_step(trial.step), trial.structure, f"{trial.before:.4f}", f"{gain.value:+.4f}", interval, *counts
        )
    if choice.trials:
        console.print(table)
    gain = choice.gain
    console.print(
        f"{choice.cases} held-out cases, {choice.grid} grid, {choice.candidates} candidates tried, {len(choice.steps)} "
        f"kept: mean Dice {choice.before:.4f} → {choice.after:.4f} ({gain.value:+.4f}, 95 % {gain.low:+.4f} – "
        f"{gain.high:+.4f})",
        highlight=False,
        soft_wrap=True,
    )
    if choice.steps:
        text = "the steps were chosen by these very cases: new cases gain somewhat less"
        console.print(text, highlight=False, soft_wrap=True)
