"""Where the predictions of a run's held-out cases lie and how they scored: found, or made where there are none yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from medi3d.cli.options import RAW
from medi3d.errors import InputError
from medi3d.io import PreparedStore, read_header
from medi3d.runs.folder import RunFolder
from medi3d.runs.folds import FoldsFolder, find_runs

_SUMMARY = "summary.json"
_PREPARED_NOTE = (
    "Scored on the grid of the prepared data, not on the scanner's own: "
    "the raw data was not at hand (--data says where it lies)."
)


@dataclass(frozen=True)
class HeldOut:
    """Predictions and scores of cases that the runs did not train on.

    Attributes:
        runs: the runs, one task.
        predictions: folder of label maps or of ``predictions.csv``.
        evaluations: ``segmentation`` or ``classification`` → the folder of that evaluation's files.
        store: the prepared data, where it is still there.
        notes: what a reader of the scores should know.
    """

    runs: tuple[RunFolder, ...]
    predictions: Path
    evaluations: Mapping[str, Path]
    store: PreparedStore | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overrides:
    """What a user says in place of what is found.

    Attributes:
        data: folder of the raw data.
        prepared: the prepared store.
        predictions: folder of predictions.
        evaluation: folder that ``medi3d evaluate`` wrote.
        device: to predict on.
    """

    data: Path | None = None
    prepared: Path | None = None
    predictions: Path | None = None
    evaluation: Path | None = None
    device: str = "auto"


def find_held_out(paths: Sequence[Path], overrides: Overrides, *, place: Path) -> HeldOut:
    """Find the held-out cases' predictions and scores of runs, or predict and score them now, and say so.

    Args:
        paths: runs of one task, or folders of folds, taken as one model: each case is predicted by the runs that held
            it out.
        overrides: what the user says.
        place: folder that new predictions are written to; those that it holds are taken where they are newer than the
            runs' checkpoints and configurations.

    Raises:
        InputError: a path is no run, the prepared data is gone, or given predictions are not evaluated.
    """
    runs = tuple(RunFolder(run) for run in find_runs(paths))
    for run in runs:
        run.load_config()
    predictions = overrides.predictions or place
    given = overrides.evaluation is not None or overrides.predictions is not None
    evaluation = overrides.evaluation or predictions / "evaluation"
    found = find_evaluations(evaluation)
    if given and not found:
        raise InputError(
            f"{evaluation}: no {_SUMMARY} here; score the predictions first: medi3d evaluate --predictions "
            f"{predictions} --references RAW_DATA --task {runs[0].load_config().name}"
        )
    store = _find_store(runs, overrides.prepared)
    if not given and not (found and _is_newer(found, runs)):
        found = _predict_and_score(runs, store, overrides, place)
    return HeldOut(runs, predictions, found, store, _notes(found, predictions, store))


def _notes(evaluations: Mapping[str, Path], predictions: Path, store: PreparedStore | None) -> tuple[str, ...]:
    """Tell on which grid label maps were scored, where that is not the scanner's own."""
    if store is None or "segmentation" not in evaluations:
        return ()
    for case in store.cases():
        path = predictions / f"{case.case_id}.nii.gz"
        if path.is_file():
            native, prepared = case.record.native, case.record.prepared
            found = read_header(path).grid
            if found.is_close(prepared, tolerance=0.01) and not found.is_close(native, tolerance=0.01):
                return (_PREPARED_NOTE,)
            return ()
    return ()


def find_evaluations(folder: Path) -> dict[str, Path]:
    """Find what ``medi3d evaluate`` or a cross-validation wrote: kind of the evaluation → its folder."""
    found = {}
    for place in (folder, folder / "labels", folder / "classes"):
        if (place / _SUMMARY).is_file():
            found[str(json.loads((place / _SUMMARY).read_text(encoding="utf-8"))["kind"])] = place
    return found


def default_place(paths: Sequence[Path], output: Path) -> Path:
    """Return where predictions of held-out cases go: into the one run or folder of folds, or else beside the output."""
    folds = FoldsFolder(paths[0])
    return folds.out_of_fold if len(paths) == 1 else output.with_name(f"{output.stem}_out_of_fold")


def _is_newer(evaluations: Mapping[str, Path], runs: Sequence[RunFolder]) -> bool:
    """Tell whether scores came after all that decides them: `medi3d postprocess` changes a run's configuration."""
    sources = [path for run in runs for path in (run.checkpoint("last"), run.config_file)]
    latest = max((path.stat().st_mtime for path in sources if path.is_file()), default=0.0)
    return all((folder / _SUMMARY).stat().st_mtime >= latest for folder in evaluations.values())


def _find_store(runs: Sequence[RunFolder], given: Path | None) -> PreparedStore | None:
    if given is not None:
        return PreparedStore(given)
    if not runs[0].environment_file.is_file():  # an exported run no longer tells
        return None
    path = runs[0].load_prepared()
    return PreparedStore(path) if path.is_dir() else None


def _predict_and_score(
    runs: Sequence[RunFolder], store: PreparedStore | None, overrides: Overrides, place: Path
) -> dict[str, Path]:
    from medi3d.study.out_of_fold import score_held_out

    name = ", ".join(str(run.path) for run in runs)
    if store is None:
        raise InputError(
            f"{name}: the prepared data that it was trained on is not where it was; give --prepared, or the results "
            "themselves with --predictions and --evaluation"
        )
    raw = overrides.data or RAW / runs[0].load_config().name
    typer.echo(f"{name}: the cases it held out are predicted and scored first, into {place}", err=True)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("predict", total=None)
        result = score_held_out(
            runs,
            prepared=store.folder,
            raw=raw,
            output=place,
            device=overrides.device,
            on_case=lambda case, number, total: bar.update(row, description=case, completed=number, total=total),
        )
    for line in (*result.notes, *(f"{case}: {problem}" for case, problem in result.predictions.problems.items())):
        typer.echo(line, err=True)
    return find_evaluations(place / "evaluation")
