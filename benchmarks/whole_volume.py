"""A whole volume through sliding windows and back to its own grid: time and peak memory, beside MONAI and nnU-Net.

    python benchmarks/whole_volume.py [--peers PYTHON] [--cases brain ct] [--classes 2 20 100] [--spacing 1.5]
        [--tools medi3d medi3d-2G MONAI nnU-Net] [--memory-gib 12] [--threads 1]
    python benchmarks/whole_volume.py --windows
    python benchmarks/whole_volume.py --identical --classes 6 [--sets hippocampus dicom] [--spacing 1.5] [--patch 48]

The network is one 1×1×1 convolution, which finds the nearest of as many intensities as there are classes: what is timed
is what goes on around a network, and voxels of noise between two intensities are as hard as labels get. Windows are 96³
with half overlap, Gaussian weights, one at a time. medi3d prepares the image for all tools but nnU-Net, whose own
preprocessor does it. "Plain" is MONAI's ``sliding_window_inference``, a softmax, every class interpolated as a whole
onto the native grid by medi3d's resampler, and an arg-max: what medi3d's labels are compared with, voxel by voxel.
medi3d-2G may hold 2 GB of planes in memory; the rest lies in a file. Each tool runs in a process of its own, which may
take ``--memory-gib``; with one thread its CPU seconds are what an idle core needs. Peak is the process's largest
resident memory, and beside it stands what it held before it began.
PYTHON has nnU-Net installed. ``--identical`` compares the labels of every real volume with the plain way's, prepared
at its own spacing, 1 mm and 1.5 mm, unless ``--spacing`` names one.
``--windows`` measures the CPU seconds of windows alone, MONAI's and medi3d's, 75 of 96³.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("MEDI3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
GIB = 2**30
TIE = 1e-5  # of probability
PATCH = 96


@dataclass(frozen=True)
class Job:
    """What one process does."""

    tool: str
    image: str
    window: tuple[float, float]
    classes: int
    spacing: float | None
    labels: str
    threads: int
    memory_gib: float
    patch: int = PATCH


def clock() -> float:
    """Return CPU seconds of this process, which other processes on the machine do not add to."""
    return time.process_time()


def load(*modules: str) -> None:
    """Import modules before the clock runs."""
    list(map(importlib.import_module, modules))


def centers(job: Job) -> np.ndarray:
    """Return the intensity, 0 to 1, that each class stands for."""
    return np.linspace(0.0, 1.0, job.classes)


def make_network(job: Job) -> Any:
    """Return the convolution: -(x - c)² / 2s² but for what is the same for all classes is linear in x."""
    import torch
    from torch import nn

    network = nn.Conv3d(1, job.classes, 1)
    center = torch.tensor(centers(job), dtype=torch.float32)
    sharpness = min(float(job.classes), 20.0) ** 2
    network.weight.data = (sharpness * center).reshape(-1, 1, 1, 1, 1)
    network.bias.data = -sharpness * center**2 / 2
    return network.eval()


def make_task(job: Job) -> Any:
    """Return the task that the convolution would be the network of."""
    from medi3d.config import parse_task

    labels = {value: f"label {value}" for value in range(1, job.classes)}
    spacing = "native" if job.spacing is None else job.spacing
    values = {
        "name": "whole_volume",
        "kind": "segmentation",
        "data": {"labels": labels},
        "preprocess": {"spacing_mm": spacing, "normalize": ["ct"], "window_hu": list(job.window)},
        "train": {"patch_size": job.patch},
    }
    return parse_task(values, where="whole_volume.py")


def measure_medi3d(job: Job) -> dict[str, float]:
    """Predict as ``medi3d predict`` does, from the prepared image to the label map."""
    from medi3d.infer.allocator import keep_freed_memory
    from medi3d.infer.planes import Storage

    image, record, task = prepare(job)
    load("medi3d.infer.restore", "medi3d.infer.windows")
    keep_freed_memory()  # as the command does; it prepares in another thread
    held = resident("VmRSS")
    start = time.perf_counter(), clock()
    storage = Storage(memory_bytes=2 * 10**9 if job.tool.endswith("2G") else None)
    labels, restoring = predict_plane_by_plane(job, image, record, task, storage)
    return report(job, labels, start, restoring, held)


def predict_plane_by_plane(
    job: Job, image: np.ndarray, record: Any, task: Any, storage: Any
) -> tuple[np.ndarray, float]:
    """Return the labels on the native grid, and the seconds that the way back took."""
    import torch

    from medi3d.infer.restore import Restorer
    from medi3d.infer.windows import LogitStream, stream_probabilities

    restoring = 0.0
    stream = LogitStream(make_network(job), torch.from_numpy(image), task, storage)
    restorer = Restorer(record, job.classes, thickness=stream.thickness, storage=storage)
    for block in stream_probabilities([stream], stream.thickness):
        between = clock()
        restorer.add(block)
        restoring += clock() - between
    return restorer.finish()[0].array[0], restoring


def measure_plain(job: Job) -> dict[str, float]:
    """Hold everything: MONAI's windows, all classes on both grids; restored by MONAI or by medi3d's resampler."""
    image, record, task = prepare(job)
    load("monai.inferers", "monai.data", "monai.transforms", "medi3d.preprocess.resampling.resample")
    held = resident("VmRSS")
    start = time.perf_counter(), clock()
    probabilities = predict_by_monai(job, image, task)
    between = clock()
    labels = {"MONAI": restore_by_monai, "plain": restore_plainly}[job.tool](probabilities, record)
    return report(job, labels, start, clock() - between, held)


def predict_by_monai(job: Job, image: np.ndarray, task: Any) -> Any:
    """Return the probabilities of all classes on the prepared grid."""
    import torch
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(image)[None], task.patch_size, 1, make_network(job), overlap=0.5, mode="gaussian"
        )
        return torch.softmax(logits[0], 0)


def count_differing(image: Path, spacing: float | None, *, classes: int, patch: int = PATCH) -> tuple[int, int, int]:
    """Predict a case plane by plane and the plain way; return voxels that differ, voxels, and labels that occur.

    Intensities that are integers may lie exactly between two classes, where rounding decides, not the same on every
    processor: a label as probable as the plain way's, to 1e-5, is no difference.
    """
    from medi3d import io
    from medi3d.infer.planes import Storage

    volume = io.read_volume(image, frame=0 if io.read_header(image).channels > 1 else None)
    low, high = np.percentile(volume.array, (0.5, 99.5)).tolist()
    job = Job("medi3d", str(image), (low, high), classes, spacing, "", 1, 0.0, patch)
    prepared, record, task = prepare(job, volume)
    labels, _ = predict_plane_by_plane(job, prepared, record, task, Storage())
    plain = restore_classes(predict_by_monai(job, prepared, task), record)
    chosen = np.take_along_axis(plain, labels[None].astype(np.intp), axis=0)[0]
    differing = int(np.count_nonzero(chosen < plain.max(0) - TIE))
    return differing, labels.size, len(np.unique(plain.argmax(0)))


def restore_by_monai(probabilities: Any, record: Any) -> np.ndarray:
    """Resample all classes to the native grid, as ``Invertd`` does to take ``Spacingd`` back."""
    import torch
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    volume = MetaTensor(probabilities, affine=torch.from_numpy(record.prepared.affine.copy()))
    resample = SpatialResample(mode="bilinear", padding_mode="border", align_corners=True, dtype=torch.float32)
    native = resample(
        volume, dst_affine=torch.from_numpy(record.native.affine.copy()), spatial_size=record.native.shape
    )
    return native.argmax(0).numpy().astype(np.uint8)


def restore_plainly(probabilities: Any, record: Any) -> np.ndarray:
    """Resample all classes as a whole, then take the largest."""
    return np.argmax(restore_classes(probabilities, record), axis=0).astype(np.uint8)


def restore_classes(probabilities: Any, record: Any) -> np.ndarray:
    """Return all classes' probabilities on the native grid."""
    from medi3d.preprocess.resampling.resample import ImageResampler

    whole = np.empty((len(probabilities), *record.native.shape), np.float32)
    for value, one in enumerate(probabilities):
        resampler = ImageResampler(
            one[None].numpy(), record.prepared, record.native, padding=None, fill=float(value == 0)
        )
        whole[value] = resampler.slab(0, record.native.shape[0])[0]
    return whole


