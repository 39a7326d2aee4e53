"""Whatever moment a crash picks, the old checkpoint or the new one is read: kills, failing calls, power cuts."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from medi3d.errors import Medi3dError
from medi3d.io import atomic
from medi3d.runs.checkpoint import load_checkpoint, previous_of, save_checkpoint


def make(step: int) -> dict[str, Any]:
    return {"model": {"w": torch.full((50,), float(step))}, "step": step}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _first(folder: Path) -> None:
    save_checkpoint(make(1), folder / "last.pt")


def _both(folder: Path) -> None:
    save_checkpoint(make(0), folder / "last.pt")
    save_checkpoint(make(1), folder / "last.pt")


def _last_is_damaged(folder: Path) -> None:
    save_checkpoint(make(1), folder / "last.pt")
    save_checkpoint(make(9), folder / "last.pt")
    damage(folder / "last.pt")


def _last_is_gone(folder: Path) -> None:
    _both(folder)
    previous_of(folder / "last.pt").unlink()
    (folder / "last.pt").rename(previous_of(folder / "last.pt"))


def _previous_is_damaged(folder: Path) -> None:
    _both(folder)
    damage(previous_of(folder / "last.pt"))


def _without_hash(folder: Path) -> None:
    torch.save(make(1), folder / "last.pt")


BEGINNINGS = (_first, _both, _last_is_damaged, _last_is_gone, _previous_is_damaged, _without_hash)
"""Ways in which a folder may lie before step 2 is saved; the newest good checkpoint in it is that of step 1."""


# --- a call that fails


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Let the k-th call that changes the disk raise; the names of the calls so far are counted."""

    def prepare(k: int) -> list[str]:
        calls: list[str] = []

        def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*values: Any, **options: Any) -> Any:
                calls.append(name)
                if len(calls) == k:
                    raise OSError(5, "Input/output error")
                return function(*values, **options)

            return call

        for target, name in (
            (Path, "mkdir"),
            (Path, "open"),
            (Path, "replace"),
            (os, "fsync"),
            (os, "open"),
            (torch, "save"),
        ):
            monkeypatch.setattr(target, name, wrap(name, getattr(target, name)))
        return calls

    return prepare


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_each_call_may_fail(begin: Callable[[Path], None], tmp_path: Path, fail_at: Any, monkeypatch: Any) -> None:
    for k in itertools.count(1):
        folder = tmp_path / str(k)
        folder.mkdir()
        begin(folder)
        calls = fail_at(k)
        failed = False
        try:
            save_checkpoint(make(2), folder / "last.pt")
        except Medi3dError as error:
            failed = True
            assert "could not be written (Input/output error)" in str(error)  # noqa: PT017
        monkeypatch.undo()
        assert load_checkpoint(folder / "last.pt")["step"] in ((1, 2) if failed else (2,))
        assert not list(folder.glob(".tmp-*"))
        if len(calls) < k:
            break
    assert k > 8


# --- a power cut


