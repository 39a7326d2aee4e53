"""Layouts of raw folders: a function each, from a folder to its cases and what is wrong with others.

``msd`` (Medical Segmentation Decathlon and nnU-Net folders), ``csv`` (a table, one row a case) and ``patterns`` (glob
patterns with ``{case}``).
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

from medi3d.config import DataConfig
from medi3d.errors import InputError
from medi3d.io.dicom import list_series
from medi3d.io.files import case_name, image_files, is_image
from medi3d.preprocess.cases.raw_case import CaseProblem, RawCase, RawCases
from medi3d.registry import Registry, unknown_name_message

Layout = Callable[[Path, DataConfig, bool], RawCases]

LAYOUTS: Registry[Layout] = Registry("layout")
"""Name → function of (folder, data configuration, whether labels or classes are needed)."""

_EXPECTED = {
    "msd": "imagesTr/<case>.nii.gz (or <case>_0000.nii.gz, _0001 … for several channels) and labelsTr/<case>.nii.gz",
    "csv": "the table {table}, one row a case, with columns {columns}",
    "patterns": "files that match {patterns}",
}
_FIRST_CHANNEL = "_0000"
_CHANNEL = re.compile(r"_\d{4}$")


def describe_expected(data: DataConfig) -> str:
    """Say which layout is expected, where the public data is found, and how to get a synthetic stand-in."""
    columns = data.columns
    used = [columns.case, columns.patient, *columns.images, columns.label, columns.target, columns.center]
    patterns = [*data.patterns.images, *([data.patterns.label] if data.patterns.label else [])]
    layout = _EXPECTED[data.layout].format(
        table=data.table, columns=", ".join(name for name in used if name), patterns=", ".join(patterns)
    )
    source = f"; the public data: {data.source}" if data.source else ""
    return f"expected (layout {data.layout}): {layout}{source}; `medi3d demo` runs on a synthetic stand-in instead"


def group_channels(files: Sequence[Path], channels: int) -> dict[str, tuple[Path, ...]]:
    """Group image files into cases by nnU-Net's channel suffixes ``_0000``, ``_0001``, ….

    Args:
        files: image files, in any order.
        channels: number of channels of the task.

    Returns:
        Case name → files in the order of the channels, counted from ``_0000`` without a gap. Every other file is a case
        by itself; so are ``scan_0000`` and ``scan_0001`` for a task of one channel, where they are numbered cases.

    Raises:
        InputError: two files differ only in their format.

    Example:
        >>> groups = group_channels([Path("a_0001.nii"), Path("a_0000.nii"), Path("b.nii")], 2)
        >>> {name: [file.name for file in files] for name, files in groups.items()}
        {'a': ['a_0000.nii', 'a_0001.nii'], 'b': ['b.nii']}
    """
    by_name = {case_name(file): file for file in sorted(files)}
    if len(by_name) != len(files):
        doubled, times = Counter(case_name(file) for file in files).most_common(1)[0]
        raise InputError(f"{by_name[doubled].parent}: {times} images are called {doubled!r}; keep one of them")
    groups: dict[str, tuple[Path, ...]] = {}
    for name in by_name:
        stem = name.removesuffix(_FIRST_CHANNEL)
        members = list(takewhile(lambda member: member in by_name, (f"{stem}_{n:04d}" for n in range(10_000))))
        if name != stem and (channels > 1 or len(members) == 1):
            groups[stem] = tuple(by_name[member] for member in members)
    grouped = {file for members in groups.values() for file in members}
    alone = {name: (file,) for name, file in by_name.items() if file not in grouped}
    return dict(sorted({**alone, **groups}.items()))


def set_doubles_apart(files: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """Set files apart that differ only in their format, as ``a.nii`` and ``a.nii.gz``: which of them is the case?

    Returns:
        The other files, and a message for each name that is borne by several.

    Example:
        >>> set_doubles_apart([Path("a.nii"), Path("a.nrrd"), Path("b.nii")])[0] == [Path("b.nii")]
        True
    """
    times = Counter(case_name(file) for file in files)
    messages = {
        name: f"{file.parent}: {times[name]} images are called {name!r}; keep one of them"
        for file in files
        if times[name := case_name(file)] > 1
    }
    return [file for file in files if case_name(file) not in messages], messages


@LAYOUTS.register("msd")
def list_msd(folder: Path, data: DataConfig, need_label: bool) -> RawCases:
    """List a Decathlon or nnU-Net folder: the entries of its ``dataset.json``, or else what ``imagesTr`` holds."""
    entries = _dataset_entries(folder / "dataset.json")
    if entries:
        return _cases_of_entries(folder, entries, data, need_label)
    images, doubled_images = set_doubles_apart(_images_in(folder / "imagesTr"))
    label_files, doubled_labels = set_doubles_apart(_images_in(folder / "labelsTr"))
    doubled = {**doubled_labels, **doubled_images}
    labels = {case_name(path): path for path in label_files}
    images = [path for path in images if case_name(path) not in doubled]
    found = RawCases(problems=[CaseProblem(name, message) for name, message in doubled.items()])
    named = {*doubled, *(_CHANNEL.sub("", name) for name in doubled)}
    grouped = group_channels(images, len(data.channels))
    for name, files in grouped.items():
        _add(
            found,
            RawCase(name, name, files, label=labels.get(name)),
            data,
            need_label,
            folder / "labelsTr" / f"{name}.nii.gz",
        )
    if need_label:
        found.problems += [
            CaseProblem(name, f"label {path} has no image in {folder / 'imagesTr'}")
            for name, path in labels.items()
            if name not in grouped and name not in named
        ]
    return found


@LAYOUTS.register("csv")
def list_csv(folder: Path, data: DataConfig, need_label: bool) -> RawCases:
    """List the rows of a table; where they are needed, rows without a label map, or without a class, are counted only.

    A task with labels needs its label maps: where it names classes as well, a case without one still shows its labels.
    """
    table = folder if folder.is_file() else folder / data.table
    columns = data.columns
    found = RawCases()
    for line, row in _read_table(table, data, need_label):
        needed = columns.label if data.labels else columns.target
        if need_label and needed and not row[needed].strip():
            found.left_out += 1
            continue
        try:
            case = _case_of_row(table.parent, row, data)
        except InputError as error:
            case_id = row[columns.case].strip() or f"line {line}"
            found.problems.append(CaseProblem(case_id, f"{table}, line {line}: {error}"))
            continue
        _add(found, case, data, need_label, f"column label in {table}")
    return found


@LAYOUTS.register("patterns")
def list_patterns(folder: Path, data: DataConfig, need_label: bool) -> RawCases:
    """List what glob patterns with ``{case}`` match: one file a case and pattern."""
    if not data.patterns.images:
        raise InputError("data.patterns.images is empty; give one pattern with {case} for each channel")
    images = [path for path in sorted(folder.rglob("*")) if is_image(path)]
    if any("#" in pattern for pattern in (*data.patterns.images, data.patterns.label or "")):  # folder#2: one series
        images += [series for path in images if path.is_dir() for series in list_series(path) if series != path]
    candidates = [(path, path.relative_to(folder).as_posix()) for path in images]
    by_pattern = [_match_pattern(pattern, candidates) for pattern in data.patterns.images]
    labels = _match_pattern(data.patterns.label, candidates) if data.patterns.label else {}
    found = RawCases()
    for name in sorted({name for matches in by_pattern for name in matches} | (set(labels) if need_label else set())):
        wanted = [
            (pattern, matches.get(name, [])) for pattern, matches in zip(data.patterns.images, by_pattern, strict=True)
        ]
        if name in labels:
            wanted.append((str(data.patterns.label), labels[name]))
        case_id = name.replace("/", "_")
        wrong = [f"{len(paths)} files match {pattern!r}, expected one" for pattern, paths in wanted if len(paths) != 1]
        if wrong:
            found.problems.append(CaseProblem(case_id, f"{folder / name}: {wrong[0]}"))
            continue
        chosen = tuple(matches[name][0] for matches in by_pattern)
        label = labels[name][0] if name in labels else None
        _add(
            found,
            RawCase(case_id, case_id, chosen, label=label),
            data,
            need_label,
            str(folder / str(data.patterns.label)),
        )
    return found


def _add(found: RawCases, case: RawCase, data: DataConfig, need_label: bool, expected_label: Path | str) -> None:
    if need_label and data.labels and case.label is None:
        message = f"image {case.images[0]} has no label; expected {expected_label}"
        found.problems.append(CaseProblem(case.case_id, message))
    else:
        found.cases.append(case)


def _images_in(folder: Path) -> list[Path]:
    holds_any = folder.is_dir() and any(map(is_image, folder.iterdir()))
    return image_files(folder) if holds_any else []


def _dataset_entries(path: Path) -> list[dict[str, object]]:
    """Return the ``training`` entries of a Decathlon ``dataset.json``; nnU-Net's own has none."""
    if not path.is_file():
        return []
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not readable JSON ({error}); mend it or remove it to use what imagesTr holds"
        ) from None
    entries = values.get("training", []) if isinstance(values, dict) else []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "image" in entry for entry in entries):
        raise InputError(f'{path}: "training" must be a list of entries with "image" and "label"')
    return entries


