"""What each fine-tuning key changes when few cases are labelled: paired runs, one key changed at a time.

    python benchmarks/fine_tuning.py --task hippocampus --prepared PREPARED --cases 16 --steps 450 --seeds 3

Every variant is trained from the same seeds (patches, decoder, order) on the same cases and scored on the same held-out
ones with its last weights. A run that is in the CSV already is not repeated. The table gives the mean score and the
mean of the paired differences to ``default`` with the range over seeds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch
from rows import read_rows, write_rows

from medi3d.config import load_task
from medi3d.train import train_task

RESULTS = Path(__file__).parent / "fine_tuning"
VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "ema_decay 0": {"train.ema_decay": 0.0},
    "layer_decay 0.8": {"train.layer_decay": 0.8},
    "layer_decay 0.6": {"train.layer_decay": 0.6},
    "freeze 0.2": {"train.freeze": 0.2},
    "norm_statistics frozen": {"train.norm_statistics": "frozen"},
    "norm_statistics reestimate": {"train.norm_statistics": "reestimate"},
    "drop_path 0.1": {"model.drop_path": 0.1},
    "label_smoothing 0.1": {"train.label_smoothing": 0.1},
    "warmup 0.1": {"train.warmup": 0.1},
    "deep_supervision 2": {"model.deep_supervision": 2},
    "from scratch": {"model.init": "random"},
}
ONLY_SEGMENTATION = {"deep_supervision 2"}


def train_variants(options: argparse.Namespace) -> None:
    """Train what the CSV lacks, seed by seed, so that whatever is there is paired."""
    base = {"train.steps": options.steps, "train.cases": options.cases, "train.threads": 1, "train.workers": 0}
    base |= {"train.ema_decay": 0.99, "train.validations": 1, "train.trackers": []}
    base |= dict(text.split("=", 1) for text in options.set)
    path = options.results / f"{options.task}-{options.cases or 'all'}.csv"
    rows = read_rows(path)
    for seed in range(options.seeds):
        for name in options.variants:
            changes = VARIANTS[name]
            if (name, str(seed)) in {(row["variant"], row["seed"]) for row in rows}:
                continue
            task = load_task(options.task, overrides=base | changes | {"train.seed": seed})
            if task.kind == "classification" and name in ONLY_SEGMENTATION:
                continue
            run = Path(tempfile.mkdtemp()) / "run"
            result = train_task(task, prepared=options.prepared, run=run, device="cpu")
            shutil.rmtree(run.parent)
            if result.stopped:
                return
            rows.append({"variant": name, "seed": str(seed), "score": f"{result.last_score:.4f}"})
            print(rows[-1], flush=True)
            write_rows(rows, path)
    print_table(rows)


def print_table(rows: list[dict[str, str]]) -> None:
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        scores[row["variant"]][row["seed"]] = float(row["score"])
    print("| variant | mean | against default, mean (range) | seeds |\n|---|---|---|---|")
    for name, own in scores.items():
        gaps = [own[seed] - scores["default"][seed] for seed in own if seed in scores["default"]]
        spread = f"{mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})"
        print(f"| {name} | {mean(own.values()):.4f} | {spread} | {len(gaps)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="hippocampus")
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value, for all variants")
    parser.add_argument("--results", type=Path, default=RESULTS)
    torch.set_num_threads(1)
    train_variants(parser.parse_args())


if __name__ == "__main__":
    main()
