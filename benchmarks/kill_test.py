"""The kill test: a run that is killed again and again ends with the weights of one that was left alone, bit for bit.

    python benchmarks/kill_test.py [--kills 20] [--seed 0] [--work FOLDER] [--task FILE --prepared STORE]

A short run (moving average, dropout, mixup, patches read by a worker process, a checkpoint every second) is trained
once undisturbed. Then the same run is killed by SIGKILL at random moments, drawn over start-up, steps, validations and
the writing of checkpoints, and resumed each time with ``medi3d train --resume RUN``. What is left is compared with the
undisturbed run: every tensor and value of ``last.pt`` and ``best.pt`` and every cell of ``metrics.csv``, but for times
and memory. The same for runs that are asked to stop by SIGTERM, SIGUSR1 and SIGINT (which save first: no step is
lost), for a disk that is full, and for a ``last.pt`` that is cut or has a flipped bit.

The command is the real one; only told apart are its phases, which it reports through a pipe.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

TASK: dict[str, Any] = {
    "name": "kill_test",
    "kind": "segmentation",
    "data": {"layout": "msd", "channels": ["MR"], "labels": {1: "bright", 2: "dark"}},
    "preprocess": {"spacing_mm": 1.0, "normalize": ["mr"]},
    "model": {"init": "random", "stages": 2, "stem_stride": 1, "decoder_channels": [8, 12], "dropout": 0.2},
    "train": {
        "patch_size": [12, 16, 14],
        "batch_size": 2,
        "steps": 240,
        "learning_rate": 3e-3,
        "validations": 8,
        "folds": 3,
        "ema_decay": 0.9,
        "augment": {"mixup": 0.4},
        "workers": 1,
        "threads": 1,
        "save_every": "1s",
    },
}

TIMES = {"seconds", "cpu_seconds", "validation_s", "patches_per_second", "waiting", "memory_gb"}
"""Values and columns that differ between two runs of the same thing."""

PHASES = {"start-up": 0.25, "steps": 0.35, "validation": 0.2, "writing": 0.2}
"""Phase → share of the kills that are aimed at it."""

_CREATED, _STEP, _PREDICT, _WRITE, _WRITTEN = b"cspwW"
_NAMES = {_CREATED: "start-up", _STEP: "steps", _PREDICT: "validation", _WRITE: "writing", _WRITTEN: "steps"}

TIMEOUT_S = 1200
ORPHANS_S = 15
"""How long what a killed process has started may live on."""


# --- the command that reports


def train_and_report(pipe: int, arguments: Sequence[str]) -> None:
    """Run ``medi3d`` in this process, and write a letter into a pipe at each of its phases."""
    from medi3d.infer import windows
    from medi3d.runs import checkpoint
    from medi3d.runs.folder import RunFolder

    def report(letter: int, function: Callable[..., Any], *, after: int | None = None) -> Callable[..., Any]:
        def reporting(*values: Any, **options: Any) -> Any:
            os.write(pipe, bytes([letter]))
            result = function(*values, **options)
            if after is not None:
                os.write(pipe, bytes([after]))
            return result

        return reporting

    windows.predict_logits = report(_PREDICT, windows.predict_logits)  # before anything has imported it by name
    checkpoint._write = report(_WRITE, checkpoint._write, after=_WRITTEN)
    RunFolder.create = report(_CREATED, RunFolder.create)  # type: ignore[method-assign]
    register_optimizer_step_post_hook(lambda *_: os.write(pipe, bytes([_STEP])) and None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it

    from medi3d.cli.main import run

    sys.argv = ["medi3d", *arguments]
    run()


class Life:
    """One process of a run, from start to end."""

    def __init__(self, arguments: Sequence[str]) -> None:
        reader, writer = os.pipe()
        self.started = time.monotonic()
        self.errors = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the life
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--report", str(writer), *arguments],
            pass_fds=(writer,),
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        os.close(writer)
        os.set_blocking(reader, False)
        self._reader: int | None = reader
        self.told = b""
        self.moments: list[float] = []

    @property
    def steps(self) -> int:
        """Steps of the optimiser in this life."""
        return self.told.count(_STEP)

    @property
    def phase(self) -> str:
        """What the process did when it was last heard of."""
        self._listen()
        return _NAMES[self.told[-1]] if self.told else "start-up"

    def wait_for(self, letter: int, count: int) -> bool:
        """Wait until a phase has come so many times; return whether it did before the process ended."""
        while self.told.count(letter) < count and self.process.poll() is None:
            self._wait()
        self._listen()
        return self.told.count(letter) >= count

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if any, and wait for the end; return the exit code, and keep what was printed as errors."""
        if number is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)
        while self.process.poll() is None:
            self._wait()
        self._listen()
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None
            self._errors.seek(0)
            self.errors = self._errors.read().decode(errors="replace").strip()
            self._errors.close()
        return int(self.process.returncode)

    def count_orphans(self) -> int:
        """Return how many of the processes that this one started live on after it, when they had time to end."""
        deadline = time.monotonic() + ORPHANS_S
        while count := sum(_session_of(entry) == self.process.pid for entry in Path("/proc").glob("[0-9]*/stat")):
            if time.monotonic() > deadline:
                os.killpg(self.process.pid, signal.SIGKILL)
                return count
            time.sleep(0.1)
        return 0

    def _wait(self) -> None:
        self._listen()
        time.sleep(0.0005)
        if time.monotonic() - self.started > TIMEOUT_S:
            self.process.kill()

    def _listen(self) -> None:
        if self._reader is None:
            return
        try:
            new = os.read(self._reader, 1 << 16)
        except BlockingIOError:
            return
        self.told += new
        self.moments += [time.monotonic() - self.started] * len(new)


