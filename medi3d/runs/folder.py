"""The run folder: the resolved configuration, where it came from, its split, its curves, its checkpoints.

``runs/<task>/<name>/`` holds ``config.yaml``, ``environment.json``, ``split.json``, ``fingerprint.json`` (statistics of
the raw data, without identifiers), ``metrics.csv``, ``checkpoints/`` and the curves for TensorBoard. Each file is there
whole or not at all, whatever ends the run; ``config.yaml``, which makes a folder a run, is written last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from medi3d.config import TaskConfig, dump_task, load_task, read_yaml
from medi3d.data.splits import Split
from medi3d.errors import InputError, Medi3dError
from medi3d.io import atomic
from medi3d.io.prepared import PreparedStore
from medi3d.runs import environment
from medi3d.runs.checkpoint import State, has_checkpoint, load_checkpoint
from medi3d.runs.metrics import MetricsTable

logger = logging.getLogger(__name__)


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: the run's folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.split_file = path / "split.json"
        self.environment_file = path / "environment.json"
        self.fingerprint_file = path / "fingerprint.json"
        self.metrics_file = path / "metrics.csv"
        self.last = path / "checkpoints" / "last.pt"
        self.best = path / "checkpoints" / "best.pt"
        self.exported = path / "model.safetensors"
        self._metrics = MetricsTable(self.metrics_file)

    def checkpoint(self, which: str) -> Path:
        """Return the ``best`` or ``last`` checkpoint, or the weights of an exported run, which has only one."""
        return self.exported if self.exported.is_file() else {"best": self.best, "last": self.last}[which]

    def check_free(self) -> None:
        """Check that a new run may be written here.

        Raises:
            InputError: the folder already holds a run.
        """
        if self.config_file.exists():
            raise InputError(f"{self.path}: already holds a run; give another --name, or --resume it")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training into this folder, and clear away what a killed one left half-written.

        Raises:
            InputError: another process is training into it.
        """
        with atomic.name_the_disk(self.path.parent):
            self.path.mkdir(parents=True, exist_ok=True)
        with atomic.lock(self.path, way_out="give another --name") as locked:
            if locked:
                atomic.remove_leftovers(self.path)
                atomic.remove_leftovers(self.last.parent)
            yield

    def create(self, task: TaskConfig, split: Split, *, prepared: Path, fold: int) -> None:
        """Write what describes the run before its first step.

        Raises:
            InputError: the folder already holds a run.
        """
        self.check_free()
        with atomic.name_the_disk(self.path.parent):
            self.path.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(self.split_file, json.dumps({"fold": fold, **asdict(split)}, indent=1).encode())
        environment.write_environment(self.environment_file, seed=task.train.seed, prepared=prepared)
        atomic.write_bytes(self.fingerprint_file, json.dumps(PreparedStore(prepared).fingerprint, indent=1).encode())
        self.write_config(task)
        atomic.sync_folder(self.path)

    def resume(self, prepared: Path, *, write: bool = True) -> State | None:
        """Bring the folder to where its last good checkpoint stands, and note the resumption.

        Args:
            prepared: where the prepared data lies now.
            write: in a run of many processes all get the state, and one writes.

        Returns:
            The state to go on from; ``None`` where the run ended before its first checkpoint and starts from step 0.

        Raises:
            WeightsError: there are checkpoints, and none of them is good.
        """
        state = self.rewind(write=write)
        if write:
            self.note_resumption(state, prepared)
        return state

    def rewind(self, *, write: bool = True) -> State | None:
        """Bring the folder to where its last good checkpoint stands; as :meth:`resume`, without a note."""
        state = load_checkpoint(self.last) if has_checkpoint(self.last) else None
        if write:
            if state is None:
                logger.warning("%s: ended before its first checkpoint; starts again from step 0", self.path)
            self._metrics.trim(0 if state is None else int(state["step"]))
        return state

    def note_resumption(self, state: State | None, prepared: Path) -> None:
        """Note that the run goes on, and warn of what has changed since it was last started."""
        step = 0 if state is None else int(state["step"])
        environment.add_resumption(self.environment_file, step=step, prepared=prepared)

    def write_config(self, task: TaskConfig) -> None:
        """Write the resolved configuration, whole or not at all."""
        atomic.write_bytes(self.config_file, yaml.safe_dump(dump_task(task), sort_keys=False).encode())

    def load_config(self) -> TaskConfig:
        """Read the run's resolved configuration.

        Raises:
            InputError: the folder holds no run.
        """
        if self.path.is_file():
            raise InputError(f"{self.path}: a file; give the folder of its run, the one with config.yaml")
        if (self.path / "pretraining.yaml").is_file():
            raise InputError(
                f"{self.path}: a pretraining, which predicts nothing; start a run with --init {self.path}/encoder/"
            )
        if not self.config_file.is_file():
            raise InputError(f"{self.path}: no run here (config.yaml is missing); `medi3d train` makes one")
        return load_task(self.config_file, values=read_yaml(self.config_file))

    def load_split(self) -> Split:
        """Read which cases the run trains on and validates on; an exported run no longer tells."""
        if self.exported.is_file():
            return Split((), ())
        content = json.loads(self.split_file.read_text(encoding="utf-8"))
        return Split(tuple(content["train"]), tuple(content["validation"]))

    def load_fold(self) -> int:
        """Read which fold the run validates on."""
        return int(json.loads(self.split_file.read_text(encoding="utf-8"))["fold"])

    def load_fingerprint(self) -> dict[str, Any] | None:
        """Read the statistics of the data set that the run was trained on; runs of older versions do not tell."""
        if not self.fingerprint_file.is_file():
            return None
        fingerprint: dict[str, Any] = json.loads(self.fingerprint_file.read_text(encoding="utf-8"))
        return fingerprint

    def load_prepared(self) -> Path:
        """Read where the prepared data lies that the run trains on, or did when it was last resumed."""
        return Path(environment.latest(environment.read_environment(self.environment_file))["prepared"])

    def note_device(self, name: str) -> None:
        """Note which device the run is trained on."""
        environment.note_device(self.environment_file, name)

    def load_device(self) -> str | None:
        """Read which device the run was last trained on; runs of older versions, and exported ones, do not tell."""
        if not self.environment_file.is_file():
            return None
        return environment.latest(environment.read_environment(self.environment_file)).get("device")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to ``metrics.csv``; a column without a value stays empty, a new column is added on the right.

        Raises:
            Medi3dError: the disk is full or fails.
        """
        try:
            self._metrics.append(row)
        except Medi3dError as error:
            raise Medi3dError(f"{error}; then `medi3d train --resume {self.path}` goes on") from error

    def trim_metrics(self, step: int) -> None:
        """Drop the rows after ``step``: those of steps that a killed run did after its last checkpoint."""
        self._metrics.trim(step)


def find_runs(parent: Path) -> list[RunFolder]:
    """Return the runs that lie directly in a folder, by name.

    Raises:
        InputError: there is none.
    """
    runs = [RunFolder(file.parent) for file in sorted(parent.glob("*/config.yaml"))]
    if not runs:
        raise InputError(f"{parent}: holds no runs; give a folder of run folders, such as runs/<task>")
    return runs
