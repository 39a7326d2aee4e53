"""Which 2D networks become exact 3D networks: the two laws on every architecture of timm and torchvision.

    python benchmarks/coverage.py [--pattern 'resnet*'] [--init mean center overshoot] [--jobs 2] [--retry failed]
    python benchmarks/coverage.py --table

The first measures, each architecture in a process of its own with a limit of memory and time, and appends a line of
JSON for each to --results; started again, it goes on with what is missing. The second writes the table of
docs/coverage.md from that file.

Weights are random, as no law depends on them; statistics, gains and whatever an initialisation silences are drawn
(`medi3d.inflation.verify.randomize_statistics`). In-plane sizes are the smallest of a few that the 2D network takes.

Many names of timm stand for one network with other weights or for images of another size: at the size that is measured,
they are the same module for module, setting for setting, buffer for buffer (`network_signature.py`). Such a network is
not measured again; its row is that of its twin, which it names.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
import torchvision
from network_signature import build_unfilled, sign_network
from torch import Tensor, nn

from medi3d.errors import InflationError
from medi3d.inflation import PROFILES, inflate
from medi3d.inflation.verify import (
    MIXING_FLOOR,
    TOLERANCE,
    measure_error,
    measure_mixing,
    measure_response,
    patch_length,
    randomize_statistics,
)

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "coverage.md"
MARKER = "<!-- What follows is written by benchmarks/coverage.py --table -->"
STATUSES = ("exact", "refused", "too large", "failed")
DEPTH, SHALLOW = 36, 12  # slices; fewer for large networks that cut no patches deeper than 4
IMAGES = 16
SIZES = ((64, 96), (56, 84), (48, 96), (128, 160))  # patches of 16, of 14, of 48, and networks without padding
SMALL_SIZES = ((32, 48), (28, 42))  # enough for vision transformers without stages, and half the time of large ones
LARGE = 200e6  # parameters
PLAIN_TRANSFORMERS = ("beit", "deit", "eva", "vision_transformer")
GIB = 2**30

# What a network's own code raises when it cannot be built for, or run on, images of a size.
SIZE_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)

# The layer of a torchvision network that gives the feature map which the classifier pools.
TORCHVISION_FEATURES = {
    "googlenet": "inception5b",
    "inception": "Mixed_7c",
    "maxvit": "blocks.3",
    "mnasnet": "layers",
    "regnet": "trunk_output",
    "resnet": "layer4",
    "shufflenetv2": "conv5",
    "swin_transformer": "norm",
    "vision_transformer": "encoder",
}


@dataclass
class Row:
    """What was found of one architecture."""

    name: str
    file: str
    status: str = "exact"
    reason: str = ""
    parameters: int = 0
    size: tuple[int, int] | None = None
    response: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    neighbour_mixing: float | None = None
    patch_mixing: float | None = None
    seconds: float = 0.0
    commit: str = ""
    same_as: str = ""


class WithFeatures(nn.Module):
    """A classifier that gives (logits, feature map), so that pooling at its end is not taken for mixing."""

    def __init__(self, network: nn.Module, layer: str | None = None) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, image: Tensor) -> Any:
        if self.layer is None:
            features = self.network.forward_features(image)
            try:
                return self.network.forward_head(features), _as_maps(features)
            except NotImplementedError:  # an encoder that has no classifier
                return _as_maps(features)
        caught: list[Tensor] = []
        hook = self.network.get_submodule(self.layer).register_forward_hook(lambda *seen: caught.append(seen[-1]))
        try:
            return self.network(image), _as_maps(caught[-1])
        finally:
            hook.remove()


class InDouble(nn.Module):
    """A float64 network that takes float32 images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Any:
        return self.network(image.double())


def _as_maps(features: Any) -> Any:
    """Return features with tokens (B, N, C) as maps (B, 1, N, C)."""
    if isinstance(features, Mapping):
        return {name: _as_maps(value) for name, value in features.items()}
    if isinstance(features, (list, tuple)):
        return [_as_maps(value) for value in features]
    return features.unsqueeze(1) if isinstance(features, Tensor) and features.ndim == 3 else features


