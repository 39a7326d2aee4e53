"""What ``medi3d doctor`` finds out about data: a prepared store, whether it fits a task, and raw data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medi3d.cli.diagnosis import Diagnosis
from medi3d.config import TaskConfig, dump_task
from medi3d.errors import InputError, Medi3dError
from medi3d.io import PreparedCase, PreparedStore
from medi3d.io.prepared import stored_hash

if TYPE_CHECKING:
    from medi3d.planning import Plan

_READ_CASES = 8
"""Cases of which a chunk is read, spread over the store."""
_CHUNK = 32
_NAMED = 3
_SEVERE = 3
_PREPARE = "run `medi3d preprocess` again; it prepares what is damaged or missing"


def check_store(folder: Path, task: TaskConfig | None) -> Iterator[Diagnosis]:
    """Look into a prepared store.

    Args:
        folder: the store.
        task: the task that it shall serve, if one is asked about.
    """
    try:
        store = PreparedStore(folder)
        fingerprint, quality, cases = store.fingerprint, store.quality, store.cases()
    except (Medi3dError, OSError) as error:
        yield Diagnosis("data", "problem", str(error), _PREPARE)
        return
    kind = store.task_values["kind"]
    yield Diagnosis("data", "ok", f"{folder}: {len(cases)} cases of {fingerprint['groups']} patients, {kind}")
    yield from _check_files(cases, kind)
    yield from _check_truth(fingerprint, kind)
    yield from _check_quality(folder, quality)
    if task is not None:
        yield from _check_task(store, task, int(fingerprint["groups"]))


def check_plan(folder: Path, task: TaskConfig, device: str) -> Iterator[Diagnosis]:
    """Plan a task as training would, and compare what a step needs with the memory at hand."""
    from medi3d.planning import estimate_training_bytes, plan_task

    try:
        made: Plan = plan_task(task, PreparedStore(folder), device=device)
        needed = estimate_training_bytes(made.task) / 1e9
    except (Medi3dError, OSError) as error:
        yield Diagnosis("training", "problem", str(error), "see `medi3d plan`")
        return
    room = made.made_for["memory_gb"]
    size = " × ".join(map(str, made.task.patch_size))
    text = f"{made.task.batch_size} patches of {size} voxels need about {needed:.2g} GB of {room:.3g} GB"
    if needed > room:
        yield Diagnosis(
            "training", "problem", text, "leave train.patch_size and train.batch_size to the plan, or free memory"
        )
    else:
        yield Diagnosis("training", "ok", text)


def check_raw(folder: Path, task: TaskConfig) -> Iterator[Diagnosis]:
    """Look for the raw cases of a task."""
    from medi3d.preprocess import find_raw_cases

    try:
        raw = find_raw_cases(folder, task.data, need_label=True)
    except Medi3dError as error:
        yield Diagnosis("raw data", "problem", str(error), "give the folder that holds it to --data")
        return
    yield Diagnosis(
        "raw data", "ok" if raw.cases else "problem", f"{folder}: {len(raw.cases)} cases that can be prepared"
    )
    if raw.problems:  # their messages name files, which may name patients
        remedy = "`medi3d preprocess` says which and why"
        yield Diagnosis("raw data", "warning", f"{len(raw.problems)} cases cannot be used", remedy)


def _check_files(cases: Sequence[PreparedCase], kind: str) -> Iterator[Diagnosis]:
    damaged = [case.case_id for case in cases if stored_hash(case.folder) is None]
    if damaged:
        text = f"{len(damaged)} cases have files that are missing or cut short: {_name(damaged)}"
        yield Diagnosis("files", "problem", text, _PREPARE)
    without = [case.case_id for case in cases if kind == "segmentation" and not (case.folder / "label.b2nd").exists()]
    if without:
        yield Diagnosis("files", "problem", f"{len(without)} cases have no label map: {_name(without)}", _PREPARE)
    chosen = (
        [cases[at] for at in sorted({at * len(cases) // _READ_CASES for at in range(_READ_CASES)})] if cases else []
    )
    unreadable = {case.case_id: problem for case in chosen if (problem := _read_chunk(case)) is not None}
    for case_id, problem in unreadable.items():
        yield Diagnosis("files", "problem", f"{case_id}: {problem}", "run `medi3d preprocess --overwrite`")
    if not (damaged or without or unreadable):
        yield Diagnosis("files", "ok", f"all whole; a chunk of {len(chosen)} cases was read")


def _read_chunk(case: PreparedCase) -> str | None:
    """Read the middle of a case, and say what is wrong with it."""
    middle = tuple(slice(max(0, n // 2 - _CHUNK // 2), n // 2 + _CHUNK // 2) for n in case.shape)
    try:
        image = np.asarray(case.image()[(slice(None), *middle)])
        label = case.label()
        if label is not None:
            np.asarray(label[(slice(None), *middle)])
    except (InputError, RuntimeError, ValueError, OSError) as error:
        return f"unreadable ({str(error).splitlines()[0][:120]})"
    return None if np.isfinite(image).all() else "holds values that are no numbers"


def _check_truth(fingerprint: dict[str, Any], kind: str) -> Iterator[Diagnosis]:
    """See whether every label or class is there to be learned."""
    if kind == "classification":
        counts = dict(fingerprint["class_counts"])
    else:
        counts = {name: label["cases"] for name, label in fingerprint["labels"].items()}
    text = ", ".join(f"{name} in {count}" for name, count in counts.items())
    absent = [name for name, count in counts.items() if not count]
    if absent:
        remedy = "it cannot be learned: take it out of the task, or add cases that have it"
        yield Diagnosis("truth", "problem", f"in no case: {', '.join(absent)} ({text})", remedy)
    else:
        yield Diagnosis("truth", "ok", f"cases with each: {text}")


def _check_quality(folder: Path, quality: dict[str, Any]) -> Iterator[Diagnosis]:
    found = quality["cases"]
    severities = Counter(case["severity"] for case in found)
    severe = [str(case["case_id"]) for case in found if case["severity"] == _SEVERE]
    text = f"{severities[3]} cases likely wrong, {severities[2]} suspicious, {severities[1]} unusual"
    if severe:
        yield Diagnosis("quality", "warning", f"{text}: {_name(severe)}", f"look at them in {folder / 'quality.html'}")
    else:
        yield Diagnosis("quality", "ok", text)


def _check_task(store: PreparedStore, task: TaskConfig, groups: int) -> Iterator[Diagnosis]:
    prepared, wanted = store.task_values, json.loads(json.dumps(dump_task(task)))
    pairs = {"kind": (prepared["kind"], wanted["kind"])}
    pairs |= {f"data.{key}": (prepared["data"][key], wanted["data"][key]) for key in ("channels", "labels", "classes")}
    remedy = f"run `medi3d preprocess --task {task.name}` again, or give the store of this task"
    for key, (was, now) in pairs.items():
        if was != now:
            yield Diagnosis("task", "problem", f"prepared with {key} {was}, {task.name} has {now}", remedy)
    if groups < task.train.folds:
        remedy = f"set train.folds to {groups} or less, or add cases" if groups > 1 else "add cases"
        yield Diagnosis("task", "problem", f"{groups} patients for {task.train.folds} folds", remedy)


def _name(case_ids: Sequence[str]) -> str:
    more = f" and {len(case_ids) - _NAMED} more" if len(case_ids) > _NAMED else ""
    return ", ".join(case_ids[:_NAMED]) + more
