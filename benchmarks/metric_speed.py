"""Surface metrics beside MONAI's and surface-distance's: equal results, CPU time on one thread, peak memory.

python benchmarks/metric_speed.py [--data ../shared/data] [--case NAME] [--repeats 3] [--labels 6]

Real hippocampi and brain tumours against a prediction made of them (smoothed, with noise: Dice about 0.85), and a label
map of the size of a CT (512×512×300, 104 labels), of whose labels the other tools are given ``--labels`` one by one,
as one-hot masks of all would take 33 GB. Times are CPU time, so that a busy machine does not change them: medians over
the repeats. Each tool runs in a process of its own; memory is what it takes at most above its inputs and imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

TOLERANCE_MM = 1.05
"""Between the distances of the grids below, so that float32 and float64 agree on what lies within."""

Spacing = tuple[float, float, float]
Case = tuple[np.ndarray, np.ndarray, Spacing, list[int]]
"""Prediction, reference, spacing, labels."""


def disturb(reference: np.ndarray, labels: list[int], seed: int) -> np.ndarray:
    """Return what a network might predict: each label smoothed, with a rough surface."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=reference.shape), 1.5)
    noise *= 0.2 / noise.std()
    prediction = np.zeros_like(reference)
    for label in labels:
        smooth = gaussian_filter((reference == label).astype(np.float32), 0.8)
        prediction[(smooth + noise > 0.5) & (smooth > 0.05)] = label
    return prediction


def read_hippocampi(data: Path) -> Iterator[Case]:
    from medi3d import io

    for seed, path in enumerate(sorted((data / "hippocampus" / "labelsTr").glob("*.nii.gz"))[:5]):
        label = io.read_label_map(path)
        yield disturb(label.array[0], [1, 2], seed), label.array[0], label.spacing_mm, [1, 2]


def read_tumours(data: Path) -> Iterator[Case]:
    from medi3d import io

    for seed, path in enumerate(sorted(data.glob("brain_tumor/*/OTMultiClass.nii.gz"))[:2]):
        label = io.read_label_map(path)
        array = label.array[0].astype(np.uint8)
        labels = sorted(set(np.unique(array).tolist()) - {0})
        yield disturb(array, labels, seed), array, label.spacing_mm, labels


def draw_ct(data: Path) -> Iterator[Case]:
    """104 ellipsoids of 5 to 85 voxels' radius in two maps, the second moved and grown by up to two voxels."""
    shape, spacing = (300, 512, 512), (1.5, 0.8, 0.8)
    rng = np.random.default_rng(0)
    maps = np.zeros((2, *shape), np.uint8)
    for label in range(1, 105):
        radius = rng.uniform(5, 85 if label <= 12 else 25, size=3)
        center = rng.uniform(radius + 4, np.array(shape) - radius - 4)
        for which in (0, 1):
            c, r = (center, radius) if which == 0 else (center + rng.uniform(-2, 2, 3), radius + rng.uniform(-2, 2, 3))
            low = np.maximum(np.floor(c - r).astype(int), 0)
            box = tuple(slice(a, int(b) + 1) for a, b in zip(low, np.ceil(c + r), strict=True))
            axes = np.ogrid[box]
            inside = sum(((axis - c[i]) / r[i]) ** 2 for i, axis in enumerate(axes)) <= 1
            maps[which][box][inside[tuple(slice(n) for n in maps[which][box].shape)]] = label
    yield maps[1], maps[0], spacing, list(range(1, 105))


CASES: dict[str, Callable[[Path], Iterator[Case]]] = {
    "hippocampus": read_hippocampi,
    "brain tumour": read_tumours,
    "CT, 104 labels": draw_ct,
}


# --- the tools: a label's masks → HD95, surface Dice, mean surface distance


