"""The run folder: the resolved configuration, where it came from, its split, its curves.

``runs/<task>/<name>/`` holds ``config.yaml``, ``environment.json``, ``split.json``, ``metrics.csv``, ``checkpoints/``
and the curves for TensorBoard.
"""

from __future__ import annotations

import csv
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from medi3d.config import TaskConfig, dump_task, load_task, read_yaml
from medi3d.data.splits import Split
from medi3d.errors import InputError
from medi3d.io.prepared import PreparedStore

_PACKAGES = ("medi3d", "torch", "timm", "monai", "torchio", "SimpleITK", "numpy", "accelerate")

METRIC_COLUMNS = (
    *("step", "seconds", "learning_rate", "loss", "score"),
    *("patches_per_second", "waiting", "memory_gb"),
)


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
        self.metrics_file = path / "metrics.csv"
        self.last = path / "checkpoints" / "last.pt"
        self.best = path / "checkpoints" / "best.pt"
        self.exported = path / "model.safetensors"

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

    def create(self, task: TaskConfig, split: Split, *, prepared: Path, fold: int) -> None:
        """Write what describes the run before its first step.

        Raises:
            InputError: the folder already holds a run.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(yaml.safe_dump(dump_task(task), sort_keys=False), encoding="utf-8")
        self.split_file.write_text(json.dumps({"fold": fold, **asdict(split)}, indent=1), encoding="utf-8")
        facts = {
            "versions": {name: metadata.version(name) for name in _PACKAGES},
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "git_commit": _git_commit(),
            "seed": task.train.seed,
            "prepared": str(prepared.resolve()),
            "data_fingerprint": PreparedStore(prepared).fingerprint_hash,
        }
        self.environment_file.write_text(json.dumps(facts, indent=1), encoding="utf-8")

    def load_config(self) -> TaskConfig:
        """Read the run's resolved configuration.

        Raises:
            InputError: the folder holds no run.
        """
        if not self.config_file.is_file():
            raise InputError(f"{self.path}: no run here (config.yaml is missing); `medi3d train` makes one")
        return load_task(self.config_file, values=read_yaml(self.config_file))

    def load_split(self) -> Split:
        """Read which cases the run trains on and validates on; an exported run no longer tells."""
        if self.exported.is_file():
            return Split((), ())
        content = json.loads(self.split_file.read_text(encoding="utf-8"))
        return Split(tuple(content["train"]), tuple(content["validation"]))

    def load_prepared(self) -> Path:
        """Read where the prepared data lies that the run trains on."""
        return Path(json.loads(self.environment_file.read_text(encoding="utf-8"))["prepared"])

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to ``metrics.csv``; a column without a value stays empty."""
        fresh = not self.metrics_file.exists()
        with self.metrics_file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, METRIC_COLUMNS, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    def trim_metrics(self, step: int) -> None:
        """Drop the rows after ``step``: those of steps that a killed run did after its last checkpoint."""
        if self.metrics_file.exists():
            with self.metrics_file.open(newline="", encoding="utf-8") as stream:
                rows = [row for row in csv.DictReader(stream) if int(row["step"]) <= step]
            self.metrics_file.unlink()
            for row in rows:
                self.append_metrics(row)


def _git_commit() -> str | None:
    """Return the commit of the checkout that medi3d runs from, if it does."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