def _session_of(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[3])
    except OSError:  # it has ended
        return None


# --- what is compared


def find_differences(one: Path, other: Path) -> list[str]:
    """Return the names of all that differs between two runs."""
    found = []
    for name in ("last.pt", "best.pt"):
        states = [torch.load(run / "checkpoints" / name, map_location="cpu", weights_only=True) for run in (one, other)]
        found += _compare(*states, name)
    tables = [_read_metrics(run / "metrics.csv") for run in (one, other)]
    if tables[0] != tables[1]:
        rows = [row for row, twin in zip(*tables, strict=False) if row != twin]
        found.append(f"metrics.csv ({len(tables[0])} and {len(tables[1])} rows; {rows[:1]})")
    return found


def _compare(one: Any, other: Any, name: str) -> list[str]:
    if type(one) is not type(other):
        return [name]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name} {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [line for key in one if key not in TIMES for line in _compare(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [name]
        return [line for n, pair in enumerate(zip(one, other, strict=True)) for line in _compare(*pair, f"{name}/{n}")]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    else:
        same = repr(one) == repr(other)
    return [] if same else [name]


def _read_metrics(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(stream)]


def count_tensors(run: Path) -> int:
    """Return how many tensors the last checkpoint of a run holds."""

    def count(value: Any) -> int:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return isinstance(value, torch.Tensor) + sum(map(count, items))

    return count(torch.load(run / "checkpoints" / "last.pt", weights_only=True))


# --- runs


@dataclass(frozen=True)
class Durations:
    """How long the phases of the undisturbed run took, in seconds."""

    startup: float
    step: float
    validation: float
    writing: float
    whole: float


class KillTest:
    """The undisturbed run, and others that shall end like it.

    Args:
        work: folder for the runs.
        task: YAML file of the task.
        prepared: its prepared data.
        seed: draws the moments of the kills.
    """

    def __init__(self, work: Path, task: Path, prepared: Path, seed: int) -> None:
        self.work, self.task, self.prepared = work, task, prepared
        self.rng = np.random.default_rng(seed)
        self.whole = self.folder("whole")
        life = self.start(self.whole)
        code = life.end()
        if code:
            raise SystemExit(f"the undisturbed run failed ({code}): {life.errors}")
        self.durations = _measure(life)

    def folder(self, name: str, output: Path | None = None) -> Path:
        """Return where a run of some name lies."""
        return (output or self.work) / yaml.safe_load(self.task.read_text())["name"] / name

    def start(self, run: Path) -> Life:
        """Start a run, or go on with it."""
        if (run / "config.yaml").exists():
            return Life(["train", "--resume", str(run)])
        where = ["--prepared", str(self.prepared), "--output", str(run.parents[1]), "--name", run.name]
        return Life(["train", "--task", str(self.task), *where])

    def finish(self, run: Path) -> str:
        """Let a run go on to its end; return what it printed on standard error.

        Raises:
            SystemExit: it failed.
        """
        life = self.start(run)
        code = life.end()
        if code:
            raise SystemExit(f"{run}: could not be finished ({code}): {life.errors}")
        return life.errors

    def kill(self, kills: int) -> tuple[list[dict[str, Any]], list[str]]:
        """Kill runs so many times; return a row for each kill, and the differences in the end."""
        rows: list[dict[str, Any]] = []
        found: list[str] = []
        counts = {phase: round(share * kills) for phase, share in PHASES.items()}
        counts["steps"] += kills - sum(counts.values())
        aims = [phase for phase, count in counts.items() for _ in range(count)]
        self.rng.shuffle(aims)
        number = 0
        while aims:
            number += 1
            run = self.folder(f"killed-{number}")
            while aims:
                row = self._kill_once(run, aims[0])
                if row is None:
                    break  # it came to its end before
                rows.append({"kill": len(rows) + 1, "run": number, "aimed at": aims.pop(0)} | row)
                print_row(rows[-1])
                if row["orphans"]:
                    found.append(f"kill {len(rows)}: {row['orphans']} processes live on")
            self.finish(run)
            found += [f"{run.name}: {line}" for line in find_differences(self.whole, run)]
        return rows, found

    def _kill_once(self, run: Path, aim: str) -> dict[str, Any] | None:
        life = self.start(run)
        times = self.durations
        letter, count, within = {
            "start-up": (_CREATED, 0, times.startup),
            "steps": (_STEP, int(self.rng.integers(1, 40)), times.step),
            "validation": (_PREDICT, 1, times.validation),
            "writing": (_WRITE, int(self.rng.integers(1, 3)), times.writing),
        }[aim]
        if not life.wait_for(letter, count):
            life.end()
            return None
        time.sleep(self.rng.uniform(0, within))
        if life.end(signal.SIGKILL) == 0:
            return None
        return {
            "in": life.phase,
            "after s": f"{time.monotonic() - life.started:.2f}",
            "steps": life.steps,
            "half-written": len(list(run.rglob(".tmp-*"))),
            "last.pt": read_step(run),
            "orphans": life.count_orphans(),
        }

    def stop(self, number: signal.Signals, after: int) -> tuple[Path, dict[str, Any]]:
        """Ask a run to stop; return its folder and a row."""
        run = self.folder(f"stopped-by-{number.name}")
        life = self.start(run)
        life.wait_for(_STEP, after)
        asked = time.monotonic()
        code = life.end(number)
        row = {"signal": number.name, "exit code": code, "ended after s": f"{time.monotonic() - asked:.2f}"}
        row |= {"steps done": life.steps, "steps saved": read_step(run)}
        print_row(row)
        if read_step(run) != life.steps or "Traceback" in life.errors:
            raise SystemExit(f"{number.name}: a step was lost, or the run failed: {life.errors}")
        return run, row


def read_step(run: Path) -> int | None:
    """Return the step of a run's last checkpoint, as it lies there; ``None`` where there is none."""
    path = run / "checkpoints" / "last.pt"
    return int(torch.load(path, weights_only=True)["step"]) if path.exists() else None


def _measure(life: Life) -> Durations:
    lasted: dict[str, list[float]] = {"steps": [], "validation": [], "writing": []}
    moments = list(zip(life.told, life.moments, strict=True))
    for (letter, begun), (_, ended) in itertools.pairwise(moments):
        lasted.setdefault(_NAMES[letter], []).append(ended - begun)
    return Durations(
        startup=life.moments[0],
        step=float(np.median(lasted["steps"])),
        validation=float(np.median(lasted["validation"])),
        writing=float(np.median(lasted["writing"])),
        whole=life.moments[-1],
    )


# --- a full disk, a damaged checkpoint


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path | None]:
    """Mount a file system in memory; ``None`` where that is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill_disk(test: KillTest) -> list[str]:
    """Fill a run's disk after its first checkpoint, make room again, and go on."""
    with small_disk(test.work / "disk", "64m") as disk:
        if disk is None:
            return ["not tested: only root mounts a small disk"]
        run = test.folder("full", disk)
        life = test.start(run)
        life.wait_for(_WRITTEN, 2)
        with (disk / "filler").open("wb") as filler:
            try:
                while True:
                    filler.write(bytes(1 << 16))
                    filler.flush()
            except OSError:
                pass
        code = life.end()
        print(f"full disk: exit code {code}, saved {read_step(run)} of {life.steps} steps\n  {life.errors}")
        if code != 1 or "Traceback" in life.errors:
            return [f"a full disk ended the run with {code}: {life.errors}"]
        (disk / "filler").unlink()
        test.finish(run)
        return [f"full disk: {line}" for line in find_differences(test.whole, run)]


def damage(test: KillTest, run: Path, how: str) -> list[str]:
    """Damage the last checkpoint of a stopped run, and go on."""
    path = run / "checkpoints" / "last.pt"
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) * 2 // 3 :]
    else:
        data[int(test.rng.integers(len(data)))] ^= 1 << int(test.rng.integers(8))
    path.write_bytes(data)
    told = test.finish(run)
    print(f"{how}:", *(line for line in told.splitlines() if line.startswith("WARNING")))
    if "took the one before it, last.previous.pt, instead" not in told:
        return [f"{how}: nothing was said about it"]
    return [f"{how}: {line}" for line in find_differences(test.whole, run)]


def print_row(row: dict[str, Any]) -> None:
    """Print a row of the table."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def write_task(folder: Path) -> tuple[Path, Path]:
    """Write the small task and its prepared data; return where they are."""
    from medi3d.config import load_task
    from medi3d.data.phantom_store import write_prepared_phantom

    folder.mkdir(parents=True, exist_ok=True)
    task = folder / "kill_test.yaml"
    task.write_text(yaml.safe_dump(TASK), encoding="utf-8")
    if not (folder / "prepared" / "dataset.json").exists():
        write_prepared_phantom(folder / "prepared", load_task(task))
    return task, folder / "prepared"


def main() -> None:
    """Run all of it, print the tables, and fail where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--task", type=Path)
    parser.add_argument("--prepared", type=Path)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="kill-test-"))
    task, prepared = (given.task, given.prepared) if given.task else write_task(work)
    test = KillTest(work / "runs", task, prepared, given.seed)
    print(f"undisturbed: {test.durations}; {count_tensors(test.whole)} tensors in last.pt", flush=True)
    _, found = test.kill(given.kills)
    stopped = {}
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        stopped[number], _ = test.stop(number, 50)
    test.finish(stopped[signal.SIGINT])
    found += [f"SIGINT: {line}" for line in find_differences(test.whole, stopped[signal.SIGINT])]
    found += damage(test, stopped[signal.SIGTERM], "cut")
    found += damage(test, stopped[signal.SIGUSR1], "flipped bit")
    found += fill_disk(test)
    print("\n".join(found) if found else "all runs ended as the undisturbed one, bit for bit")
    sys.exit(bool(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--report"]:
        train_and_report(int(sys.argv[2]), sys.argv[3:])
    else:
        main()