def list_architectures(pattern: str = "*") -> dict[str, str]:
    """Return the names of all classification networks → the file of timm or torchvision that defines each."""
    files = {name: timm.models._registry._model_to_module[name] for name in timm.list_models()}
    for name in torchvision.models.list_models(module=torchvision.models):
        files[f"torchvision/{name}"] = f"torchvision/{_torchvision_file(name)}"
    return {name: file for name, file in files.items() if fnmatch.fnmatch(name, pattern)}


def _torchvision_file(name: str) -> str:
    return torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]


def _candidates(name: str) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
    """Yield options and in-plane sizes to try, small ones first; the last is what the network was made for."""
    if name.startswith("torchvision/"):
        if "/vit_" in name:
            yield {"image_size": 64}, (64, 64)
        options = {"init_weights": False} if name.endswith(("googlenet", "inception_v3")) else {}
        yield from ((options, size) for size in (*SIZES, (224, 224)))
        return
    trained_on = timm.get_pretrained_cfg(name)
    full = tuple(trained_on.input_size[1:]) if trained_on else (224, 224)
    if trained_on and trained_on.fixed_input_size:
        large = timm.models._registry._model_to_module[name] in PLAIN_TRANSFORMERS and count_parameters(name) > LARGE
        sizes = (*(SMALL_SIZES if large else ()), *SIZES, (64, 64), (128, 192), (128, 128))
        yield from (({"img_size": size}, size) for size in sizes)
        yield {"img_size": 64}, (64, 64)
    else:
        yield from (({}, size) for size in SIZES)
        yield {"output_stride": 8}, (64, 64)
    yield {}, full


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    library, _, short = name.rpartition("/")
    if library:
        layer = TORCHVISION_FEATURES.get(_torchvision_file(short), "features")
        return WithFeatures(torchvision.models.get_model(short, weights=None, **options), layer)
    return WithFeatures(timm.create_model(name, pretrained=False, **options))


def create_network(name: str, more: Mapping[str, Any] | None = None) -> tuple[nn.Module, tuple[int, int]]:
    """Create a network that gives (logits, feature map), drawn as if trained, and the smallest (H, W) it takes.

    Args:
        name: of timm, or ``torchvision/NAME``.
        more: options of the network's own, such as ``num_classes``.
    """
    problem: Exception | None = None
    for options, size in _candidates(name):
        try:
            images = torch.randn(IMAGES, 3, 1, 1) + torch.randn(IMAGES, 3, *size)
            return randomize_statistics(_create(name, {**options, **(more or {})}).eval(), images), size
        except SIZE_ERRORS as error:
            problem = error
    raise RuntimeError(f"the 2D network itself does not run: {problem}") from problem