def _cases_of_entries(folder: Path, entries: list[dict[str, object]], data: DataConfig, need_label: bool) -> RawCases:
    found = RawCases()
    for entry in entries:
        image = folder / str(entry["image"])
        name = case_name(image)
        # nnU-Net lists <case>.nii.gz and stores <case>_0000.nii.gz
        split = tuple(
            image.with_name(f"{name}_{channel:04d}{image.name[len(name) :]}") for channel in range(len(data.channels))
        )
        images = split if not image.exists() and split[0].exists() else (image,)
        label = folder / str(entry["label"]) if entry.get("label") else None
        _add(found, RawCase(name, name, images, label=label), data, need_label, f'"label" in {folder / "dataset.json"}')
    return found


def _read_table(table: Path, data: DataConfig, need_label: bool) -> list[tuple[int, dict[str, str]]]:
    """Return line number and values of each row, after checking that the columns are there."""
    if not table.is_file():
        raise InputError(f"{table}: no such table (data.table); {describe_expected(data)}")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            header = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a readable CSV table in UTF-8: {error}") from None
    columns = data.columns
    optional = [columns.patient, columns.label, columns.target, columns.center]
    for name in [columns.case, *columns.images, *(optional if need_label else [])]:
        if name is not None and name not in header:
            raise InputError(f"{table}: {unknown_name_message('column', name, header)}; data.columns names the columns")
    return rows