def measure_nnunet(job: Job) -> dict[str, float]:
    """Run nnU-Net's own preprocessor, sliding windows and export with the same network; in nnU-Net's interpreter."""
    import torch
    from nnunet_round_trip import make_plans
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    array, properties = SimpleITKIO().read_images([job.image])
    low, high = job.window
    array = np.clip((array - low) / (high - low), 0, 1).astype(np.float32)
    spacing = job.spacing or properties["spacing"]
    plans = make_plans(spacing, patch_size=[PATCH] * 3, normalization="NoNormalization")
    configuration = plans.get_configuration("3d_fullres")
    description = {"labels": {"background": 0, **{f"label {value}": value for value in range(1, job.classes)}}}
    preprocessor = DefaultPreprocessor(verbose=False)
    prepared, _, properties = preprocessor.run_case_npy(array, None, properties, plans, configuration, description)
    del array
    network = make_network(job)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(network, plans, configuration, [network.state_dict()], description, "none", None)
    held = resident("VmRSS")
    start = time.perf_counter(), clock()
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(prepared))
    between = clock()
    labels = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, plans.get_label_manager(description), properties, num_threads_torch=job.threads
    )
    return report(job, labels, start, clock() - between, held)


REAL = {
    "hippocampus": "imagesTr/*.nii.gz",
    "lung_nodule": "images/*.nii.gz",
    "brain_tumor": "*/Flair*.nii.gz",
    "dicom": "*/",
    "odd_volumes": "*[!l].n*",
}
"""Folder of the data → its images."""

