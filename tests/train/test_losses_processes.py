"""Two processes with half a batch each, averaging gradients as DDP does, train as one with all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from medi3d.config import TaskConfig, load_task
from medi3d.models.outputs import Outputs
from medi3d.train.losses import LOSSES, create_loss

CASES: dict[str, dict[str, Any]] = {
    "labels": {},
    "sparse": {"ignore_label": 9},
    "regions": {"regions": {"whole": (1, 2), "core": (2,)}, "ignore_label": 9},
    "classes": {"classes": ("a", "b")},
}


class Network(nn.Module):
    """Logits of two resolutions and a second head, of few parameters."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse = nn.Conv3d(1, outputs, 3, padding=1), nn.Conv3d(1, outputs, 2, stride=2)
        self.classes = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Outputs:
        return Outputs((self.fine(x), self.coarse(x)), self.classes(x.mean((2, 3, 4))))


def make_task(loss: str, case: str) -> TaskConfig:
    task = load_task("hippocampus")
    data = replace(task.data, **CASES[case])
    weights = () if case == "regions" else (0.5, 1.0, 2.0)
    train = replace(task.train, loss=loss, label_smoothing=0.1, class_weights=weights)
    return replace(task, data=data, train=train)


def make_batch(case: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    label = torch.randint(0, 3, (4, 4, 6, 8), generator=generator)
    label[:2, 1:] = 0  # the halves are unlike
    if "ignore_label" in CASES[case]:
        label[1, :, 1:] = 9  # and unequally annotated
        label[2] = 9
    target = torch.tensor([0, -1, -1, -1]) if case == "classes" else torch.tensor([0, 1, 1, 0])
    return {"image": torch.randn(4, 1, 4, 6, 8, generator=generator), "label": label, "target": target}


def train_step(network: nn.Module, batch: dict[str, Any], loss: str, case: str) -> float:
    value = create_loss(make_task(loss, case))(network(batch["image"]), batch, progress=0.5)
    value.backward()
    return float(value.detach())


def run_process(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        half = {key: value[2 * rank : 2 * rank + 2] for key, value in make_batch(case).items()}
        for loss in LOSSES:
            network = Network(make_task(loss, case).out_channels)
            value = train_step(DistributedDataParallel(network), half, loss, case)
            found[f"{case} {loss}"] = [torch.tensor(value), *(p.grad for p in network.parameters())]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_half_a_batch_have_the_loss_and_gradients_of_one_with_all(tmp_path: Path) -> None:
    multiprocessing.spawn(run_process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for case in CASES:
        for loss in LOSSES:
            network = Network(make_task(loss, case).out_channels)
            value = train_step(network, make_batch(case), loss, case)
            whole = [torch.tensor(value), *(p.grad for p in network.parameters())]
            for shared in (first, second):
                for ours, expected in zip(shared[f"{case} {loss}"], whole, strict=True):
                    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