def _case_of_row(folder: Path, row: dict[str, str], data: DataConfig) -> RawCase:
    columns = data.columns

    def value(column: str | None) -> str:
        return row.get(column, "").strip() if column else ""

    def path(column: str | None) -> Path | None:
        return folder / value(column) if value(column) else None

    absent = [column for column in (columns.case, *columns.images) if not value(column)]
    if absent:
        raise InputError(f"column {absent[0]!r} is empty")
    target = value(columns.target)
    if target and target not in data.classes:
        raise InputError(unknown_name_message("class", target, data.classes))
    return RawCase(
        case_id=value(columns.case),
        patient_id=value(columns.patient) or value(columns.case),
        images=tuple(folder / value(column) for column in columns.images),
        label=path(columns.label),
        target=data.classes.index(target) if target else None,
        center=path(columns.center),
    )


def _match_pattern(pattern: str, candidates: list[tuple[Path, str]]) -> dict[str, list[Path]]:
    """Return case → matching paths of a glob pattern, in which ``{case}`` may span folder levels."""
    if "{case}" not in pattern:
        raise InputError(f"data.patterns: {pattern!r} has no {{case}}, which stands for the case id")
    expression, seen = "", False
    for part in re.split(r"(\{case\}|\*|\?)", pattern):
        if part == "{case}":
            expression, seen = expression + ("(?P=case)" if seen else "(?P<case>.+)"), True
        else:
            expression += {"*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    matches: dict[str, list[Path]] = defaultdict(list)
    for path, relative in candidates:
        match = re.fullmatch(expression, relative)
        if match:
            matches[match["case"]].append(path)
    return dict(matches)
