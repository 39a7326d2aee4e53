"""CPU seconds of a training step: the network, its loss and the backward pass, of several networks in turn.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py [--repeats 9] [--set KEY=VALUE ...]

Each --set adds a row to compare with the default, of one key:
--set model.deep_supervision=2 --set model.network=monai/dynunet --set train.precision=bf16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from medi3d.config import load_task
from medi3d.infer.allocator import keep_freed_memory
from medi3d.models import create_model
from medi3d.train.losses import create_loss

SIZE = (40, 56, 40)
BATCH = 2
FIXED = {"model.init": "random", "model.stages": 5, "model.depth_plan": "symmetric", "train.patch_size": SIZE}


def make_step(setting: str) -> Callable[[], None]:
    key, _, value = setting.partition("=")
    task = load_task("hippocampus", overrides={**FIXED, **({key: value} if key else {})})
    model, loss = create_model(task), create_loss(task)
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(BATCH, 1, *SIZE, generator=generator)
    batch = {"label": torch.randint(0, 3, (BATCH, *SIZE), generator=generator)}

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=task.train.precision == "bf16"):
            outputs = model(volume)
        loss(outputs, batch, progress=0.5).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    options = parser.parse_args()
    keep_freed_memory()
    steps = {setting: make_step(setting) for setting in ("", *options.settings)}
    seconds: dict[str, list[float]] = {setting: [] for setting in steps}
    for repeat in range(options.repeats + 1):  # in turn, so that what else the machine does is shared by all
        for setting, step in steps.items():
            begun = time.process_time()
            step()
            if repeat:
                seconds[setting].append(time.process_time() - begun)
    for setting, values in seconds.items():
        print(f"{setting or 'default'}: median {statistics.median(values):.3f} s, least {min(values):.3f} s")


if __name__ == "__main__":
    main()
