"""Finding the raw cases of a data set: what its layout lists, checked, its frames and ids as the task asks.

A problem is one line about one case; the other cases go on.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from medi3d import io
from medi3d.config import DataConfig
from medi3d.errors import InputError
from medi3d.io.dicom import is_dicom
from medi3d.preprocess.cases.layouts import LAYOUTS, describe_expected
from medi3d.preprocess.cases.raw_case import CaseProblem, RawCase, RawCases

_SAFE_ID = re.compile(r"[^/\\\0]+")


def list_raw_cases(folder: Path, data: DataConfig, *, need_label: bool) -> tuple[list[RawCase], list[CaseProblem]]:
    """List the cases of a raw folder and what is wrong with others, see :func:`find_raw_cases`."""
    found = find_raw_cases(folder, data, need_label=need_label)
    return found.cases, found.problems


def find_raw_cases(folder: Path, data: DataConfig, *, need_label: bool) -> RawCases:
    """Find the cases of a raw folder.

    Args:
        folder: the data set's folder; or the table itself where the layout is ``csv``.
        data: layout, channels, labels and classes.
        need_label: whether a case is of use only with its label map (its class, where ``data.classes`` are given): so
            in training, not in prediction.

    Returns:
        Cases and problems, sorted by case id.

    Raises:
        InputError: no folder, nothing in it, or a table or ``dataset.json`` that cannot be used.
    """
    if not folder.is_file() and (not folder.is_dir() or not any(folder.iterdir())):
        state = "is empty" if folder.is_dir() else "does not exist"
        raise InputError(f"raw data folder {folder} {state}; {describe_expected(data)}")
    found = LAYOUTS[data.layout](folder, data, need_label)
    if not found.cases and not found.problems and not found.left_out:
        raise InputError(f"no cases in {folder}; {describe_expected(data)}")
    checked = _with_files(found)
    framed = _each_frame(checked) if data.fourth_axis == "time" else checked
    named = _hash_ids(framed) if data.hash_case_ids else framed
    return RawCases(
        cases=sorted(named.cases, key=lambda case: case.case_id),
        problems=sorted(named.problems, key=lambda problem: problem.case_id),
        left_out=found.left_out,
    )


def hash_patient(patient_id: str) -> str:
    """Return 12 hexadecimal digits that stand for a patient, or for a case whose name tells of one."""
    return hashlib.blake2b(patient_id.encode(), digest_size=6).hexdigest()


def _with_files(found: RawCases) -> RawCases:
    """Keep the cases whose ids are unique and can name a folder, and whose files exist."""
    times = Counter(case.case_id for case in found.cases)
    messages = {case.case_id: _file_problem(case, times[case.case_id]) for case in found.cases}
    problems = [CaseProblem(case_id, message) for case_id, message in messages.items() if message is not None]
    return RawCases(
        [case for case in found.cases if messages[case.case_id] is None], [*found.problems, *problems], found.left_out
    )


def _each_frame(found: RawCases) -> RawCases:
    """Make a case of each frame of 4-D files; a 3-D label map is that of every frame."""
    framed = RawCases(problems=list(found.problems), left_out=found.left_out)
    for case in found.cases:
        try:
            frames = {path: io.read_header(path).channels for path in case.images}
            if len(set(frames.values())) > 1:
                listed = ", ".join(f"{path} has {count}" for path, count in frames.items())
                raise InputError(f"the files of a case must have equal numbers of frames, but {listed}")
        except InputError as error:
            framed.problems.append(CaseProblem(case.case_id, str(error)))
            continue
        count = frames[case.images[0]]
        framed.cases += [replace(case, case_id=f"{case.case_id}_t{n:03d}", frame=n) for n in range(count)]
    return framed


def _hash_ids(found: RawCases) -> RawCases:
    return RawCases(
        [replace(case, case_id=hash_patient(case.case_id)) for case in found.cases],
        [replace(problem, case_id=hash_patient(problem.case_id)) for problem in found.problems],
        found.left_out,
    )


def _file_problem(case: RawCase, times: int) -> str | None:
    if times > 1:
        return f"the case id occurs {times} times; ids must be unique"
    if not _SAFE_ID.fullmatch(case.case_id) or case.case_id.startswith("."):
        return f"{case.case_id!r} cannot name a folder; use an id without slashes that does not start with a dot"
    named = [("image", path) for path in case.images]
    named += [(kind, path) for kind, path in (("label", case.label), ("center mask", case.center)) if path]
    missing = [f"{kind} {path} does not exist" for kind, path in named if not (os.path.lexists(path) or is_dicom(path))]
    return missing[0] if missing else None