def count_parameters(name: str) -> int:
    """Count without allocating; 0 where a network cannot be built so."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in _create(name, {}).parameters())
    except (NotImplementedError, *SIZE_ERRORS):
        return 0


def find_twin(row: Row, rows: Iterable[Row]) -> Row | None:
    """Find an exact network that, at the size at which it was measured, is the very network that ``row`` names."""
    measured = (other for other in rows if other.name != row.name and not other.same_as)
    exact = [other for other in measured if other.status == "exact" and other.file == row.file]
    for options, size in _candidates(row.name):
        peers = [other for other in exact if other.size is not None and tuple(other.size) == size]
        try:
            own, count = _sign(row.name, options)
            for other in peers:
                options = next(options for options, tried in _candidates(other.name) if tried == size)
                if other.parameters == count and _sign(other.name, options)[0] == own:
                    return other
        except (NotImplementedError, *SIZE_ERRORS):  # the network does not take this size, or must be built in full
            continue
    return None


def _sign(name: str, options: dict[str, Any]) -> tuple[str, int]:
    network = build_unfilled(lambda: _create(name, options))
    return sign_network(network), sum(parameter.numel() for parameter in network.parameters())


def measure(row: Row, inits: Iterable[str]) -> None:
    """Fill a row."""
    flat, row.size = create_network(row.name)
    row.parameters = sum(parameter.numel() for parameter in flat.parameters())
    shape = (_depth(flat, row.parameters), *row.size)
    row.response = measure_response(flat, shape=shape)
    for init in sorted(inits, key="mean".__eq__):  # last, so that its network can become float64 without a copy
        deep = inflate(flat, init=init)
        row.errors[init] = measure_error(flat, deep, shape=shape)
        if init == "mean":
            row.neighbour_mixing, row.patch_mixing = measure_mixing(flat, deep.double(), shape=shape)
        del deep  # before the next one takes as much
    problems = [] if row.response > 10 * TOLERANCE else [f"answers two slices alike ({row.response:.1e}): untested"]
    problems += [
        f"error {error:.1e} with {init} ({_error_in_double(flat, init, shape):.0e} in float64)"
        for init, error in row.errors.items()
        if not error <= TOLERANCE
    ]
    for label, mixing in (("neighbours", row.neighbour_mixing), ("patches", row.patch_mixing)):
        if mixing is not None and not mixing > MIXING_FLOOR:
            problems.append(f"{label} do not mix ({mixing:.1e})")
    if problems:
        row.status, row.reason = "failed", "; ".join(problems)


def _depth(flat: nn.Module, parameters: int) -> int:
    return SHALLOW if parameters > LARGE and patch_length(flat) <= 4 else DEPTH


def _error_in_double(flat: nn.Module, init: str, shape: tuple[int, int, int]) -> float:
    """Tell a network that amplifies rounding from one that is not exact; ``flat`` becomes float64."""
    deep = inflate(flat.double(), init=init)
    return measure_error(InDouble(flat), InDouble(deep), shape=shape)


def _work(row: Row, options: argparse.Namespace) -> None:
    """Measure in this process, with limited memory, and append the row."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(options.memory_gib * GIB),) * 2)
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    try:
        row.parameters = count_parameters(row.name)
        if row.parameters > options.max_parameters * 1e6:
            row.status, row.reason = "too large", f"{row.parameters / 1e6:.0f} M parameters"
        elif twin := find_twin(row, read_rows(options.results).values()):
            vars(row).update(vars(twin) | {"name": row.name, "commit": row.commit, "same_as": twin.name})
        else:
            measure(row, options.init)
    except Exception as error:  # whatever a network's own code raises is a finding
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            row.status, row.reason = "too large", f"more than {options.memory_gib:.0f} GiB of memory"
        elif isinstance(error, InflationError):
            row.status, row.reason = "refused", str(error)
        else:
            row.status, row.reason = "failed", _describe(error)
    row.seconds = round(time.monotonic() - start, 1)
    append(options.results, row)


def _describe(error: Exception) -> str:
    """Say what was raised, and the last lines of the network's and of medi3d's code that led there."""
    frames = traceback.extract_tb(error.__traceback__)
    places = []
    for package in ("/timm/", "/torchvision/", "/medi3d/inflation/"):
        inside = [frame for frame in frames if package in frame.filename and "verify.py" not in frame.filename]
        places += [f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in inside[-1:]]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} [{' | '.join(places)}]"


def append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")
    same = f"as {row.same_as} is" if row.same_as else ""
    print(f"{row.name}: {row.status} {row.reason or same} ({row.seconds:.0f} s)", flush=True)