def of_medi3d(case: Case, labels: list[int], surface: str) -> list[list[float]]:
    """From the label maps: boxes of all labels, masks in each, all three metrics from one measurement."""
    from scipy.ndimage import find_objects

    from medi3d.evaluate.surface import measure_surface_distances

    prediction, reference, spacing, _ = case
    boxes = find_objects(prediction), find_objects(reference)
    values = []
    for label in labels:
        pairs = zip(boxes[0][label - 1], boxes[1][label - 1], strict=True)
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)
        distances = measure_surface_distances(
            prediction[box] == label, reference[box] == label, spacing, surface=surface
        )
        values.append([distances.hausdorff_mm(), distances.dice(TOLERANCE_MM), distances.mean_mm()])
    return values


def monai_inputs(case: Case, label: int) -> list[object]:
    import torch

    return [torch.from_numpy((array == label)[None, None].astype(np.float32)) for array in case[:2]]


def of_monai(inputs: list[object], spacing: Spacing, metric: str, subvoxels: bool) -> float:
    from monai import metrics

    both, common = inputs, {"include_background": True, "spacing": spacing}
    calls = {
        "hd95": lambda: metrics.compute_hausdorff_distance(*both, percentile=95, **common),
        "surface dice": lambda: metrics.compute_surface_dice(
            *both, class_thresholds=[TOLERANCE_MM], use_subvoxels=subvoxels, **common
        ),
        "assd": lambda: metrics.compute_average_surface_distance(*both, symmetric=True, **common),
    }
    return float(calls[metric]())


def of_surface_distance(case: Case, label: int) -> list[float]:
    import surface_distance

    masks = case[1] == label, case[0] == label
    found = surface_distance.compute_surface_distances(*masks, case[2])
    means = surface_distance.compute_average_surface_distance(found)
    areas = found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()
    return [
        surface_distance.compute_robust_hausdorff(found, 95),
        surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE_MM),
        float(np.average(means, weights=areas)),
    ]


