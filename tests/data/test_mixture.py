"""Which task a batch is of, and that each task's batches are those of its own run."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medi3d.config import TaskConfig
from medi3d.data.loader import PatchLoader
from medi3d.data.mixture import MixedLoader, count_batches, order_tasks
from medi3d.data.patches import PatchDataset
from medi3d.io.prepared import PreparedStore


def test_equal_shares_take_turns() -> None:
    assert list(islice(order_tasks({"a": 1.0, "b": 1.0, "c": 1.0}), 6)) == ["a", "b", "c"] * 2


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 300))
def test_every_task_has_its_share_at_any_time(weights: list[int], batches: int) -> None:
    shares = {str(number): float(weight) for number, weight in enumerate(weights)}
    counts = count_batches(shares, batches)
    assert sum(counts.values()) == batches
    for name, share in shares.items():
        assert abs(counts[name] - batches * share / sum(weights)) < 2
    whole = count_batches(shares, sum(weights))  # after a whole turn the numbers are the weights themselves
    assert [whole[name] for name in shares] == weights


@pytest.mark.parametrize("first", [0, 5])
def test_each_task_sees_the_patches_of_its_own_run(
    first: int, tiny: Path, segmentation_task: TaskConfig, classification_task: TaskConfig
) -> None:
    """From the start, and where five batches have been taken."""
    tasks = {task.name: task for task in (segmentation_task, classification_task)}
    shares = {segmentation_task.name: 2.0, classification_task.name: 1.0}

    def read(task: TaskConfig, batches: int) -> PatchLoader:
        cases = PreparedStore(tiny / "prepared" / task.name).cases()
        dataset = PatchDataset(cases, patch_size=task.patch_size, seed=3)
        return PatchLoader(dataset, None, batch_size=task.batch_size, first=batches * task.batch_size, workers=0)

    taken = count_batches(shares, first)
    mixed = MixedLoader({name: read(task, taken[name]) for name, task in tasks.items()}, shares, first=first)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in tasks}
    order = []
    with closing(mixed):
        for batch in islice(mixed, 6):
            order.append(batch["task"])
            seen[batch["task"]].append(batch["image"])
    assert order == list(islice(order_tasks(shares), first, first + 6))
    assert {name: len(images) for name, images in seen.items()} == dict(zip(tasks, (4, 2), strict=True))
    for name, task in tasks.items():
        with closing(read(task, 0)) as alone:
            own = list(islice(alone, taken[name] + len(seen[name])))[taken[name] :]
        for image, batch in zip(seen[name], own, strict=True):
            assert torch.equal(image, batch["image"])
    assert mixed.waited_s > 0
