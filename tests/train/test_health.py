from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medi3d.config import TaskConfig, load_task
from medi3d.errors import Medi3dError
from medi3d.runs.folder import RunFolder
from medi3d.train import train_task
from medi3d.train.health import (
    LossHistory,
    as_flags,
    check_loss,
    explain_out_of_memory,
    is_out_of_memory,
)


def first_fired(losses: np.ndarray) -> int | None:
    history = LossHistory()
    return next((step for step, loss in enumerate(losses, start=1) if history.diverges(float(loss))), None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_names_step_cases_and_checkpoint(value: float, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(Medi3dError, match=rf"step 7, cases a, b: the loss is {value}; .*no checkpoint was written yet"):
        check_loss(value, 7, ["a", "b"], folder)
    folder.last.parent.mkdir()
    folder.last.touch()
    with pytest.raises(Medi3dError, match=r"lower --learning-rate .* the last good checkpoint is .*last\.pt"):
        check_loss(value, 7, ["a", "b"], folder)
    check_loss(1e30, 7, ["a", "b"], folder)


@pytest.mark.parametrize("scatter", [0.05, 0.3, 1.0])
def test_healthy_losses_pass_however_much_they_scatter(scatter: float) -> None:
    """Falling, level, and rising a little as when augmentation or an unfrozen encoder makes it harder."""
    steps = np.arange(1500)
    falling = 0.2 + 2 * np.exp(-steps / 150)
    rising = falling + 0.3 * (steps > 700)
    for seed in range(10):
        noise = np.random.default_rng(seed).lognormal(0, scatter, len(steps))
        assert first_fired(falling * noise) is None
        assert first_fired(rising * noise) is None


def test_single_bad_batches_pass() -> None:
    losses = 0.3 + 0.02 * np.random.default_rng(0).normal(size=400)
    losses[100::7] = 1e4
    assert first_fired(losses) is None


def test_half_a_window_far_above_the_best_is_a_divergence() -> None:
    losses = np.concatenate([np.linspace(2.4, 0.4, 200), np.full(100, 4.0)])
    fired = first_fired(losses + 0.05 * np.random.default_rng(0).normal(size=300))
    assert fired is not None
    assert 220 < fired <= 230


def test_a_run_that_diverges_at_once_is_measured_by_its_first_steps() -> None:
    """The losses of SGD on hippocampus at a rate of 10, rounded: they rise while the first window is filled."""
    early = [2.4, 2.4, 3.3, 2.8, 3.9, 3.4, 4.0, 3.6, 1.9, 2.1, 2.1, 4.0, 11.6, 8.9, 8.8, 11.1, 13.7, 8.1, 5.7, 15.8]
    assert first_fired(np.array(early + [20.0, 27.0, 18.0] * 20)) == 50


def test_the_message_of_a_divergence(tmp_path: Path) -> None:
    history = LossHistory()
    for step in range(1, 51):
        check_loss(1.0, step, ["x"], RunFolder(tmp_path), history)
    message = r"step 75, cases x: the loss has diverged: its median over the last 50 steps is 5, after 1 at best"
    for step in range(51, 75):
        check_loss(9.0, step, ["x"], RunFolder(tmp_path), history)
    with pytest.raises(Medi3dError, match=message):  # half of the window is 9
        check_loss(9.0, 75, ["x"], RunFolder(tmp_path), history)


def test_a_real_run_with_a_far_too_high_rate_stops_and_one_with_its_own_does_not(
    segmentation_task: TaskConfig, tiny: Path, tmp_path: Path
) -> None:
    train = replace(segmentation_task.train, optimizer="sgd", steps=60, validations=1, grad_clip=1e9)

    def run(name: str, rate: float) -> int:
        task = replace(segmentation_task, train=replace(train, learning_rate=rate))
        prepared = tiny / "prepared" / task.name
        return train_task(task, prepared=prepared, run=tmp_path / name, device="cpu").steps

    assert run("own", 0.01) == 60
    with pytest.raises(Medi3dError, match=r"step \d+, cases case_\d.*the loss (has diverged|is nan|is inf)"):
        run("high", 1000.0)


# --- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_torch_says_it_as_expected() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float64)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_next_smaller_plan_is_named_as_flags_that_train_takes() -> None:
    overrides = {"train.batch_size": 4, "train.patch_size": [32, 40, 48], "model.stages": 3}
    task = load_task("demo", overrides=overrides | {"model.init": "random"})
    message = str(explain_out_of_memory(RuntimeError("can't allocate memory: 99 bytes\nsecond line"), task))
    assert message == (
        "out of memory with 4 patches of 32 × 40 × 48 voxels (can't allocate memory: 99 bytes); "
        "train again with --batch-size 2 --accumulate 2"
    )
    assert "(MemoryError)" in str(explain_out_of_memory(MemoryError(), task))


def test_nothing_smaller_is_said() -> None:
    smallest = {"train.batch_size": 1, "train.patch_size": [8, 8, 8], "train.checkpoint_activations": True}
    task = load_task("demo", overrides=smallest | {"model.init": "random", "model.stages": 2})
    assert "no smaller plan" in str(explain_out_of_memory(MemoryError(), task))


def test_keys_as_flags_are_read_back() -> None:
    values = {"train.patch_size": (24, 32, 40), "train.batch_size": 1, "train.checkpoint_activations": True}
    assert as_flags(values) == "--patch-size 24,32,40 --batch-size 1 --set train.checkpoint_activations=true"


def test_a_run_that_runs_out_of_memory_says_so(
    segmentation_task: TaskConfig, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medi3d.models.segmentation import SegmentationNetwork

    def fail(*args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(SegmentationNetwork, "forward", fail)
    with pytest.raises(Medi3dError, match=r"out of memory with 2 patches of 8 × 10 × 9 voxels .*--batch-size 1"):
        train_task(segmentation_task, prepared=tiny / "prepared/tiny_segmentation", run=tmp_path / "run", device="cpu")
