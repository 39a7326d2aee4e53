"""Training end to end on two tiny prepared stores: what a run does and leaves, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import assert_equal, read_metrics, weights, with_model, with_train
from torch import Tensor

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError, InputError, Medi3dError, MissingDependencyError, WeightsError
from medi3d.io.prepared import PreparedStore
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.train import loop, train_task, trainer
from medi3d.train.loop import TrainEvent, TrainResult

KINDS = ("segmentation", "classification")


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_are_the_same_bit_for_bit(
    kind: str, tasks: dict[str, TaskConfig], train: Callable[..., TrainResult]
) -> None:
    task = with_model(tasks[kind], dropout=0.3)
    first = train(task, "first")
    torch.manual_seed(12345)
    torch.rand(7)
    second = train(task, "second")
    assert_equal(weights(first.run), weights(second.run))
    assert first.last_score == second.last_score
    other = train(with_train(task, seed=1), "other")
    assert any(not torch.equal(t, weights(other.run)[name]) for name, t in weights(first.run).items())


def test_runs_of_other_seeds_may_hold_out_the_same_cases(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    task = with_train(segmentation_task, steps=1, validations=1, cases=3)
    first = train(task, "first")
    splits = {
        seed: RunFolder(train(with_train(task, seed=seed, split_seed=0), f"seed{seed}").run).load_split()
        for seed in (1, 2)
    }
    alone = RunFolder(train(with_train(task, seed=1), "alone").run).load_split()
    own = RunFolder(first.run).load_split()
    assert splits == {1: own, 2: own}
    assert alone != own
    assert any(
        not torch.equal(tensor, weights(first.run.with_name("seed1"))[name])
        for name, tensor in weights(first.run).items()
    )


def test_what_a_run_leaves(segmentation_task: TaskConfig, tiny: Path, train: Callable[..., TrainResult]) -> None:
    events: list[TrainEvent] = []
    result = train(segmentation_task, "run", fold=1, on_event=events.append)
    folder = RunFolder(result.run)
    planned = folder.load_config()
    assert planned.model.depth_plan is not None
    assert planned.learning_rate > 0
    assert with_model(planned, depth_plan=None) == with_train(segmentation_task, learning_rate=planned.learning_rate)
    assert folder.load_prepared() == (tiny / "prepared" / segmentation_task.name).resolve()
    split = folder.load_split()
    assert len(split.train) == 4
    assert len(split.validation) == 2
    facts = json.loads((result.run / "environment.json").read_text())
    store = PreparedStore(tiny / "prepared" / segmentation_task.name)
    assert facts["data_fingerprint"] == store.fingerprint_hash
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in facts["versions"]["torch"]
    assert list((result.run / "tensorboard").glob("events.*"))

    rows = read_metrics(result.run)
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(0 <= float(row["waiting"]) <= 1 and float(row["patches_per_second"]) > 0 for row in rows)
    assert all(float(row["loss"]) > 0 and 0 <= float(row["score"]) <= 1 for row in rows)
    assert float(rows[-1]["score"]) == result.last_score
    assert result.best_score == max(float(row["score"]) for row in rows)
    best = load_checkpoint(folder.best)
    assert best["score"] == result.best_score

    assert [event.step for event in events] == [1, 2, 3, 4]
    assert [event.steps for event in events] == [4] * 4
    assert all(event.budget_s is None and event.patches_per_second > 0 and event.memory_gb > 0 for event in events)
    assert [event.eta_s == 0 for event in events] == [False, False, False, True]
    assert [event.progress for event in events] == [0.25, 0.5, 0.75, 1.0]
    assert events[0].score is None
    assert events[-1].score == result.last_score


def test_the_learning_rate_follows_the_schedule(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    task = with_train(segmentation_task, schedule="cosine", warmup=0.0, learning_rate=1e-3, optimizer="sgd")
    result = train(task, "run")
    rates = [float(row["learning_rate"]) for row in read_metrics(result.run)]
    assert rates == pytest.approx([1e-3 * 0.5 * (1 + np.cos(np.pi * k / 4)) for k in range(4)])


def test_training_learns(tasks: dict[str, TaskConfig], train: Callable[..., TrainResult]) -> None:
    """Bright and dark balls differ so much that a minute network finds them soon."""
    events: list[TrainEvent] = []
    task = with_train(tasks["segmentation"], steps=60, validations=1, learning_rate=1e-2, batch_size=4)
    result = train(task, "run", on_event=events.append)
    assert np.mean([event.loss for event in events[-5:]]) < 0.7 * events[0].loss
    assert result.best_score > 0.3


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precisions_may_follow_one_another_in_a_process(
    precision: str, segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    result = train(with_train(segmentation_task, steps=1, validations=1, precision=precision), "run")
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(result.run).values())


def test_a_budget_ends_the_run(segmentation_task: TaskConfig, train: Callable[..., TrainResult]) -> None:
    task = with_train(segmentation_task, budget="2s", steps=1, validations=2)
    result = train(task, "run")
    assert result.steps > 1
    assert 1 < result.seconds < 30
    assert len([row for row in read_metrics(result.run) if row["score"]]) == 2


def test_workers_change_nothing(segmentation_task: TaskConfig, train: Callable[..., TrainResult]) -> None:
    task = with_train(segmentation_task, steps=2, validations=1)
    one, two = train(task, "one"), train(with_train(task, workers=1), "two")
    assert_equal(weights(one.run), weights(two.run))


def test_parts_of_a_batch_make_the_same_step_as_the_whole(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    """Without statistics and sums over the batch, two parts of one patch have the mean loss and gradient of both."""
    task = with_train(segmentation_task, loss="cross_entropy", norm_statistics="frozen", optimizer="sgd", steps=3)
    seen: dict[str, list[float]] = {"whole": [], "parts": []}
    for name, change in {"whole": {"batch_size": 2}, "parts": {"batch_size": 1, "accumulate": 2}}.items():
        changed = with_train(task, learning_rate=1e-2, validations=1, **change)
        train(changed, name, on_event=lambda event, name=name: seen[name].append(event.loss))
    assert seen["parts"] == pytest.approx(seen["whole"], rel=1e-5)
    assert len(set(seen["whole"])) == 3


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"checkpoint_activations": True}])
def test_losses_are_those_of_plain_training(
    change: dict[str, object], segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    task = with_train(segmentation_task, learning_rate=1e-3, validations=1)
    plain: list[float] = []
    changed: list[float] = []
    train(task, "plain", on_event=lambda event: plain.append(event.loss))
    train(with_train(task, **change), "changed", on_event=lambda event: changed.append(event.loss))
    assert changed == pytest.approx(plain, rel=2e-2 if "precision" in change else 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own deprecations
def test_losses_of_compiled_training_are_those_of_plain_training(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    task = with_train(segmentation_task, learning_rate=1e-3, validations=1, steps=3)
    plain: list[float] = []
    changed: list[float] = []
    train(task, "plain", on_event=lambda event: plain.append(event.loss))
    result = train(with_train(task, compile=True), "changed", on_event=lambda event: changed.append(event.loss))
    assert changed == pytest.approx(plain, rel=1e-4)
    assert weights(result.run).keys() == weights(result.run.with_name("plain")).keys()


def test_the_average_is_validated_and_kept(segmentation_task: TaskConfig, train: Callable[..., TrainResult]) -> None:
    result = train(with_train(segmentation_task, ema_decay=0.9, learning_rate=1e-2), "run")
    averaged, trained = weights(result.run), weights(result.run, key="trained")
    assert averaged.keys() == trained.keys()
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in averaged.items())
    best = load_checkpoint(result.run / "checkpoints" / "best.pt")
    if best["step"] == result.steps:
        assert_equal(best["model"], averaged)
    assert "trained" not in best


def test_a_frozen_encoder_stays_and_then_learns(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], tmp_path: Path
) -> None:
    """Of four steps the first two are with a frozen encoder; each is validated, and so saved."""
    task = with_train(segmentation_task, freeze=0.5, warmup=0.0, learning_rate=1e-2, validations=4)
    kept: list[dict[str, Tensor]] = []
    train(task, "run", on_event=lambda event: kept.append(weights(tmp_path / "run")))
    changed = [
        {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])} for one, two in pairwise(kept)
    ]
    assert changed == [{"blocks", "head"}, {"encoder", "blocks", "head"}, {"encoder", "blocks", "head"}]


# --- what is refused


def test_a_loss_that_is_no_number_names_step_and_cases(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "create_loss", lambda task: lambda outputs, batch, progress: outputs.sum() * torch.nan)
    with pytest.raises(Medi3dError, match=r"step 1, cases case_\d, case_\d: the loss is nan; .*--learning-rate"):
        train(segmentation_task, "run")


def test_memory_that_does_not_suffice_names_the_next_smaller_plan(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(self: object, batches: object) -> None:
        try:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        except RuntimeError as error:
            raise Medi3dError("'blocks.1' cannot run on a volume") from error

    monkeypatch.setattr(trainer.Trainer, "_train_step", run_out)
    with pytest.raises(Medi3dError, match=r"out of memory with 2 patches of 8 × 10 × 9 voxels .*; train again with --"):
        train(segmentation_task, "run")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", r"unknown device 'gpu'.* Known: auto, cpu, cuda"),
        ("cuda:7", r"device cuda:7: torch sees (no GPU|\d GPUs) here; take auto"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    device: str, message: str, segmentation_task: TaskConfig, tiny: Path, tmp_path: Path
) -> None:
    store = tiny / "prepared" / segmentation_task.name
    with pytest.raises(ConfigError, match=message):
        train_task(segmentation_task, prepared=store, run=tmp_path / "run", device=device)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"precision": "fp16"}, ConfigError, r"train\.precision: fp16 needs a GPU; take bf16, or no"),
        (
            {"compile": True, "checkpoint_activations": True},
            ConfigError,
            r"train\.compile: .*leave train\.checkpoint_activations out",
        ),
        ({"compile": True}, MissingDependencyError, r"train\.compile: .*C\+\+ compiler"),
    ],
)
def test_options_that_cannot_be_had_are_refused(
    change: dict[str, object],
    error: type[Medi3dError],
    message: str,
    segmentation_task: TaskConfig,
    train: Callable[..., TrainResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop.shutil, "which", lambda name: None)
    with pytest.raises(error, match=message):
        train(with_train(segmentation_task, **change), "run")
    assert not (tmp_path / "run").exists()


def test_a_store_of_another_task_is_refused(
    tasks: dict[str, TaskConfig], tiny: Path, train: Callable[..., TrainResult]
) -> None:
    stores = {kind: tiny / "prepared" / task.name for kind, task in tasks.items()}
    with pytest.raises(InputError, match=r"tiny_classification: .*medi3d preprocess --task"):
        train(tasks["segmentation"], "run", prepared=stores["classification"])
    with pytest.raises(InputError, match=r"tiny_segmentation: .*medi3d preprocess --task"):
        train(tasks["classification"], "run", prepared=stores["segmentation"])


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("preprocess", {"spacing_mm": (1.0, 1.0, 1.0)}, r"preprocess\.spacing_mm"),
        ("preprocess", {"normalize": ("none",)}, r"preprocess\.normalize"),
        ("data", {"labels": {1: "bright"}}, r"data\.labels"),
        ("data", {"channels": ("T1", "T2")}, r"data\.channels"),
        ("data", {"ignore_label": 255}, r"data\.ignore_label"),
    ],
)
def test_a_store_that_was_prepared_with_other_settings_is_refused(
    section: str,
    change: dict[str, object],
    named: str,
    segmentation_task: TaskConfig,
    train: Callable[..., TrainResult],
    tmp_path: Path,
) -> None:
    """Prediction would prepare by the run's settings what was trained on others."""
    values = replace(getattr(segmentation_task, section), **change)
    task = replace(segmentation_task, **{section: values})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"prepared with {named} .*, the task has .*medi3d preprocess"):
        train(task, "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_store_is_refused(segmentation_task: TaskConfig, tmp_path: Path, train: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="no finished prepared data here; run `medi3d preprocess`"):
        train(segmentation_task, "run", prepared=tmp_path / "nothing")


def test_a_run_folder_that_is_taken_is_refused(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    result = train(with_train(segmentation_task, steps=1, validations=1), "run")
    before = weights(result.run)
    with pytest.raises(InputError, match="run: already holds a run; give another --name, or --resume it"):
        train(segmentation_task, "run")
    assert_equal(weights(result.run), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backbone": "resnet81"}, ConfigError, "unknown backbone 'resnet81'"),
        ({"init": "imagenet"}, ConfigError, "unknown init 'imagenet'"),
        ({"init": "nowhere/last.pt"}, WeightsError, "no such weights file"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_folder(
    change: dict[str, str],
    error: type[Medi3dError],
    message: str,
    segmentation_task: TaskConfig,
    train: Callable[..., TrainResult],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        train(with_model(segmentation_task, **change), "run")
    assert not (tmp_path / "run").exists()


def test_cases_that_went_after_the_run_began_are_named(
    segmentation_task: TaskConfig, tiny: Path, tmp_path: Path, train: Callable[..., TrainResult]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny / "prepared" / segmentation_task.name, store)
    train(with_train(segmentation_task, steps=1, validations=1), "run", prepared=store)
    dataset = json.loads((store / "dataset.json").read_text())
    dataset["cases"].remove("case_3")
    (store / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(InputError, match="1 cases of the run are gone, case_3 first; prepare them again"):
        train(segmentation_task, "run", prepared=store, resume=True)


def test_classification_needs_two_cases_a_batch(
    classification_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: .* at least 2"):
        train(with_train(classification_task, batch_size=1), "run")
