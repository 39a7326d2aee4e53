"""Runs of two processes: the same losses as one, resumed alike, ended together."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny_runs import (
    Killed,
    differences,
    kill_after,
    read_losses,
    read_metrics,
    start_processes,
    train_and_note,
    weights,
)
from torch import nn

from medi3d.config import load_task
from medi3d.errors import ConfigError, Medi3dError
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.train import processes, train_task
from medi3d.train.processes import create_accelerator, named_losses

BASE = {"train.steps": 12, "train.learning_rate": 3e-3, "train.threads": 1, "train.validations": 1}


def run_both(tiny: Path, folder: Path, name: str, one: dict[str, object], two: dict[str, object]) -> tuple[Path, Path]:
    """Train with one process in this one, and with two; return the runs."""
    values, prepared = tiny / f"{name}.yaml", tiny / "prepared" / name
    train_and_note(0, values, BASE | one, prepared, folder / "one")
    assert start_processes(2, train_and_note, values, BASE | two, prepared, folder / "two") == [0, 0]
    return folder / "one", folder / "two"


def assert_alike(one: Path, two: Path, *, with_weights: bool = True) -> None:
    losses = read_losses(one)
    assert len(losses) == 12
    assert read_losses(two) == pytest.approx(losses, rel=1e-4)
    assert abs(losses[-1] - losses[0]) > 1e-3
    scores = [[float(row["score"]) for row in read_metrics(run) if row["score"]] for run in (one, two)]
    assert scores[1] == pytest.approx(scores[0], abs=0.02)
    if with_weights:
        torch.testing.assert_close(weights(two), weights(one), rtol=0.05, atol=0.01)


def test_two_processes_have_the_losses_of_one_with_the_whole_batch(tiny: Path, tmp_path: Path) -> None:
    """Batch norms in training mode, batch Dice, mixup off; two times two patches against four."""
    one, two = run_both(
        tiny, tmp_path, "tiny_segmentation", {"train.batch_size": 4}, {"train.batch_size": 2, "train.ema_decay": 0.0}
    )
    assert_alike(one, two)
    assert load_checkpoint(two / "checkpoints" / "last.pt")["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny_segmentation", {"train.norm_statistics": "frozen", "train.freeze": 0.3, "train.warmup": 0.1}),
        ("tiny_segmentation", {"train.norm_statistics": "reestimate", "train.ema_decay": 0.5}),
        ("tiny_segmentation", {"train.checkpoint_activations": True, "train.accumulate": 2}),
        ("tiny_classification", {}),
    ],
)
def test_two_processes_have_the_losses_of_one_under_other_options(
    name: str, options: dict[str, object], tiny: Path, tmp_path: Path
) -> None:
    half = 2 if name == "tiny_segmentation" else 4
    one, two = run_both(
        tiny, tmp_path, name, options | {"train.batch_size": 2 * half}, options | {"train.batch_size": half}
    )
    if "train.accumulate" not in options:
        # The head's batch norm takes away what the last biases add: their gradient is rounding, which Adam enlarges.
        assert_alike(one, two, with_weights=name != "tiny_classification")
    else:  # the parts of a step hold other patches: four and four, or two, two and two, two
        assert read_losses(two)[0] == pytest.approx(read_losses(one)[0], rel=1e-4)


def train_with_kill(number: int, values: Path, overrides: dict[str, object], prepared: Path, folder: Path) -> None:
    """Train undisturbed, and killed and resumed; dropout draws other numbers in each process."""
    task = load_task(values, overrides=overrides)
    train_task(task, prepared=prepared, run=folder / "whole", device="cpu")
    drawn = torch.rand(3)
    torch.save(drawn, folder / f"drawn{number}.pt")

    def stop_both(event: object) -> None:
        kill_after(3)(event)  # type: ignore[arg-type]

    try:
        train_task(task, prepared=prepared, run=folder / "resumed", device="cpu", on_event=stop_both)
    except (Killed, Medi3dError):
        (folder / f"stopped{number}").touch()


def resume_both(number: int, values: Path, overrides: dict[str, object], prepared: Path, folder: Path) -> None:
    task = load_task(values, overrides=overrides)
    train_task(task, prepared=prepared, run=folder / "resumed", device="cpu", resume=True)


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_end(tiny: Path, tmp_path: Path) -> None:
    name = "tiny_segmentation"
    overrides = {"train.threads": 1, "model.dropout": 0.3, "train.ema_decay": 0.9}
    arguments = (tiny / f"{name}.yaml", overrides, tiny / "prepared" / name, tmp_path)
    start_processes(2, train_with_kill, *arguments)
    assert (tmp_path / "stopped0").exists()
    assert start_processes(2, resume_both, *arguments) == [0, 0]
    one, two = (load_checkpoint(tmp_path / run / "checkpoints" / "last.pt") for run in ("whole", "resumed"))
    assert not differences(one, two)
    states = one["rng"]
    assert len(states) == 2
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])
    drawn = [torch.load(tmp_path / f"drawn{number}.pt") for number in range(2)]
    assert not torch.equal(*drawn)


def die_or_tell(number: int, values: Path, prepared: Path, folder: Path) -> None:
    """The second process is gone after its second step; the first says so."""
    from medi3d.train import trainer

    step = trainer.Trainer._train_step

    def train_step(self: object, batches: object) -> None:
        step(self, batches)  # type: ignore[arg-type]
        if number == 1 and self.step == 2:  # type: ignore[attr-defined]
            os._exit(9)

    trainer.Trainer._train_step = train_step  # type: ignore[assignment, method-assign]
    try:
        train_task(load_task(values, overrides=BASE), prepared=prepared, run=folder / "run", device="cpu")
    except Medi3dError as error:
        (folder / "told").write_text(str(error))
        raise SystemExit(1) from None


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_with_a_message(tiny: Path, tmp_path: Path) -> None:
    name = "tiny_segmentation"
    codes = start_processes(2, die_or_tell, tiny / f"{name}.yaml", tiny / "prepared" / name, tmp_path)
    assert codes == [1, 9]
    told = (tmp_path / "told").read_text()
    assert f"{tmp_path}/run: process 0 of 2 has lost another one (" in told
    assert f"`medi3d train --resume {tmp_path}/run` under the same launcher goes on" in told


def check_and_note(number: int, folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.bias, 0.5)
    processes.check_alike(model, accelerator)
    shapes = [(5,), (300, 40), (2, 3, 4, 5, 6)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in (*shapes, (4,))]
    for parameter, shape in zip(parameters, shapes, strict=False):
        torch.manual_seed(number + len(shape))
        parameter.grad = torch.randn(shape)
    parameters[2].grad = parameters[2].grad.contiguous(memory_format=torch.channels_last_3d)
    processes._BUCKET_BYTES = 10_000
    processes.average_gradients(parameters, accelerator)
    assert parameters[3].grad is None
    for parameter, shape in zip(parameters, shapes, strict=False):
        expected = torch.zeros(shape)
        for one in range(2):
            torch.manual_seed(one + len(shape))
            expected += torch.randn(shape) / 2
        torch.testing.assert_close(parameter.grad, expected)
    assert processes.agree_on(accelerator, float(number)) == 0.0
    nn.init.constant_(model.bias, float(number))
    with pytest.raises(Medi3dError, match="begin with different weights"):
        processes.check_alike(model, accelerator)
    (folder / f"checked{number}").touch()


def test_gradients_are_averaged_and_weights_compared(tmp_path: Path) -> None:
    assert start_processes(2, check_and_note, tmp_path) == [0, 0]
    assert len(list(tmp_path.glob("checked*"))) == 2


# --- without a second process


def test_errors_that_are_not_the_groups_are_let_be(tmp_path: Path) -> None:
    group = SimpleNamespace(num_processes=2, process_index=1)
    with pytest.raises(RuntimeError, match="sizes"), named_losses(group, tmp_path):  # type: ignore[arg-type]
        raise RuntimeError("sizes do not fit")
    with pytest.raises(Medi3dError, match="process 1 of 2 has lost another one"), named_losses(group, tmp_path):  # type: ignore[arg-type]
        raise RuntimeError("[gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:3120")
    alone = SimpleNamespace(num_processes=1, process_index=0)
    with pytest.raises(RuntimeError, match="gloo"), named_losses(alone, tmp_path):  # type: ignore[arg-type]
        raise RuntimeError("gloo is not there")


def test_a_launcher_that_started_one_process_for_several_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """accelerate starts several on CPUs only by MPI, and says nothing."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert create_accelerator(load_task("hippocampus"), "cpu").num_processes == 1
    assert "`accelerate launch --cpu` starts a single process" in caplog.text


def test_a_launcher_gives_each_process_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "find_device", torch.device)
    with pytest.raises(ConfigError, match=r"--device cuda:1: a launcher gives each process its own GPU"):
        create_accelerator(load_task("hippocampus"), "cuda:1")


def test_a_gpu_of_a_number_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one at hand: what accelerate is told."""
    told: dict[str, object] = {}
    monkeypatch.setattr(processes, "find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.update(set=device))
    monkeypatch.setattr(
        processes, "Accelerator", lambda **options: told.update(options, env=os.environ.get("ACCELERATE_TORCH_DEVICE"))
    )
    create_accelerator(load_task("hippocampus", overrides={"train.precision": "fp16"}), "cuda:1")
    assert (told["set"], told["env"]) == (torch.device("cuda:1"), "cuda:1")
    assert (told["cpu"], told["mixed_precision"]) == (False, "fp16")
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
