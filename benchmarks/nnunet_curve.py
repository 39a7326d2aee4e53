"""nnU-Net's training on one CPU thread, its Dice over CPU minutes; the interpreter that has nnunetv2 runs it.

    PEER_PYTHON benchmarks/nnunet_curve.py --work FOLDER --split split.json --minutes 60 --output nnunet.csv

``benchmarks/training_level.py nnunet`` calls this with nnU-Net's environment variables set and FOLDER filled: raw data
in nnU-Net's layout, planned and preprocessed by nnU-Net's own commands. The trainer is nnU-Net's own with its own plan,
loss, augmentation (in this process, so that its time counts) and schedule; only the order of training and validation is
this script's. Time is that of the processor, without the validations, which predict the held-out cases with nnU-Net's
predictor, without mirroring but for the last one.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True, help="JSON with the case ids of train and validation")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=10, help="minutes between validations")
    parser.add_argument("--dataset", default="Dataset004_benchmark")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def create_trainer(folder: Path, split_file: Path) -> nnUNetTrainer:
    """Create nnU-Net's trainer of its full-resolution plan, for the split that it is given."""
    split = json.loads(split_file.read_text(encoding="utf-8"))
    splits = [{"train": split["train"], "val": split["validation"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    plans, dataset = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("nnUNetPlans.json", "dataset.json")
    )
    plans["continue_training"] = False  # as nnU-Net's own command adds it
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, device=torch.device("cpu"))
    trainer.initialize()
    trainer.on_train_start()
    return trainer


def measure_dice(trainer: nnUNetTrainer, *, mirror: bool) -> list[float]:
    """Return the mean Dice of each label over the held-out cases, on nnU-Net's prepared grid (here the native one)."""
    predictor = nnUNetPredictor(
        use_mirroring=mirror, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    rows = []
    _, held_out = trainer.get_tr_and_val_datasets()
    for name in held_out.identifiers:
        data, truth, *_ = held_out.load_case(name)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.asarray(data[:])))
        found, truth = logits.argmax(0).numpy(), np.asarray(truth[:])[0]
        labels = range(1, logits.shape[0])
        rows.append(
            [2 * ((found == n) & (truth == n)).sum() / ((found == n).sum() + (truth == n).sum()) for n in labels]
        )
    trainer.set_deep_supervision_enabled(True)
    trainer.network.train()
    return [float(value) for value in np.mean(rows, axis=0)]


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    trainer = create_trainer(options.work / "preprocessed" / options.dataset, options.split)
    begun, validating, iteration, rows = time.process_time(), 0.0, 0, []
    while True:
        minutes = (time.process_time() - begun - validating) / 60
        if minutes >= options.every * (len(rows) + 1) or minutes >= options.minutes:
            before = time.process_time()
            last = minutes >= options.minutes
            dice = measure_dice(trainer, mirror=last)
            validating += time.process_time() - before
            rows.append(
                {
                    "cpu_minutes": round(minutes, 2),
                    "steps": iteration,
                    "dice": round(float(np.mean(dice)), 4),
                    "kind": "native, mirrored" if last else "held out",
                }
            )
            print(rows[-1], flush=True)
            with options.output.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            if last:
                break
        if iteration % trainer.num_iterations_per_epoch == 0:
            trainer.network.train()
            trainer.lr_scheduler.step(iteration // trainer.num_iterations_per_epoch)
        trainer.train_step(next(trainer.dataloader_train))
        iteration += 1


if __name__ == "__main__":
    main()
