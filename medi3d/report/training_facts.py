"""How runs were trained, for a page: learning curves, network, settings, origin. It shows no paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from markupsafe import Markup

from medi3d.config import TaskConfig, dump_task
from medi3d.report.charts import draw_learning_curves
from medi3d.report.figures import read_columns
from medi3d.runs.environment import latest, read_environment
from medi3d.runs.folder import RunFolder


def describe_training(runs: Sequence[RunFolder], names: Sequence[str]) -> dict[str, Any]:
    """Return what ``report.html`` shows of the runs' training.

    Args:
        runs: of one task.
        names: how the page calls them.
    """
    task = runs[0].load_config()
    tables = {name: run.metrics_file for name, run in zip(names, runs, strict=True) if run.metrics_file.is_file()}
    caption = "Left, what training lowers; right, how well the cases that it did not train on went meanwhile."
    curves = {"title": "Learning curves", "caption": caption, "wide": True}
    return {
        "charts": [curves | {"svg": Markup(draw_learning_curves(tables))}] if tables else [],
        "facts": _facts(task, runs),
        "origin": _origin(runs[0]),
        "configuration": yaml.safe_dump(dump_task(_without_paths(task)), sort_keys=False, allow_unicode=True),
    }


class Effort(NamedTuple):
    """What training took, all runs together; ``None`` where one of them does not tell.

    Attributes:
        seconds: by the clock.
        cpu_seconds: of the processor, all threads of the runs' first processes.
        device: what it ran on; several where runs do not agree.
    """

    seconds: float | None
    cpu_seconds: float | None
    device: str | None

    @property
    def texts(self) -> tuple[str, str, str]:
        """Time, processor time and device for a reader; empty where not known."""
        time, processor_time = (
            "" if value is None else format_duration(value) for value in (self.seconds, self.cpu_seconds)
        )
        return time, processor_time, self.device or ""


def measure_effort(runs: Sequence[RunFolder]) -> Effort:
    """Return what runs took, by their metrics and environments."""
    tables = [_read_numbers(run.metrics_file) for run in runs]
    seconds, cpu_seconds = (
        None if any(name not in table for table in tables) else sum(float(np.nanmax(table[name])) for table in tables)
        for name in ("seconds", "cpu_seconds")
    )
    devices = [run.load_device() for run in runs]
    known = [device for device in devices if device is not None]
    return Effort(seconds, cpu_seconds, ", ".join(dict.fromkeys(known)) if len(known) == len(devices) else None)


def _read_numbers(table: Path) -> Mapping[str, Any]:
    """Return the columns that hold numbers; an exported run has no table."""
    return read_columns(table)[1] if table.is_file() else {}


def format_duration(seconds: float) -> str:
    """Write a duration for a reader.

    Example:
        >>> format_duration(5400)
        '1 h 30 min'
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _facts(task: TaskConfig, runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    model, train = task.model, task.train
    network = f"{model.backbone}, inflated to 3D" if model.network == "inflated" else model.network
    time, processor_time, device = measure_effort(runs).texts
    in_all = " in all" if len(runs) > 1 else ""
    rows = [
        ("runs", str(len(runs)) if len(runs) > 1 else ""),
        ("network", network),
        ("start", _text(model.init) if model.network == "inflated" else "random"),
        ("patch (D, H, W)", "" if train.patch_size is None else " × ".join(map(str, train.patch_size)) + " voxels"),
        ("voxel", _spacing(task)),
        ("steps", _text(train.steps)),
        ("patches a step", _text(train.batch_size)),
        ("optimiser", f"{train.optimizer}, learning rate {_text(train.learning_rate)}, {train.schedule} schedule"),
        ("loss", train.loss),
        ("precision", _text(train.precision)),
        ("cases", _split(runs)),
        ("time", time and time + in_all),
        ("processor time", processor_time and processor_time + in_all),
        ("device", device),
        ("seed", str(train.seed)),
    ]
    return [row for row in rows if row[1]]


def _spacing(task: TaskConfig) -> str:
    spacing = task.preprocess.spacing_mm
    return str(spacing) if isinstance(spacing, str) else " × ".join(f"{value:g}" for value in spacing) + " mm"


def _split(runs: Sequence[RunFolder]) -> str:
    splits = [run.load_split() for run in runs]
    return "; ".join(
        dict.fromkeys(
            f"{len(split.train)} trained on, {len(split.validation)} held out" for split in splits if split.train
        )
    )


def _origin(run: RunFolder) -> list[tuple[str, str]]:
    if not run.environment_file.is_file():
        return [("exported", "an exported model no longer tells how it was trained")]
    facts: Mapping[str, Any] = read_environment(run.environment_file)
    now = latest(dict(facts))
    return [
        ("begun", str(facts["time"]).replace("T", " ").removesuffix("+00:00") + " UTC"),
        ("resumed", f"{len(facts['resumptions'])} times" if facts["resumptions"] else "never"),
        ("machine", str(now["machine"])),
        ("Python", str(now["python"])),
        *((name, str(version)) for name, version in now["versions"].items()),
        ("commit", str(now["git_commit"] or "not a checkout")[:12]),
        ("data fingerprint", str(now["data_fingerprint"])[:12]),
    ]


def _text(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _without_paths(task: TaskConfig) -> TaskConfig:
    weights = task.model.weights
    return task if weights is None else replace(task, model=replace(task.model, weights=Path(weights).name))