def read_rows(path: Path) -> dict[str, Row]:
    """Return the last row of each architecture."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row.name: row for row in (Row(**json.loads(line)) for line in lines)}


def measure_all(rows: list[Row], options: argparse.Namespace) -> None:
    """Measure each row in a process of its own, a few at a time."""
    context = multiprocessing.get_context("fork")
    running: list[tuple[BaseProcess, Row, float]] = []
    rows = rows[::-1]
    while rows or running:
        while rows and len(running) < options.jobs:
            row = rows.pop()
            process = context.Process(target=_work, args=(row, options))
            process.start()
            running.append((process, row, time.monotonic()))
        time.sleep(0.05)
        running = [job for job in running if not _has_ended(*job, options)]


def _has_ended(process: BaseProcess, row: Row, start: float, options: argparse.Namespace) -> bool:
    row.seconds = round(time.monotonic() - start, 1)
    if process.is_alive():
        if row.seconds < options.seconds:
            return False
        process.kill()
        row.status, row.reason = "too large", f"more than {options.seconds:.0f} s"
    elif process.exitcode == -signal.SIGKILL:  # by the kernel
        row.status, row.reason = "too large", "more memory than the machine has left"
    elif process.exitcode != 0:
        row.status, row.reason = "failed", f"its process ended with exit code {process.exitcode}"
    process.join()
    if row.status != "exact":  # else the process has written its own row
        append(options.results, row)
    return True


def write_table(rows: dict[str, Row], page: Path) -> None:
    """Replace what follows the marker in a page."""
    head, found, _ = page.read_text(encoding="utf-8").partition(MARKER)
    if not found:
        raise SystemExit(f"{page} has no line {MARKER!r}")
    page.write_text(f"{head}{MARKER}\n\n{format_table(rows)}", encoding="utf-8")


def format_table(rows: dict[str, Row]) -> str:
    """Return a table by file, and the architectures that are not exact by name."""
    missing = sorted(set(list_architectures()) - set(rows))
    lines = [_provenance(rows, missing), "", "| file | exact | refused | too large | failed | largest error |"]
    lines += ["|---|---|---|---|---|---|"]
    files = defaultdict(list)
    for row in rows.values():
        files[row.file].append(row)
    for file, group in [("all", list(rows.values())), *sorted(files.items(), key=_timm_first)]:
        counts = Counter(row.status for row in group)
        largest = max((max(row.errors.values()) for row in group if row.status == "exact"), default=None)
        numbers = " | ".join(str(counts[status] or "") for status in STATUSES)
        lines.append(f"| {file} | {numbers} | {'' if largest is None else f'{largest:.0e}'} |")
    for status in ("failed", "refused", "too large"):
        found = sorted((row for row in rows.values() if row.status == status), key=lambda row: (row.file, row.name))
        lines += ["", f"## {status.capitalize()}", "", *(_itemise(found) or ["None."])]
    return "\n".join(lines) + "\n"


def _timm_first(item: tuple[str, Any]) -> tuple[bool, str]:
    return item[0].startswith("torchvision"), item[0]


def _itemise(rows: list[Row]) -> list[str]:
    """Return a list item for each reason, with the architectures that share it."""
    names = defaultdict(list)
    for row in rows:
        names[row.reason].append(f"`{row.name}`")
    return [f"- {', '.join(group)}: {reason.replace('|', '/')}" for reason, group in names.items()]


def _provenance(rows: dict[str, Row], missing: list[str]) -> str:
    counts = Counter(row.status for row in rows.values())
    exact_files = {row.file for row in rows.values() if row.status == "exact"}
    files = set(list_architectures().values())
    commits = ", ".join(sorted({row.commit for row in rows.values()}))
    hours = sum(row.seconds for row in rows.values()) / 3600
    twins = sum(1 for row in rows.values() if row.same_as)
    versions = ", ".join(f"{library.__name__} {library.__version__}" for library in (timm, torchvision, torch))
    return (
        f"{counts['exact']} of {len(rows)} architectures are exact and mix; they come from {len(exact_files)} of "
        f"{len(files)} files. {len(missing)} more were not tried. {twins} rows are those of a twin: the very same "
        f"network at the size that is measured.\n\n"
        f"{versions}, medi3d at {commits}; {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, "
        f"no GPU, {hours:.1f} hours of one core; `python benchmarks/coverage.py`."
    )


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", nargs="+", default=["*"], help="shell patterns of names; torchvision/NAME too")
    parser.add_argument("--init", nargs="+", choices=list(PROFILES), default=list(PROFILES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each job")
    parser.add_argument("--max-parameters", type=float, default=100, help="millions")
    parser.add_argument("--memory-gib", type=float, default=10, help="of each job")
    parser.add_argument("--seconds", type=float, default=900, help="of each architecture")
    parser.add_argument("--retry", nargs="+", choices=STATUSES, default=[], help="measure again what ended so")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "coverage.jsonl")
    parser.add_argument("--table", action="store_true", help=f"write {PAGE.name} instead of measuring")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    rows = read_rows(options.results)
    if options.table:
        write_table(rows, PAGE)
        return
    commit = _commit()
    names = {name: file for pattern in options.pattern for name, file in list_architectures(pattern).items()}
    todo = [
        Row(name, file, commit=commit)
        for name, file in names.items()
        if name not in rows or rows[name].status in options.retry
    ]
    print(f"{len(names)} architectures, {len(todo)} to measure", flush=True)
    measure_all(todo, options)


if __name__ == "__main__":
    main(sys.argv[1:])
