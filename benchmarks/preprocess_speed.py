"""CPU seconds and peak memory of preprocessing, beside nnU-Net, MONAI, TorchIO and SimpleITK. One thread, one worker.

    python benchmarks/preprocess_speed.py [--peers PYTHON] [--repeats 3] [--only hippocampus ct image]
    python benchmarks/preprocess_speed.py --profile

Three jobs: a data set of small cases (hippocampus), one large made-up CT with its label, and that CT alone (read,
resample, write). Every figure is of a whole process with its children, start-up included; tools take turns and medians
are shown. PYTHON is an interpreter with nnU-Net (benchmarks/README.md says how to make one).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import yaml
from cost import ONE_THREAD, Cost, measure, medians, processor_name
from nnunet_folder import NnunetFolder, nnunet_version
from resample_tools import TOOLS

DATA = Path(os.environ.get("MEDI3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
MEDI3D = [sys.executable, "-c", "from medi3d.cli.main import run; run()"]
VERSIONS = ("medi3d", "SimpleITK", "monai", "torchio", "torch", "numpy", "scipy", "blosc2", "isal")
CT_LABELS = {1: "lung", 2: "liver", 3: "nodule"}
CT_TASK = {
    "name": "ct",
    "kind": "segmentation",
    "data": {"channels": ["CT"], "labels": CT_LABELS},
    "preprocess": {"spacing_mm": 1.0, "normalize": ["ct"]},
}

Run = Callable[[], Cost]


@dataclass(frozen=True)
class Goal:
    """What is asked of medi3d: at most this share of a tool's CPU, and at most so much memory."""

    tool: str
    share: float
    peak_mib: float = 1024


def fresh(folder: Path) -> Path:
    """Return a folder's path after deleting the folder, so that nothing is found prepared."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def run_medi3d(task: str | Path, raw: Path, scratch: Path) -> Cost:
    """Measure ``medi3d preprocess`` on a raw folder."""
    store = fresh(scratch / "prepared")
    command = [*MEDI3D, "preprocess", "--task", task, "--data", raw, "--output", store, "--workers", "1"]
    return measure(command, log=scratch / "medi3d.log")


def run_nnunet(nnunet: NnunetFolder, command: list[str], *, keep: bool = False) -> Cost:
    """Measure one of nnU-Net's commands, from nothing unless ``keep``."""
    if not keep:
        fresh(nnunet.folder / "preprocessed")
    return measure(command, log=nnunet.folder / "nnunet.log", env=nnunet.env)


