"""Patches a second of the data path alone, beside MONAI and nnU-Net, and the share of a training step spent waiting.

    python benchmarks/data_path.py [--peers PYTHON] [--only augment brain_tumor ct waiting] [--repeats 5] [--slices 300]
        [--prepared FOLDER]

One thread everywhere; figures are CPU time, medians of repeats. Every tool cuts patches of 96³ voxels, two thirds of
them centred on foreground, from the same voxels: the prepared store, the same arrays as .npy files for MONAI's
CacheDataset (which holds them in memory), and the same volumes through nnU-Net's own preprocessing. PYTHON is an
interpreter with nnU-Net (benchmarks/README.md says how to make one).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost import ONE_THREAD, processor_name
from nnunet_folder import NnunetFolder, nnunet_version
from preprocess_speed import CT_LABELS, DATA, draw_ct, write_ct_task

from medi3d import io
from medi3d.config import TaskConfig, load_task
from medi3d.data.augment import Augmenter
from medi3d.data.loader import PatchLoader
from medi3d.data.patches import PatchDataset
from medi3d.infer.allocator import keep_freed_memory
from medi3d.io.prepared import PreparedStore
from medi3d.models.build import create_model
from medi3d.planning import plan_task
from medi3d.preprocess import prepare_dataset
from medi3d.train.losses import create_loss
from medi3d.volume import LabelMap, Volume

TOOLS = Path(__file__).with_name("data_path_tools.py")
PATCH = (96, 96, 96)
ROWS = {  # name: tool, augmentation
    "medi3d, read only": ("medi3d", None),
    "MONAI, read only": ("monai", None),
    "MONAI as it comes (copy_cache), read only": ("monai_copying", None),
    "nnU-Net, read only": ("nnunet", None),
    "medi3d, its defaults": ("medi3d", "default"),
    "MONAI, the same changes": ("monai", "default"),
    "medi3d, nnU-Net's changes": ("medi3d", "nnunet"),
    "nnU-Net, its own": ("nnunet", "nnunet"),
}
LABELS = {"brain_tumor": {1: "necrosis", 2: "edema", 3: "non_enhancing", 4: "enhancing"}, "ct": CT_LABELS}


def run_tool(python: str | Path, tool: str, *arguments: object) -> dict[str, float]:
    """Time one tool in a process of its own."""
    command = [python, TOOLS, tool, *arguments]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **ONE_THREAD}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def write_arrays(store: Path, folder: Path) -> Path:
    """Write the prepared arrays as ``<case>_image.npy`` and ``<case>_label.npy``."""
    folder.mkdir(parents=True)
    for case in PreparedStore(store).cases():
        np.save(folder / f"{case.case_id}_image.npy", case.image()[:])
        label = case.label()
        assert label is not None
        np.save(folder / f"{case.case_id}_label.npy", label[:])
    return folder


def prepare_nnunet(store: Path, labels: dict[int, str], nnunet: NnunetFolder) -> Path:
    """Give nnU-Net the prepared volumes to preprocess and return its folder of the full resolution."""
    cases = PreparedStore(store).cases()
    for case in cases:
        affine = case.record.prepared.affine
        for channel, array in enumerate(case.image()[:]):
            io.write_volume(
                Volume(array[None], affine), nnunet.raw / "imagesTr" / f"{case.case_id}_{channel:04d}.nii.gz"
            )
        label = case.label()
        assert label is not None
        io.write_label_map(LabelMap(label[:], affine), nnunet.raw / "labelsTr" / f"{case.case_id}.nii.gz")
    description = {
        "channel_names": {str(channel): "MRI" for channel in range(cases[0].image().shape[0])},
        "labels": {"background": 0, **{name: value for value, name in labels.items()}},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (nnunet.raw / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    command = nnunet.command("plan_and_preprocess", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **ONE_THREAD, **nnunet.env})
    return nnunet.folder / "preprocessed" / nnunet.raw.name / "nnUNetPlans_3d_fullres"


def compare_readers(name: str, store: Path, scratch: Path, options: argparse.Namespace) -> None:
    """Print the table of one data set."""
    folders = {"medi3d": store, "monai": write_arrays(store, scratch / "arrays")}
    folders["monai_copying"] = folders["monai"]
    if options.peers:
        folders["nnunet"] = prepare_nnunet(store, LABELS[name], NnunetFolder(options.peers, scratch / "nnunet"))
    print(f"\n{name}: patches of {PATCH}\n\n| | patches / CPU-s | ms a patch | getting ready, CPU-s | peak MiB |")
    print("|---|---|---|---|---|")
    for row, (tool, augment) in ROWS.items():
        if tool in folders:
            python = options.peers if tool == "nnunet" else sys.executable
            more = ["--augment", augment] if augment else []
            size = ["--patch", *PATCH, "--patches", 16, "--repeats", options.repeats]
            cost = run_tool(python, tool, folders[tool], *size, *more)
            figures = f"{1e3 / cost['ms']:.1f} | {cost['ms']:.1f} | {cost['setup_s']:.1f} | {cost['peak_mib']:.0f}"
            print(f"| {row} | {figures} |", flush=True)


def compare_augmenters(options: argparse.Namespace) -> None:
    """Print what augmenting one patch costs."""
    print("\naugmentation alone, one channel and labels\n\n| patch | medi3d | MONAI | TorchIO |\n|---|---|---|---|")
    for size in ((40, 56, 40), PATCH):
        arguments = ["--synthetic", "--patch", *size, "--patches", 48, "--repeats", options.repeats]
        costs = [run_tool(sys.executable, tool, *arguments)["ms"] for tool in ("medi3d", "monai", "torchio")]
        print(f"| {'×'.join(map(str, size))} | {' ms | '.join(f'{ms:.1f}' for ms in costs)} ms |", flush=True)


class ClockedAugmenter(Augmenter):
    """Adds up the CPU time that it takes."""

    cpu_s = 0.0

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        begun = time.process_time()
        augmented = super().__call__(batch)
        self.cpu_s += time.process_time() - begun
        return augmented


def measure_waiting(task: TaskConfig, store: Path, steps: int) -> None:
    """Print what of a training step on this CPU, in the precision that is planned, patches take to read and augment.

    Reading is what a step waits for; augmentation is done on the training device, which on a CPU is the same core. The
    first pass over the cases, in which small ones are unpacked and kept, is measured apart, without steps between.
    """
    config = task.train
    cases = PreparedStore(store).cases()
    task = plan_task(task, PreparedStore(store)).task
    keep_freed_memory()  # as training does
    torch.manual_seed(0)
    dataset = PatchDataset.of_task(task, cases)
    begun = time.process_time()
    for number in range(len(cases)):
        dataset[number]
    first_pass = (time.process_time() - begun) / len(cases) * task.batch_size
    patches = 0.0
    model, loss = create_model(task).train(), create_loss(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    augmenter = ClockedAugmenter(config.augment, patch_size=task.patch_size, seed=0)
    with closing(PatchLoader(dataset, augmenter, batch_size=task.batch_size, first=len(cases))) as batches:
        for step in range(steps + 1):
            if step == 1:  # the first one warms up
                begun, augmenter.cpu_s, patches = time.process_time(), 0.0, 0.0
            start = time.process_time()
            batch = next(batches)
            patches += time.process_time() - start
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bf16"):
                outputs = model(batch["image"])
            loss(outputs, batch, progress=0.5).backward()
            optimizer.step()
        whole = time.process_time() - begun
    reading, augmenting = patches - augmenter.cpu_s, augmenter.cpu_s
    seconds = (whole / steps, first_pass, reading / steps, augmenting / steps)
    milliseconds = " | ".join(f"{1e3 * value:.1f}" for value in seconds)
    size = "×".join(map(str, task.patch_size))
    shares = f"{reading / whole:.1%} | {patches / whole:.1%}"
    print(f"| {task.name} | {task.batch_size} of {size}, {task.precision} | {milliseconds} | {shares} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="interpreter that has nnU-Net")
    parser.add_argument("--only", nargs="+", choices=["augment", "brain_tumor", "ct", "waiting"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--prepared", type=Path, help="folder of stores that are taken as they are [prepared now]")
    options = parser.parse_args()
    wanted = options.only or ["augment", "brain_tumor", "ct", "waiting"]
    torch.set_num_threads(1)
    print(f"{processor_name()}; torch {torch.__version__}; nnU-Net {nnunet_version(options.peers)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "augment" in wanted:
            compare_augmenters(options)
        if "ct" in wanted:
            task, raw = write_ct_task(draw_ct(scratch / "drawn", options.slices), scratch)
            prepare_dataset(raw, load_task(task), scratch / "ct")
            compare_readers("ct", scratch / "ct", scratch / "ct_tools", options)
        stores = {name: (options.prepared or scratch) / name for name in ("brain_tumor", "hippocampus", "lung_nodule")}
        for name, store in stores.items():
            if (name in wanted or "waiting" in wanted) and not options.prepared:
                prepare_dataset(DATA / name, load_task(name), store)
        if "brain_tumor" in wanted:
            compare_readers("brain_tumor", stores["brain_tumor"], scratch / "brain_tools", options)
        if "waiting" in wanted:
            titles = ("task", "patches a step", "step, CPU-ms", "reading, first pass", "reading", "augmenting")
            print(f"\n| {' | '.join(titles)} | reading, share | both |")
            print("|---|---|---|---|---|---|---|---|")
            for name, batch_size, steps in (("hippocampus", 2, 60), ("lung_nodule", 16, 30), ("brain_tumor", 2, 6)):
                task = load_task(name)
                task = replace(task, train=replace(task.train, batch_size=batch_size))
                measure_waiting(task, stores[name], steps)


if __name__ == "__main__":
    main()
