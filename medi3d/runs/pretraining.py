"""The folder of a pretraining on several tasks: one run's checkpoints and curves, and a record for each task.

``runs/pretraining/<name>/`` holds ``pretraining.yaml``, ``checkpoints/``, ``metrics.csv``, the curves for TensorBoard,
``tasks/<task>/`` with what the folder of a task's own run would hold beside its checkpoints, and, at the end,
``encoder/``. ``pretraining.yaml``, which makes the folder a pretraining, is written last of what describes it.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from medi3d.config import PretrainConfig, dump_mixture, parse_pretraining, read_yaml
from medi3d.data.splits import Split
from medi3d.errors import ConfigError, InputError
from medi3d.io import atomic
from medi3d.runs.folder import RunFolder


class PretrainingFolder(RunFolder):
    """Paths and small files of a pretraining.

    Args:
        path: its folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.config_file = path / "pretraining.yaml"
        self.encoder = path / "encoder"

    @property
    def exists(self) -> bool:
        """Whether a pretraining has begun here."""
        return self.config_file.is_file()

    def record(self, task: str) -> RunFolder:
        """Return the record of a task: its configuration, split, environment and fingerprint."""
        return RunFolder(self.path / "tasks" / re.sub(r"[^A-Za-z0-9._-]+", "_", task))

    def write_pretraining(self, config: PretrainConfig) -> None:
        """Write which tasks there are and how they are mixed; their configurations lie in their records."""
        atomic.write_bytes(self.config_file, yaml.safe_dump(dump_mixture(config), sort_keys=False).encode())
        atomic.sync_folder(self.path)

    def load_pretraining(self) -> PretrainConfig:
        """Read what the pretraining is of.

        Raises:
            InputError: the folder holds none.
        """
        if not self.exists:
            raise InputError(f"{self.path}: no pretraining here (pretraining.yaml is missing); `medi3d pretrain`")
        values = read_yaml(self.config_file)
        names = values.pop("tasks", None)
        if not isinstance(names, list):
            raise ConfigError(f"{self.config_file}: tasks: expected the names of tasks, got {names!r}")
        return parse_pretraining(
            values, [self.record(str(name)).load_config() for name in names], where=str(self.config_file)
        )

    def load_splits(self) -> dict[str, Split]:
        """Read which cases each task is trained on and validated on."""
        return {task.name: self.record(task.name).load_split() for task in self.load_pretraining().tasks}
