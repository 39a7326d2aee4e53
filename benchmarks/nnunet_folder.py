"""nnU-Net's own form of a data set, and its commands, which run in the interpreter that has nnU-Net installed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Case = tuple[str, Path, Path]
"""Name, image, label."""


@dataclass(frozen=True)
class NnunetFolder:
    """A folder with one data set in nnU-Net's layout, and the environment that its commands need.

    Args:
        python: interpreter that has nnU-Net.
        folder: holds ``raw/``, ``preprocessed/`` and ``results/``.
        number: of the data set.
    """

    python: Path
    folder: Path
    number: int = 4

    @property
    def raw(self) -> Path:
        """Where images and labels lie."""
        return self.folder / "raw" / f"Dataset{self.number:03d}_benchmark"

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that say where everything lies, and keep PyTorch to one thread."""
        parts = ("raw", "preprocessed", "results")
        return {f"nnUNet_{part}": str(self.folder / part) for part in parts} | {"nnUNet_def_n_proc": "1"}

    def command(self, name: str, *arguments: str) -> list[str]:
        """Return a command of nnU-Net for this data set, for example ``command("preprocess", "-np", "1")``."""
        return [str(self.python.parent / f"nnUNetv2_{name}"), "-d", str(self.number), *arguments]

    def fill(self, cases: Iterable[Case], *, channel: str, labels: Mapping[int, str], suffix: str = ".nii.gz") -> None:
        """Link the files of single-channel cases into the folder and write ``dataset.json``."""
        count = 0
        for name, image, label in cases:
            for source, target in ((image, f"imagesTr/{name}_0000{suffix}"), (label, f"labelsTr/{name}{suffix}")):
                path = self.raw / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(source.resolve())
            count += 1
        description = {
            "channel_names": {"0": channel},
            "labels": {"background": 0, **{name: value for value, name in labels.items()}},
            "numTraining": count,
            "file_ending": suffix,
        }
        (self.raw / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def nnunet_version(python: Path | None) -> str | None:
    """Return nnU-Net's version in another interpreter, ``None`` where there is no such interpreter or no nnU-Net."""
    if python is None:
        return None
    code = "from importlib.metadata import version; print(version('nnunetv2'))"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
