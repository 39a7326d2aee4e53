"""How well networks segment after so many minutes of one CPU thread: hippocampus, the same 160 and 40 cases for all.

    python benchmarks/training_level.py medi3d NAME --steps 6000 [--cases 16] [--fold 1] [--set train.seed=1 ...]
    python benchmarks/training_level.py average NAME --runs ONE TWO …
    python benchmarks/training_level.py folds NAME --runs ONE TWO …
    python benchmarks/training_level.py nnunet --peers PYTHON --minutes 30
    python benchmarks/training_level.py figure

The first trains with medi3d's own loop and writes NAME.csv into --results: the mean Dice of the held-out cases over
minutes of the processor, those of the whole process: start-up, reading, augmentation and validations counted. Its last
rows are what the last weights reach in the scanner's own grid, plain, mirrored, and turned too, by ``medi3d
predict`` and ``medi3d evaluate``. The second scores the averaged predictions of such runs; its minutes are their sum.
The third scores every case by the run of the fold that held it out; its minutes are those of a run, in the mean. The
fourth trains nnU-Net (``nnunet_curve.py``). The last draws all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import torch
from nnunet_folder import NnunetFolder
from rows import read_rows, write_rows

from medi3d.config import load_task
from medi3d.data.splits import split_cases
from medi3d.io.prepared import PreparedStore
from medi3d.preprocess.dataset import prepare_dataset
from medi3d.train import train_task
from medi3d.train.loop import TrainEvent

DATA = Path(os.environ.get("MEDI3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "hippocampus"
RESULTS = Path(__file__).parent / "training_level"
COPIES = {  # what is averaged over at prediction: settings
    "native": (),
    "native, mirrored": ("infer.mirror=true",),
    "native, mirrored and turned": ("infer.mirror=true", "infer.rotate_degrees=15"),
}
MARKS = {"nnU-Net's level after 1000 epochs": 0.895}


def train_medi3d(options: argparse.Namespace) -> None:
    """Train one run, one row a validation, and one row for the native grid."""
    torch.set_num_threads(1)
    fixed = {"train.steps": options.steps, "train.threads": 1, "train.workers": 0, "train.cases": options.cases}
    task = load_task("hippocampus", overrides=fixed | dict(text.split("=", 1) for text in options.set))
    rows: list[dict[str, object]] = []
    scores: list[float] = []

    def keep(event: TrainEvent) -> None:
        if event.score is not None and event.score not in scores[-1:]:
            scores.append(event.score)
            minutes = round(time.process_time() / 60, 2)
            rows.append(
                {"cpu_minutes": minutes, "steps": event.step, "dice": round(event.score, 4), "kind": "held out"}
            )
            write_rows(rows, options.results / f"{options.name}.csv")
            print(rows[-1], flush=True)

    run = options.work / "runs" / options.name
    store = _prepare(options.work)
    if train_task(task, prepared=store, run=run, fold=options.fold, device="cpu", on_event=keep).stopped:
        sys.exit("stopped by a signal: no figure")
    minutes = round(time.process_time() / 60, 2)
    for kind, dice in measure_native([run], options.work / "predictions" / options.name):
        rows.append({"cpu_minutes": minutes, "steps": rows[-1]["steps"], "dice": round(dice, 4), "kind": kind})
        print(rows[-1], flush=True)
    write_rows(rows, options.results / f"{options.name}.csv")


def score_together(options: argparse.Namespace) -> None:
    """Score several runs together: each case by the mean of the runs that held it out."""
    ends = [read_rows(options.results / f"{name}.csv")[-1] for name in options.runs]
    networks = 1 if options.folds else len(ends)  # that predict a case
    minutes = round(sum(float(row["cpu_minutes"]) for row in ends) * networks / len(ends), 2)
    rows: list[dict[str, object]] = []
    steps = sum(int(row["steps"]) for row in ends) * networks // len(ends)
    runs = [options.work / "runs" / name for name in options.runs]
    for kind, dice in measure_native(runs, options.work / "predictions" / options.name):
        rows.append({"cpu_minutes": minutes, "steps": steps, "dice": round(dice, 4), "kind": kind})
        print(rows[-1], flush=True)
    write_rows(rows, options.results / f"{options.name}.csv")


def train_nnunet(options: argparse.Namespace) -> None:
    """Fill nnU-Net's folders, let it plan and preprocess, and train it on the split that medi3d's runs have."""
    store = PreparedStore(_prepare(options.work))
    split = split_cases(store.cases(), folds=5, fold=0, seed=0)
    folder = NnunetFolder(options.peers, options.work / "nnunet")
    if not folder.raw.exists():
        names = sorted((*split.train, *split.validation))
        cases = [(name, DATA / "imagesTr" / f"{name}.nii.gz", DATA / "labelsTr" / f"{name}.nii.gz") for name in names]
        folder.fill(cases, channel="MRI", labels={1: "anterior", 2: "posterior"})
        for command in (
            ("extract_fingerprint", "-np", "1"),
            ("plan_experiment",),
            ("preprocess", "-c", "3d_fullres", "-np", "1"),
        ):
            subprocess.run(folder.command(*command), env=os.environ | folder.env, check=True)
    split_file = options.work / "split.json"
    split_file.write_text(json.dumps({"train": split.train, "validation": split.validation}), encoding="utf-8")
    child = Path(__file__).with_name("nnunet_curve.py")
    flags = {
        "--work": folder.folder,
        "--split": split_file,
        "--minutes": options.minutes,
        "--output": options.results / "nnunet.csv",
    }
    arguments = [str(part) for pair in flags.items() for part in pair]
    subprocess.run(
        [str(options.peers), "-W", "ignore", str(child), *arguments],
        env=os.environ | folder.env | {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "nnUNet_compile": "False"},
        check=True,
    )


def measure_native(runs: list[Path], output: Path) -> Iterator[tuple[str, float]]:
    """Predict the runs' held-out cases from their raw files; yield the mean Dice of each way to average over copies."""
    medi3d = [sys.executable, "-W", "ignore", "-m", "medi3d"]
    images = ["--input", str(DATA / "imagesTr"), "--output", str(output), "--out-of-fold", "--checkpoint", "last"]
    references = ["--predictions", str(output), "--references", str(DATA), "--only-predicted"]
    for kind, settings in COPIES.items():
        changes = [part for setting in settings for part in ("--set", setting)]
        subprocess.run([*medi3d, "predict", *map(str, runs), *images, *changes], check=True)
        subprocess.run([*medi3d, "evaluate", "--task", "hippocampus", *references], check=True)
        scores = json.loads((output / "evaluation" / "summary.json").read_text(encoding="utf-8"))["scores"]
        yield kind, float(scores["all labels"]["dice"]["value"])


