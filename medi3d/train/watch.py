"""What a run tells while it trains: ``metrics.csv``, the trackers of ``train.trackers``, and how fast it is.

TensorBoard's files lie in the run's folder. Weights & Biases and MLflow are told numbers and settings, never a picture
or the path of a file, and only where a task asks for them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from medi3d.config import TaskConfig, dump_task
from medi3d.errors import MissingDependencyError
from medi3d.runs.folder import RunFolder
from medi3d.types import Array

_OPTIONAL = {"wandb": "Weights & Biases", "mlflow": "MLflow"}
"""Tracker → what it is called; package and extra of medi3d bear the tracker's name."""


class Watch:
    """The record of one run; in a run of many processes, the first one writes it.

    Args:
        accelerator: of the run; it holds the trackers.
        folder: of the run.
        task: ``train.trackers`` says who is told.
        others: further tasks of a run of several.

    Raises:
        MissingDependencyError: a tracker's package is not installed.
    """

    def __init__(self, accelerator: Accelerator, folder: RunFolder, task: TaskConfig, *others: TaskConfig) -> None:
        check_trackers(task)
        self._accelerator, self._folder, self._task, self._others = accelerator, folder, task, others
        self._name = "+".join(one.name for one in (task, *others))

    def start(self, step: int = 0) -> None:
        """Open the trackers.

        Args:
            step: the last step that is kept of a resumed run; TensorBoard hides what was written of later ones.
        """
        names = self._task.train.trackers if self._accelerator.is_main_process else ()
        self._accelerator.trackers = []
        self._accelerator.log_with = [_TRACKERS[name](self._folder.path, self._name, step) for name in names]
        self._accelerator.init_trackers(self._name)
        for tracker in self._accelerator.trackers:
            if tracker.name in _OPTIONAL:
                tracker.store_init_configuration(_describe(self._task, *self._others))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row of ``metrics.csv``, and tell the trackers.

        Args:
            step: steps of the optimiser so far.
            values: column → number, see :data:`medi3d.runs.metrics.METRIC_COLUMNS`.
        """
        if self._accelerator.is_main_process:
            self._folder.append_metrics({"step": step, **values})
            self._accelerator.log(dict(values), step=step)

    def show(self, step: int, pictures: Mapping[str, Array]) -> None:
        """Put pictures into TensorBoard, and nowhere else.

        Args:
            step: steps of the optimiser so far.
            pictures: case id → ``(height, width, 3)`` uint8, see :func:`medi3d.train.pictures.draw_plane`.
        """
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                for case_id, picture in pictures.items():
                    tracker.writer.add_image(f"predictions/{case_id}", picture, step, dataformats="HWC")
                tracker.writer.flush()

    def close(self) -> None:
        """Close the trackers; a run that goes on later opens them again."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers = []


class Meter:
    """How fast a run is, and how much memory it takes.

    Args:
        device: on which it trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._patches, self._waited, self._since = 0, 0.0, time.monotonic()

    def add(self, patches: int) -> None:
        """Count patches that were trained on."""
        self._patches += patches

    def skip(self, seconds: float) -> None:
        """Leave out time that was spent on something else, as validation is."""
        self._since += seconds

    def read(self, waited_s: float) -> dict[str, float]:
        """Return the rates since the last reading.

        Args:
            waited_s: seconds that the run has waited for patches so far, all in all.

        Returns:
            ``patches_per_second``; ``waiting``, the share of the time in which no patch was ready; ``memory_gb``, that
            of the process on a CPU, the most that tensors took on a GPU.
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        rates = {
            "patches_per_second": self._patches / seconds,
            "waiting": min(max((waited_s - self._waited) / seconds, 0.0), 1.0),
            "memory_gb": used_bytes(self._device) / 1e9,
        }
        self._patches, self._waited, self._since = 0, waited_s, now
        return rates


def used_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a GPU so far; on a CPU, what the process holds now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def check_trackers(task: TaskConfig) -> None:
    """Check that the packages of all trackers are there.

    Raises:
        MissingDependencyError: one is not.
    """
    for name in task.train.trackers:
        if name in _OPTIONAL and find_spec(name) is None:
            raise MissingDependencyError(
                f"train.trackers: {name} needs the package of {_OPTIONAL[name]}, which is not installed; "
                f"pip install 'medi3d[{name}]', or leave {name} out"
            )


def _tensorboard(run: Path, name: str, step: int) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", run, purge_step=step + 1 if step else None)


def _wandb(run: Path, name: str, step: int) -> GeneralTracker:
    """Open a run of W&B in the run's folder; one that goes on keeps its id, which W&B's folder names end with."""
    import wandb

    earlier = sorted((run / "wandb").glob("*run-*-*")) if step else []
    # neither the code nor the command line, whose paths may name patients, nor what is printed
    settings = wandb.Settings(
        disable_code=True,
        disable_git=True,
        console="off",
        x_disable_meta=True,
        x_disable_machine_info=True,
        silent=True,
    )
    return WandBTracker(
        name,
        dir=str(run),
        name=run.name,
        id=earlier[-1].name.rpartition("-")[2] if earlier else None,
        resume="allow",
        settings=settings,
    )


def _mlflow(run: Path, name: str, step: int) -> GeneralTracker:
    """Open a run of MLflow, at the place that ``MLFLOW_TRACKING_URI`` names; one that goes on keeps its id."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers which functions are called
    return _ResumableMLflowTracker(name, run_name=run.name, id_file=run / "mlflow-run", resume=step > 0)


class _ResumableMLflowTracker(MLflowTracker):  # type: ignore[misc]
    """accelerate's tracker, with the run's id kept beside the run."""

    def __init__(self, experiment: str, *, run_name: str, id_file: Path, resume: bool) -> None:
        known = id_file.read_text(encoding="utf-8") if resume and id_file.is_file() else None
        super().__init__(experiment, run_id=known, run_name=run_name)
        self._id_file = id_file

    def start(self) -> None:
        super().start()
        self._id_file.write_text(self.active_run.info.run_id, encoding="utf-8")


_TRACKERS: dict[str, Callable[[Path, str, int], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _describe(task: TaskConfig, *others: TaskConfig) -> dict[str, Any]:
    """Return the settings of a run by dotted key, without the paths of weights; of several tasks below their names."""
    if others:
        return {f"{one.name}.{key}": value for one in (task, *others) for key, value in _describe(one).items()}
    values = dump_task(task)
    flat = {"task": task.name, "kind": task.kind}
    for section in ("preprocess", "model", "train"):
        flat |= _flatten(values[section], section)
    flat["model.init"] = Path(task.model.init).name
    del flat["model.weights"]
    return flat


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        flat |= (
            _flatten(value, name)
            if isinstance(value, Mapping)
            else {name: str(value) if isinstance(value, list) else value}
        )
    return flat