TOOLS = {
    "medi3d": measure_medi3d,
    "medi3d-2G": measure_medi3d,
    "plain": measure_plain,
    "MONAI": measure_plain,
    "nnU-Net": measure_nnunet,
}


def prepare(job: Job, volume: Any = None) -> tuple[np.ndarray, Any, Any]:
    """Return the prepared image ``(1, D, H, W)``, the way back and the task."""
    from medi3d import io
    from medi3d.preprocess import prepare_image

    task = make_task(job)
    prepared, record = prepare_image(io.read_volume(Path(job.image)) if volume is None else volume, task)
    return np.ascontiguousarray(prepared.array), record, task


def resident(key: str) -> int:
    """Return a field of this process's memory, bytes: ``VmRSS`` now, ``VmHWM`` at most so far."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found.group(1)) * 1024


def report(job: Job, labels: np.ndarray, start: tuple[float, float], restoring: float, held: int) -> dict[str, float]:
    """Return the figures, and leave the labels where the parent finds them; ``start`` is by the wall and by the CPU."""
    wall, total, peak = time.perf_counter() - start[0], clock() - start[1], resident("VmHWM")
    np.save(job.labels, labels.astype(np.uint8))
    seconds = {"wall_s": wall, "total_s": total, "restore_s": restoring}
    return {**seconds, "peak_gib": peak / GIB, "held_gib": held / GIB}


def work(job: Job) -> None:
    """Do a job in this process and print its figures as JSON."""
    import torch

    torch.set_num_threads(job.threads)
    limit = int(job.memory_gib * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak begins with what is held now
    try:
        print(json.dumps(TOOLS[job.tool](job)))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        print(json.dumps({"failed": f"more than {job.memory_gib:g} GiB"}))


def start_process(job: Job, python: Path) -> dict[str, Any]:
    """Do a job in a process of its own."""
    unused = {f"nnUNet_{part}": "unused" for part in ("raw", "preprocessed", "results")}
    done = subprocess.run(
        [str(python), __file__, "--job", json.dumps(asdict(job))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **unused, "OMP_NUM_THREADS": str(job.threads), "nnUNet_def_n_proc": str(job.threads)},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return dict(json.loads(lines[-1]))
    return {"failed": f"exit {done.returncode}: {(done.stderr.splitlines() or ['killed'])[-1][:120]}"}


def find_case(name: str, scratch: Path) -> tuple[Path, tuple[float, float]]:
    """Return an image, and the intensities that become 0 and 1."""
    if name == "ct":
        from ct_phantom import draw_ct

        path = scratch / "ct.nii.gz"
        return (path if path.exists() else draw_ct(scratch)[0]), (-1000.0, 400.0)
    case = next(folder for folder in sorted((DATA / "brain_tumor").iterdir()) if folder.is_dir())
    return next(case.glob("Flair*.nii.gz")), (-2.0, 5.0)


def compare(options: argparse.Namespace, scratch: Path) -> None:
    """Print a row for each case, number of classes and tool."""
    print("| case | classes | tool | wall, s | CPU, s | of it restoring | peak, GiB | held | labels unlike plain |")
    print("|" + "---|" * 9, flush=True)
    for name in options.cases:
        image, window = find_case(name, scratch)
        for classes in options.classes:
            found: dict[str, str] = {}
            for tool in options.tools:
                python = options.peers if tool == "nnU-Net" else Path(sys.executable)
                labels = str(scratch / f"{tool}.npy")
                limits = options.threads, options.memory_gib
                job = Job(tool, str(image), window, classes, options.spacing, labels, *limits)
                figures = start_process(job, python)
                head = f"| {name} | {classes} | {tool} |"
                if "failed" in figures:
                    print(f"{head} {figures['failed']} | | | | | |", flush=True)
                    continue
                found[tool] = labels
                different = unlike(labels, found["plain"]) if "plain" in found else "not compared"
                print(
                    f"{head} {figures['wall_s']:.1f} | {figures['total_s']:.1f} | {figures['restore_s']:.1f} "
                    f"| {figures['peak_gib']:.2f} | {figures['held_gib']:.2f} | {different} |",
                    flush=True,
                )


def unlike(labels: str, plain: str) -> str:
    """Return how many labels differ."""
    one, other = (np.load(path, mmap_mode="r") for path in (labels, plain))
    count = int(np.count_nonzero(one != other))
    return f"{count} of {one.size}" + (f" ({count / one.size:.2%})" if count else "")


def time_windows(threads: int) -> None:
    """Measure the CPU time of windows alone, 75 over 192×288×288 voxels: the network by itself, MONAI and medi3d."""
    import torch

    torch.set_num_threads(threads)
    image = torch.rand(1, 192, 288, 288, generator=torch.Generator().manual_seed(0))
    names = ("network alone", "MONAI", "medi3d, whole", "medi3d, plane by plane")
    print(f"| classes | {' | '.join(names)} |\n|" + "---|" * (1 + len(names)))
    for classes in (2, 14):
        runs = windows_alone(Job("", "", (0, 1), classes, None, "", threads, 0), image)
        times: list[list[float]] = [[] for _ in runs]
        for _ in range(3):
            for took, run in zip(times, runs, strict=True):
                start = time.process_time()
                run()
                took.append(time.process_time() - start)
        print(f"| {classes} | " + " | ".join(f"{min(took):.2f}" for took in times) + " |", flush=True)


def windows_alone(job: Job, image: Any) -> list[Callable[[], object]]:
    """Return what is timed: each goes through all windows of an image."""
    import torch
    from monai.inferers import sliding_window_inference

    from medi3d.infer.layout import window_starts
    from medi3d.infer.planes import Storage
    from medi3d.infer.windows import LogitStream, predict_logits

    network, task, size = make_network(job), make_task(job), (PATCH,) * 3
    windows = len(window_starts(tuple(image.shape[1:]), size, 0.5))

    @torch.inference_mode()
    def alone() -> None:
        window = image[None, :, :PATCH, :PATCH, :PATCH].contiguous()
        for _ in range(windows):
            network(window)

    @torch.inference_mode()
    def by_monai() -> object:
        return sliding_window_inference(image[None], size, 1, network, overlap=0.5, mode="gaussian")

    def plane_by_plane() -> None:
        stream = LogitStream(network, image, task, Storage())
        for _ in stream.blocks(stream.thickness):
            pass

    return [alone, by_monai, lambda: predict_logits(network, image, task), plane_by_plane]


def show_identical(options: argparse.Namespace) -> None:
    """Print for each set of real volumes how many voxels get another label than the plain way gives."""
    print("| volumes | prepared at, mm | classes | cases | voxels | labels unlike plain |\n|" + "---|" * 6, flush=True)
    for name in options.sets:
        cases = sorted(path for path in (DATA / name).glob(REAL[name]) if not path.name.startswith("."))
        for spacing in (None, 1.0, 1.5) if options.spacing is None else (options.spacing,):
            found = [count_differing(case, spacing, classes=options.classes[0], patch=options.patch) for case in cases]
            differing, voxels, _ = (sum(column) for column in zip(*found, strict=True))
            head = f"| {name} | {spacing or 'native'} | {options.classes[0]} |"
            print(f"{head} {len(cases)} | {voxels} | {differing} |", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="interpreter that has nnU-Net")
    parser.add_argument("--cases", nargs="+", choices=["brain", "ct"], default=["brain", "ct"])
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 20, 100])
    parser.add_argument("--spacing", type=float, default=None, help="prepared spacing, mm; by default the native one")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--memory-gib", type=float, default=12.0, help="of each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="folder that keeps the phantom between runs")
    parser.add_argument("--windows", action="store_true", help="time windows alone")
    parser.add_argument("--identical", action="store_true", help="compare labels on all real volumes")
    parser.add_argument("--sets", nargs="+", choices=list(REAL), default=list(REAL), help="for --identical")
    parser.add_argument("--patch", type=int, default=48, help="edge of the windows, voxels, for --identical")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Do what the options say."""
    options = parse_options()
    if options.job:
        values = json.loads(options.job)
        work(Job(**{**values, "window": tuple(values["window"])}))
    elif options.identical:
        show_identical(options)
    elif options.windows:
        time_windows(options.threads)
    else:
        if options.peers is None:
            options.tools = [tool for tool in options.tools if tool != "nnU-Net"]
        options.tools.sort(key=lambda tool: (tool != "plain", list(TOOLS).index(tool)))
        with tempfile.TemporaryDirectory() as scratch:
            compare(options, options.scratch or Path(scratch))


if __name__ == "__main__":
    main()