def draw_figure(options: argparse.Namespace) -> None:
    """Draw every curve of --results."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for path in sorted(options.results.glob("*.csv")):
        rows = read_rows(path)
        curve = [(float(row["cpu_minutes"]), float(row["dice"])) for row in rows if row["kind"] == "held out"]
        (line,) = axes.plot([m for m, _ in curve], [d for _, d in curve], marker=".", label=path.stem)
        ends = [(float(row["cpu_minutes"]), float(row["dice"])) for row in rows if row["kind"] in list(COPIES)[1:]]
        if ends:
            axes.plot(*zip(*ends, strict=True), marker="*", markersize=11, color=line.get_color(), linestyle="none")
    for name, level in MARKS.items():
        axes.axhline(level, color="0.5", linestyle=":", label=name)
    axes.set(xlabel="minutes of one CPU thread", ylabel="mean Dice, 40 held-out cases", ylim=(0.6, 0.91))
    axes.legend(title="stars: native grid, mirrored")
    figure.savefig(options.results / "curves.svg")


def _prepare(work: Path) -> Path:
    store = work / "prepared" / "hippocampus"
    prepare_dataset(DATA, load_task("hippocampus"), store)  # what is there and unchanged stays
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/training_level"))
    commands = parser.add_subparsers(required=True)
    ours = commands.add_parser("medi3d")
    ours.add_argument("name")
    ours.add_argument("--steps", type=int, required=True)
    ours.add_argument("--cases", type=int)
    ours.add_argument("--fold", type=int, default=0)
    ours.add_argument("--set", nargs="*", default=[], help="section.key=value, as medi3d train takes them")
    ours.set_defaults(run=train_medi3d)
    for command in ("average", "folds"):
        together = commands.add_parser(command)
        together.add_argument("name")
        together.add_argument("--runs", nargs="+", required=True, help="names of runs that were trained before")
        together.set_defaults(run=score_together, folds=command == "folds")
    peer = commands.add_parser("nnunet")
    peer.add_argument("--peers", type=Path, required=True, help="interpreter that has nnunetv2")
    peer.add_argument("--minutes", type=float, default=30)
    peer.set_defaults(run=train_nnunet)
    commands.add_parser("figure").set_defaults(run=draw_figure)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
