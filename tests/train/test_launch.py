"""The real launchers, and SLURM's script with stand-ins for SLURM's commands; all on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import assert_equal, read_metrics

from medi3d.config import TaskConfig, dump_task
from medi3d.runs.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tiny: Path, tmp_path: Path, segmentation_task: TaskConfig) -> Path:
    """A folder to start commands in, with a task of twelve steps and its prepared cases."""
    values = dump_task(segmentation_task)
    values["train"] |= {"steps": 12, "threads": 1, "learning_rate": 3e-3}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared").symlink_to(tiny / "prepared")
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY), **more}


TRAIN = ["-m", "medi3d", "train", "--task", "task.yaml", "--name", "run", "--device", "cpu"]


def start(command: list[str], place: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=place, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output
    return output


def assert_trained_by_two(place: Path) -> Path:
    run = place / "runs" / "tiny_segmentation" / "run"
    state = load_checkpoint(run / "checkpoints" / "last.pt")
    assert (state["step"], state["processes"]) == (12, 2)
    steps = [int(row["step"]) for row in read_metrics(run)]
    assert steps == sorted(set(steps))  # one process wrote them
    return run


@pytest.mark.parametrize(
    "launcher",
    [
        [BIN / "torchrun", "--standalone", "--nproc-per-node", "2"],
        [
            BIN / "accelerate",
            "launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
        ],
    ],
)
def test_a_launcher_starts_a_run(launcher: list[Any], place: Path) -> None:
    output = finish(start([*map(str, launcher), *TRAIN], place))
    assert_trained_by_two(place)
    assert output.count("12 steps in") == 1  # one process tells


def test_every_fold_is_trained_by_both_processes_and_scored_once(place: Path, tiny: Path) -> None:
    (place / "data" / "raw").symlink_to(tiny / "raw")
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", *TRAIN]
    output = finish(start([*command, "--fold", "all", "--steps", "4"], place))
    folds = place / "runs" / "tiny_segmentation" / "run"
    record = json.loads((folds / "cross_validation.json").read_text())["folds"]
    assert [(fold, entry["state"], entry["steps"]) for fold, entry in record.items()] == [
        (fold, "finished", 4) for fold in "012"
    ]
    assert output.count("predict new cases with all folds") == 1
    summary = json.loads((folds / "out_of_fold" / "evaluation" / "labels" / "summary.json").read_text())
    assert summary["cases"] == 6
    # What a fold became does not hang on the folds before it, nor on their having been stopped.
    alone = finish(start([*command[:-4], "--name", "alone", "--device", "cpu", "--fold", "2", "--steps", "4"], place))
    assert "4 steps in" in alone
    last = [load_checkpoint(run / "checkpoints" / "last.pt") for run in (folds / "fold2", folds.with_name("alone"))]
    assert [state["processes"] for state in last] == [2, 2]
    assert_equal(last[0]["model"], last[1]["model"])
    again = finish(start([*command[:7], "--resume", str(folds), "--device", "cpu"], place))
    assert again.count("predict new cases with all folds") == 1


def test_two_machines_make_a_run(place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        start(
            [
                *(str(BIN / "torchrun"), "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)),
                *("--master-addr", "127.0.0.1", "--master-port", str(port), *TRAIN),
            ],
            place,
        )
        for number in range(2)
    ]
    for machine in machines:
        finish(machine)
    assert_trained_by_two(place)


def test_a_killed_process_ends_the_run_of_a_launcher(place: Path) -> None:
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", *TRAIN, "--steps", "100000"]
    process = start(command, place)
    run = place / "runs" / "tiny_segmentation" / "run"
    wait_for_steps(run, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert time.monotonic() - begun < 120
    assert "has lost another one" in output or "stopped after step" in output


def wait_for_steps(run: Path, process: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    while not (run / "metrics.csv").exists() or not read_metrics(run):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - begun < 300
        time.sleep(0.1)


SRUN = """\
import os, signal, subprocess, sys
command = [argument for argument in sys.argv[1:] if not argument.startswith("--kill")]
tasks = [
    subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}) for n in range(2)
]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """\
import os, sys
with open("scontrol.log", "a") as log:
    print(*sys.argv[1:], file=log)
if sys.argv[1] == "show":
    print("127.0.0.1")
    print("elsewhere")
"""


@pytest.fixture
def slurm(place: Path) -> dict[str, str]:
    """The environment of a job of two tasks on one machine."""
    commands = place / "bin"
    commands.mkdir()
    for name, source in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (commands / name).write_text(f"#!{sys.executable}\n{source}")
        (commands / name).chmod(0o755)
    (commands / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (commands / "python3").chmod(0o755)
    return {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }


def test_a_warned_job_saves_queues_again_and_goes_on(place: Path, slurm: dict[str, str]) -> None:
    script = [str(REPOSITORY / "scripts" / "slurm_train"), "runs/tiny_segmentation/run"]
    options = ["--task", "task.yaml", "--device", "cpu", "--steps", "100000"]
    job = start([*script, *options], place, **slurm)
    run = place / "runs" / "tiny_segmentation" / "run"
    wait_for_steps(run, job)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=300)
    assert job.returncode != 0
    assert f"requeue {slurm['SLURM_JOB_ID']}" in (place / "scontrol.log").read_text()
    saved = load_checkpoint(run / "checkpoints" / "last.pt")
    assert saved["processes"] == 2
    assert f"stopped after step {saved['step']}, saved" in output

    again = start([*script, *options], place, **slurm)
    begun = time.monotonic()
    while int(read_metrics(run)[-1]["step"]) <= saved["step"]:
        assert again.poll() is None, again.communicate()[0]
        assert time.monotonic() - begun < 300
        time.sleep(0.1)
    again.send_signal(signal.SIGUSR1)
    again.communicate(timeout=300)
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] > saved["step"]


def test_a_job_whose_run_bears_another_name_is_not_queued_again(place: Path, slurm: dict[str, str]) -> None:
    script = [str(REPOSITORY / "scripts" / "slurm_train"), "runs/elsewhere/run"]
    job = start([*script, "--task", "task.yaml", "--device", "cpu", "--steps", "100000"], place, **slurm)
    wait_for_steps(place / "runs" / "tiny_segmentation" / "run", job)
    job.send_signal(signal.SIGUSR1)
    output = finish(job, 2)
    assert "the folder above it must bear the task's name" in output
    assert "requeue" not in (place / "scontrol.log").read_text()


def test_a_job_without_a_run_is_refused(place: Path, slurm: dict[str, str]) -> None:
    assert "give the run's folder" in finish(start([str(REPOSITORY / "scripts" / "slurm_train")], place, **slurm), 2)