def timed(function: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def run_tool(tool: str, case: Case, labels: list[int]) -> dict[str, tuple[float, list[list[float]]]]:
    """Return what was measured → (CPU seconds over all labels, values of each)."""
    if tool.startswith("medi3d"):
        seconds, values = timed(lambda: of_medi3d(case, labels, tool.removeprefix("medi3d ")))
        return {"all three": (seconds, values)}
    found: dict[str, tuple[float, list[list[float]]]] = {}

    def add(name: str, seconds: float, values: list[float]) -> None:
        before = found.get(name, (0.0, []))
        found[name] = before[0] + seconds, [*before[1], values]

    for label in labels:
        if tool == "monai":
            inputs = monai_inputs(case, label)
            for metric, subvoxels in (
                ("hd95", False),
                ("surface dice", False),
                ("surface dice", True),
                ("assd", False),
            ):
                seconds, value = timed(lambda m=metric, s=subvoxels, i=inputs: of_monai(i, case[2], m, s))
                add(f"{metric}{' of elements' if subvoxels else ''}", seconds, [value])
        else:
            add("all three", *timed(lambda label=label: of_surface_distance(case, label)))
    return found


def peak_mb(reset: bool = False) -> float:
    """Return the most memory this process has had since the last reset, MB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def measure(arguments: argparse.Namespace) -> None:
    """Measure one tool on one kind of case, and print the result as JSON."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    every, seconds, peak = [], [], 0.0
    cases = list(CASES[arguments.case](arguments.data))
    small = np.zeros((9, 9, 9), np.uint8)
    small[2:5, 3:6, 2:7] = 1
    run_tool(arguments.tool, (small, np.roll(small, 1, 0), (1.0, 1.1, 1.2), [1]), [1])  # imports and tables
    for case in cases:
        labels = case[3][:: max(1, len(case[3]) // arguments.labels)][: arguments.labels]
        before = peak_mb(reset=True)
        runs = [run_tool(arguments.tool, case, labels) for _ in range(arguments.repeats)]
        peak = max(peak, peak_mb() - before)
        every.append({name: values for name, (_, values) in runs[0].items()})
        seconds.append({name: statistics.median(run[name][0] for run in runs) / len(labels) for name in runs[0]})
    mean = {name: sum(entry[name] for entry in seconds) / len(seconds) for name in seconds[0]}
    print(json.dumps({"ms": {name: 1000 * value for name, value in mean.items()}, "peak_mb": peak, "values": every}))


def measure_all_labels(arguments: argparse.Namespace) -> None:
    """Measure every metric of :func:`segment_scores` on the whole map."""
    from medi3d.evaluate import segment_scores

    (case,) = draw_ct(arguments.data)
    labels = {label: f"n{label}" for label in case[3]}
    segment_scores(case[0][:9, :9, :9], case[1][:9, :9, :9], labels=labels, spacing_mm=case[2])
    for chosen in (dict(list(labels.items())[:2]), labels):
        before = peak_mb(reset=True)
        seconds, _ = timed(lambda chosen=chosen: segment_scores(case[0], case[1], labels=chosen, spacing_mm=case[2]))
        print(f"| {len(chosen)} labels, all metrics | {seconds:.1f} s | {peak_mb() - before:.0f} MB |")


def in_process(arguments: argparse.Namespace, case: str, tool: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--case", case, "--tool", tool, "--data", str(arguments.data)]
    command += ["--repeats", str(arguments.repeats), "--labels", str(arguments.labels)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return dict(json.loads(output.splitlines()[-1]))


def largest_gap(
    ours: list[dict[str, list[list[float]]]], theirs: list[dict[str, list[list[float]]]], at: int, name: str
) -> float:
    """Return the largest difference between a metric of ours (its place in "all three") and theirs."""
    where = at if name == "all three" else 0
    return max(
        abs(a[at] - b[where])
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in zip(mine["all three"], other[name], strict=True)
    )


def compare(arguments: argparse.Namespace) -> None:
    print("| data | tool | HD95 | surface Dice | mean distance | all three | largest difference | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES if arguments.case is None else [arguments.case]:
        elements, voxels = (in_process(arguments, case, f"medi3d {kind}") for kind in ("elements", "voxels"))
        monai, deepmind = (in_process(arguments, case, tool) for tool in ("monai", "surface-distance"))
        for name, found in (("elements", elements), ("voxels", voxels)):
            print(
                f"| {case} | medi3d, {name} | | | | {found['ms']['all three']:.1f} ms | | {found['peak_mb']:.0f} MB |"
            )
        ms = monai["ms"]
        gap = max(
            largest_gap(voxels["values"], monai["values"], at, name)
            for at, name in enumerate(("hd95", "surface dice", "assd"))
        )
        total = ms["hd95"] + ms["surface dice"] + ms["assd"]
        print(
            f"| {case} | MONAI, voxels | {ms['hd95']:.1f} | {ms['surface dice']:.1f} | {ms['assd']:.1f} "
            f"| {total:.1f} ms ({total / voxels['ms']['all three']:.1f}×) | {gap:.1g} | {monai['peak_mb']:.0f} MB |"
        )
        gap = largest_gap(elements["values"], monai["values"], 1, "surface dice of elements")
        one = ms["surface dice of elements"]
        print(
            f"| {case} | MONAI, elements | | {one:.1f} ({one / elements['ms']['all three']:.1f}×) | | | {gap:.1g} | |"
        )
        gap = max(largest_gap(elements["values"], deepmind["values"], at, "all three") for at in range(3))
        total = deepmind["ms"]["all three"]
        print(
            f"| {case} | surface-distance | | | | {total:.1f} ms ({total / elements['ms']['all three']:.1f}×) "
            f"| {gap:.1g} | {deepmind['peak_mb']:.0f} MB |"
        )
    if arguments.case in (None, "CT, 104 labels"):
        measure_all_labels(arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--labels", type=int, default=6, help="labels of a case that are measured, at most")
    parser.add_argument("--case", choices=CASES, help="this kind of data alone")
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    (measure if arguments.tool else compare)(arguments)


if __name__ == "__main__":
    main()
