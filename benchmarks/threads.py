"""Training on a CPU beside processes that want the same cores: all threads, one thread, and as medi3d chooses.

    python benchmarks/threads.py [--busy 2] [--steps 24]

Prints the median time of a step of the demo's network (2 patches of 32×40×40) for each, and what was chosen.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from medi3d.config import load_task
from medi3d.data.phantom_store import write_prepared_phantom
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.train import train_task
from medi3d.train.threads import count_cores


def time_steps(folder: Path, threads: int | None, steps: int) -> tuple[float, int]:
    """Train, and return the median seconds of the second half's steps, and how many threads they took."""
    task = load_task(
        "demo",
        overrides={
            **{"model.init": "random", "train.batch_size": 2, "train.steps": steps, "train.validations": 1},
            **{"train.folds": 2, "train.threads": threads},
        },
    )
    store = folder / "store"
    if not store.exists():
        write_prepared_phantom(store, task, cases=4, shapes=((32, 40, 40),))
    moments: list[float] = []
    run = folder / f"threads-{threads}"
    train_task(task, prepared=store, run=run, device="cpu", on_event=lambda event: moments.append(time.perf_counter()))
    later = moments[steps // 2 : -1]  # the last one holds the validation
    used = load_checkpoint(run / "checkpoints" / "last.pt")["threads"]
    return statistics.median(two - one for one, two in pairwise(later)), used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy meanwhile")
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    cores = count_cores()
    busy = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) for _ in range(options.busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{cores} threads to be had, {options.busy} busy processes, torch {torch.__version__}")
            for threads in (cores, 1, None):
                seconds, used = time_steps(Path(folder), threads, options.steps)
                print(f"threads {threads or f'chosen ({used})'}: {seconds:.3f} s a step")
    finally:
        for process in busy:
            process.terminate()


if __name__ == "__main__":
    main()
