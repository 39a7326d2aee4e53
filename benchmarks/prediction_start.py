"""What one small case costs from the command line, nothing loaded yet: medi3d beside nnU-Net, wall and processor.

    python benchmarks/prediction_start.py --run RUN --image CASE.nii.gz --work FOLDER \\
        --peer PEER_PYTHON --plans nnUNetPlans.json --dataset dataset.json

nnU-Net's network is the one that its own planner chose for the data (``nnUNetPlans.json``), with random weights: what
is measured is the way to the first voxel and back, and one window. Mirroring is off on both sides, one process each
reads and writes. Both predict the same file, once to warm the disk and then once for the record.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

MAKE = """
import json, sys, os
import torch
torch.set_num_threads(1)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
plans, dataset = (json.load(open(path)) for path in sys.argv[1:3])
plans["continue_training"] = False
trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, device=torch.device("cpu"))
trainer.initialize()
folder = trainer.output_folder_base
os.makedirs(trainer.output_folder, exist_ok=True)
json.dump(plans, open(folder + "/plans.json", "w")); json.dump(dataset, open(folder + "/dataset.json", "w"))
trainer.save_checkpoint(trainer.output_folder + "/checkpoint_final.pth")
print(folder)
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peer", type=Path, help="the interpreter that has nnunetv2")
    parser.add_argument("--plans", type=Path, help="in the folder that nnU-Net has prepared")
    parser.add_argument("--dataset", type=Path)
    return parser.parse_args()


def measure(name: str, command: list[str], environment: dict[str, str]) -> None:
    """Run a command twice and print what the second time took."""
    for counts in (False, True):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-2000:]}")
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if counts:
            print(f"| {name} | {wall:.1f} | {cpu:.1f} |", flush=True)


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    source = options.work / "in"
    source.mkdir(exist_ok=True)
    (source / "case_0000.nii.gz").write_bytes(options.image.read_bytes())
    print("| | wall s | processor s |\n|---|---|---|")
    python = sys.executable
    measure("`import torch` alone", [python, "-c", "import torch"], environment)
    command = [python, "-m", "medi3d", "predict", str(options.run), "--input", str(source), "--device", "cpu"]
    measure("`medi3d predict`", [*command, "--overwrite", "--output", str(options.work / "out")], environment)
    if options.peer is None:
        return
    environment |= {f"nnUNet_{part}": str(options.work / part) for part in ("raw", "results")}
    environment["nnUNet_preprocessed"] = str(options.plans.parents[1])  # its trainer lists the prepared cases
    environment["nnUNet_compile"] = "False"
    made = subprocess.run(
        [str(options.peer), "-W", "ignore", "-c", MAKE, str(options.plans), str(options.dataset)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = made.stdout.splitlines()[-1]
    program = options.peer.with_name("nnUNetv2_predict_from_modelfolder")
    peer = [str(program), "-i", str(source), "-o", str(options.work / "peer"), "-m", folder, "-f", "0"]
    peer += ["-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"]
    measure("`nnUNetv2_predict_from_modelfolder`", peer, environment)


if __name__ == "__main__":
    main()
