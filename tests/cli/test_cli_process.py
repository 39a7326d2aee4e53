"""The installed command in a process of its own, and how options are read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medi3d._version import __version__
from medi3d.cli.options import parse_assignments
from medi3d.errors import ConfigError


def test_the_installed_command_in_a_process_of_its_own() -> None:
    command = Path(sys.executable).with_name("medi3d")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert version.stdout == f"medi3d {__version__}\n"
    wrong = subprocess.run(
        [command, "train", "--task", "hipocampus"], capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("medi3d: unknown task 'hipocampus'; did you mean 'hippocampus'?")
    assert wrong.stderr.count("\n") == 1


def test_help_does_not_wait_for_torch() -> None:
    check = "import sys; import medi3d.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0


def test_assignments() -> None:
    assert parse_assignments(["a.b=3", "c = x=y"]) == {"a.b": "3", "c": " x=y"}
    with pytest.raises(ConfigError, match=r"--set train\.steps: write section\.key=value"):
        parse_assignments(["train.steps"])


@pytest.mark.slow
def test_the_demo_runs_from_nothing_to_a_picture(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("medi3d")
    answer = subprocess.run(
        [command, "demo", "--budget", "20s", "--cases", "5", "--output", "demo"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    demo = tmp_path / "demo"
    assert (demo / "prediction.png").read_bytes().startswith(b"\x89PNG")
    assert (demo / "curves.png").is_file()
    assert len(list((demo / "predictions").glob("*.nii.gz"))) == 2
    assert (demo / "predictions" / "evaluation" / "summary.json").is_file()
    assert "medi3d predict demo/runs/demo/demo" in answer.stdout