@dataclass
class Recorder:
    """What a save did, in order: files made, contents forced to the disk, names given, folders forced to the disk."""

    events: list[tuple[str, Any]] = field(default_factory=list)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    whole_open, whole_replace, whole_fsync = Path.open, Path.replace, os.fsync

    def record_open(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        stream = whole_open(path, mode, *more, **options)
        if "w" in mode:
            recorder.events.append(("name", (path.name, os.fstat(stream.fileno()).st_ino, None)))
        return stream

    def record_replace(path: Path, target: Path) -> Path:
        recorder.events.append(("name", (target.name, path.stat().st_ino, path.name)))
        return whole_replace(path, target)

    def record_fsync(descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        recorder.events.append(
            ("folder", None) if place.is_dir() else ("content", (place.stat().st_ino, place.read_bytes()))
        )
        whole_fsync(descriptor)

    monkeypatch.setattr(Path, "open", record_open)
    monkeypatch.setattr(Path, "replace", record_replace)
    monkeypatch.setattr(os, "fsync", record_fsync)
    return recorder


def disks_after(events: list[tuple[str, Any]], before: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Yield what a power cut after these events may leave, on the worst of disks.

    A file that was not forced to the disk is empty, half there or zeros. Of the names that were given since the folder
    was last forced to the disk, any may have reached it, whatever their order; one renaming reaches it whole.
    """
    contents: dict[int, bytes] = {}
    names: list[tuple[str, int, str | None]] = []
    fixed = 0
    for kind, value in events:
        if kind == "name":
            names.append(value)
        elif kind == "content":
            contents[value[0]] = value[1]
        else:
            fixed = len(names)
    inodes = {-number: data for number, data in enumerate(before.values(), 1)}
    start = {name: -number for number, name in enumerate(before, 1)}
    for kept in itertools.product((True, False), repeat=len(names) - fixed):
        for volatile in (b"", b"PK\x03\x04" + bytes(100), bytes(3000)):
            place = dict(start)
            for (name, inode, source), reached in zip(names, (True,) * fixed + kept, strict=True):
                if not reached:
                    continue
                known = place.pop(source, None) if source else None
                if source in start and known is None:
                    known = start[source]
                place[name] = known if known is not None else inode
            yield {name: {**contents, **inodes}.get(inode, volatile) for name, inode in place.items()}


def read_step(folder: Path, disk: dict[str, bytes]) -> int:
    folder.mkdir()
    for name, data in disk.items():
        (folder / name).write_bytes(data)
    return int(load_checkpoint(folder / "last.pt")["step"])


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_power_cut_at_any_moment(
    begin: Callable[[Path], None], tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    begin(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    recorder.events.clear()
    save_checkpoint(make(2), folder / "last.pt")
    monkeypatch.undo()
    assert len(recorder.events) >= 4
    number = itertools.count()
    for k in range(len(recorder.events) + 1):
        for disk in disks_after(recorder.events[:k], before):
            step = read_step(tmp_path / f"disk-{next(number)}", disk)
            assert step in ((1, 2) if k < len(recorder.events) else (2,)), (k, recorder.events[:k])


# --- a kill

_SAVE_AND_BE_KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from medi3d.runs.checkpoint import load_checkpoint, save_checkpoint

torch.set_num_threads(1)
folder = Path(sys.argv[1])
random.seed(5)
values = torch.arange(1_500_000.)
step = leftovers = rounds = 0
began = time.perf_counter()
save_checkpoint({"model": {"w": values}, "step": 0}, folder / "last.pt")
needed = time.perf_counter() - began  # on a busy machine too, kills shall come in the middle of a write
while rounds < 10 or (rounds < 200 and (step <= 3 or leftovers <= 1)):
    rounds += 1
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        while True:
            step += 1
            save_checkpoint({"model": {"w": values + step}, "step": step}, folder / "last.pt")
            os.write(writer, b"%d\\n" % step)
    os.close(writer)
    time.sleep(random.uniform(0, 3 * needed))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = [int(line) for line in os.fdopen(reader).read().split()]
    state = load_checkpoint(folder / "last.pt")
    assert state["step"] in ((told or [step])[-1], (told or [step])[-1] + 1), (state["step"], told, step)
    assert torch.equal(state["model"]["w"], values + state["step"])
    step, leftovers = state["step"], len(list(folder.glob(".tmp-*")))
print(step, leftovers)
"""


def test_a_kill_at_any_moment(tmp_path: Path) -> None:
    """What a killed process has reported as saved is there; what it left half-written is cleared away."""
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SAVE_AND_BE_KILLED), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not answer.returncode, answer.stderr
    steps, leftovers = map(int, answer.stdout.split())
    assert steps > 3
    assert leftovers > 1  # so kills did come in the middle of writing
    atomic.remove_leftovers(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert "last.previous.pt" in kept  # and it alone, where the last kill came before the new one had its name
    assert kept <= {"last.previous.pt", "last.pt"}