def hippocampus_runs(scratch: Path, peers: Path | None) -> dict[str, Run]:
    """Return what prepares the hippocampus data set."""
    folder = DATA / "hippocampus"
    runs: dict[str, Run] = {"medi3d": partial(run_medi3d, "hippocampus", folder, scratch)}
    if peers:
        nnunet = NnunetFolder(peers, scratch / "nnunet")
        images = [path for path in sorted((folder / "imagesTr").glob("*.nii.gz")) if not path.name.startswith(".")]
        cases = [(path.name.split(".")[0], path, folder / "labelsTr" / path.name) for path in images]
        nnunet.fill(cases, channel="MRI", labels={1: "anterior", 2: "posterior"})
        options = ("--verify_dataset_integrity", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
        runs["nnU-Net"] = partial(run_nnunet, nnunet, nnunet.command("plan_and_preprocess", *options))
    return runs


def draw_ct(folder: Path, slices: int) -> tuple[Path, Path]:
    """Draw the CT in a process of its own, so that this one stays small, and return image and label."""
    script = Path(__file__).with_name("ct_phantom.py")
    drawn = subprocess.run([sys.executable, script, folder, str(slices)], check=True, capture_output=True, text=True)
    image, label = map(Path, drawn.stdout.split())
    return image, label


def write_ct_task(ct: tuple[Path, Path], scratch: Path) -> tuple[Path, Path]:
    """Lay the CT out as medi3d expects it and return the task's file and the raw folder."""
    raw = scratch / "raw"
    for path, part in zip(ct, ("imagesTr", "labelsTr"), strict=True):
        (raw / part).mkdir(parents=True)
        (raw / part / "ct.nii.gz").symlink_to(path)
    task = scratch / "ct.yaml"
    task.write_text(yaml.safe_dump(CT_TASK), encoding="utf-8")
    return task, raw


def ct_runs(scratch: Path, peers: Path | None, ct: tuple[Path, Path]) -> dict[str, Run]:
    """Return what prepares the CT and its label at 1 mm; nnU-Net's plan is made beforehand."""
    runs: dict[str, Run] = {"medi3d": partial(run_medi3d, *write_ct_task(ct, scratch), scratch)}
    if peers:
        nnunet = NnunetFolder(peers, scratch / "nnunet")
        nnunet.fill([("ct", *ct)], channel="CT", labels=CT_LABELS)
        plan = run_nnunet(nnunet, nnunet.command("extract_fingerprint", "-np", "1"))
        spacing = ("-overwrite_target_spacing", "1", "1", "1", "-overwrite_plans_name", "one_mm")
        run_nnunet(nnunet, nnunet.command("plan_experiment", *spacing), keep=True)
        print(f"nnU-Net's fingerprint of the CT, not counted below: {plan.cpu_s:.1f} CPU-s")
        command = nnunet.command("preprocess", "-plans_name", "one_mm", "-c", "3d_fullres", "-np", "1")
        runs["nnU-Net"] = partial(run_nnunet, nnunet, command, keep=True)
    return runs


def image_runs(scratch: Path, peers: Path | None, ct: tuple[Path, Path]) -> dict[str, Run]:
    """Return what reads the CT, resamples it to 1 mm and writes it."""

    def run(tool: str) -> Cost:
        target = fresh(scratch / tool.replace(" ", "_")) / "ct.nii.gz"
        target.parent.mkdir()
        command = [sys.executable, Path(__file__).with_name("resample_tools.py"), tool, ct[0], target]
        return measure(command, log=scratch / f"{tool}.log")

    return {tool: partial(run, tool) for tool in TOOLS}


def startup_costs(scratch: Path, peers: Path | None, repeats: int) -> dict[str, Cost]:
    """Return what the start alone of each command costs."""
    runs: dict[str, Run] = {"medi3d": lambda: measure([*MEDI3D, "preprocess", "--help"], log=scratch / "log")}
    if peers:
        nnunet = NnunetFolder(peers, scratch)
        command = nnunet.command("preprocess", "--help")
        runs["nnU-Net"] = lambda: measure(command, log=scratch / "log", env=nnunet.env)
    return medians(runs, repeats)


def print_table(title: str, costs: dict[str, Cost], goal: Goal | None = None) -> None:
    """Print costs with their ratio to medi3d's, and how the goal stands."""
    ours = costs["medi3d"]
    print(f"\n| {title} | CPU, s | wall, s | peak, MiB | CPU / medi3d | peak / medi3d |\n|---|---|---|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost} | {cost.cpu_s / ours.cpu_s:.1f} | {cost.peak_mib / ours.peak_mib:.1f} |")
    if goal and goal.tool in costs:
        limit = costs[goal.tool].cpu_s * goal.share
        verdicts = ["reached" if met else "MISSED" for met in (ours.cpu_s <= limit, ours.peak_mib <= goal.peak_mib)]
        print(f"\nGoals: {goal.share:.2f} of {goal.tool}'s CPU, {limit:.2f} s: {verdicts[0]}; ", end="")
        print(f"under {goal.peak_mib:.0f} MiB: {verdicts[1]}.")
    sys.stdout.flush()


def print_profile(task: str | Path, raw: Path, scratch: Path) -> None:
    """Print where the CPU time of ``medi3d preprocess`` goes."""
    script = Path(__file__).with_name("where_time_goes.py")
    store = fresh(scratch / "profiled")
    command = [sys.executable, script, "preprocess", "--task", task, "--data", raw, "--output", store, "--workers", "1"]
    subprocess.run([*map(str, command)], check=True, env={**os.environ, **ONE_THREAD})


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="interpreter that has nnU-Net")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slices", type=int, default=300, help="of the CT; fewer only to see whether all runs")
    jobs = ["hippocampus", "ct", "image"]
    parser.add_argument("--only", nargs="+", choices=jobs, default=jobs)
    parser.add_argument("--profile", action="store_true", help="where medi3d's own CPU goes, without timing others")
    return parser.parse_args()


def main() -> None:
    """Measure and print Markdown tables."""
    options = parse_options()
    found = nnunet_version(options.peers)
    peers = options.peers.absolute() if found else None
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    versions += f", nnunetv2 {found or 'absent: left out'}"
    print(f"{processor_name()}, one thread, medians of {options.repeats} runs; {versions}")
    if "hippocampus" in options.only and not (DATA / "hippocampus").is_dir():
        print(f"hippocampus is left out: {DATA / 'hippocampus'} is absent; set MEDI3D_TEST_DATA")
        options.only.remove("hippocampus")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        run_jobs(options, peers, scratch)


def run_jobs(options: argparse.Namespace, peers: Path | None, scratch: Path) -> None:
    """Do what the options ask for in a scratch folder."""
    ct = draw_ct(scratch, options.slices) if {"ct", "image"} & set(options.only) else (scratch, scratch)
    if options.profile:
        if "hippocampus" in options.only:
            print_profile("hippocampus", DATA / "hippocampus", scratch)
        if "ct" in options.only:
            print_profile(*write_ct_task(ct, scratch / "ct"), scratch)
        return
    jobs: dict[str, tuple[str, Callable[[Path], dict[str, Run]], Goal]] = {
        "hippocampus": ("hippocampus", partial(hippocampus_runs, peers=peers), Goal("nnU-Net", 0.1)),
        "ct": ("CT and label to 1 mm", partial(ct_runs, peers=peers, ct=ct), Goal("nnU-Net", 0.1)),
        "image": ("CT alone to 1 mm", partial(image_runs, peers=peers, ct=ct), Goal("MONAI Spacing", 1 / 3)),
    }
    print_table("start alone", startup_costs(scratch, peers, options.repeats))
    for job in options.only:
        title, make_runs, goal = jobs[job]
        folder = scratch / job
        folder.mkdir()
        print_table(title, medians(make_runs(folder), options.repeats), goal)


if __name__ == "__main__":
    main()
