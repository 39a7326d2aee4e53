"""Pretraining on several tasks: the engine of a single run, one encoder, and nothing of what is held out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    Killed,
    differences,
    kill_after,
    read_losses,
    read_metrics,
    start_processes,
    weights,
    with_model,
    with_train,
)

from medi3d.config import PretrainConfig, TaskConfig, load_task
from medi3d.data.splits import split_cases
from medi3d.errors import ConfigError, InputError
from medi3d.export import export_pretrained, export_run_encoder
from medi3d.io.prepared import PreparedStore
from medi3d.models import create_encoder
from medi3d.models.multitask import create_networks, merge_encoders
from medi3d.models.shared import read_card
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.pretraining import PretrainingFolder
from medi3d.study.pretraining import pretrain_encoder
from medi3d.train import trainer
from medi3d.train.events import TrainEvent, TrainResult
from medi3d.train.health import as_flags
from medi3d.train.pretrain import plan_pretraining, pretrain

Pretrain = Callable[..., TrainResult]


@pytest.fixture
def mixed(segmentation_task: TaskConfig, classification_task: TaskConfig) -> PretrainConfig:
    """A segmentation of two stages and a classification of three, three steps each."""
    tasks = (segmentation_task, with_model(classification_task, stages=3))
    return PretrainConfig(tuple(with_train(task, steps=6, learning_rate=3e-3) for task in tasks))


@pytest.fixture
def start(tiny: Path, tmp_path: Path) -> Pretrain:
    def run(config: PretrainConfig, name: str, **options: object) -> TrainResult:
        prepared = {task.name: tiny / "prepared" / task.name for task in config.tasks}
        prepared |= options.pop("prepared", {})  # type: ignore[arg-type]
        return pretrain(config, prepared=prepared, run=tmp_path / name, device="cpu", **options)  # type: ignore[arg-type]

    return run


def note(events: list[TrainEvent]) -> Callable[[TrainEvent], None]:
    return lambda event: events.append(event)


# --- against runs of one task


def test_one_task_is_trained_as_medi3d_train_does(
    segmentation_task: TaskConfig, start: Pretrain, train: Callable[..., TrainResult]
) -> None:
    """Losses, scores and weights to the last bit."""
    alone: list[TrainEvent] = []
    together: list[TrainEvent] = []
    first = train(segmentation_task, "alone", on_event=note(alone))
    second = start(PretrainConfig((segmentation_task,)), "together", on_event=note(together))
    assert [event.loss for event in together] == [event.loss for event in alone]
    assert not differences(weights(second.run), weights(first.run))
    assert (second.last_score, second.scores) == (first.last_score, {segmentation_task.name: first.last_score})


def test_the_first_step_of_several_is_that_of_the_first_task(
    mixed: PretrainConfig, start: Pretrain, train: Callable[..., TrainResult]
) -> None:
    """Where it has the most stages, its weights are drawn as they would be alone, and the same patches are read."""
    mixed = replace(mixed, tasks=(mixed.tasks[0], with_model(mixed.tasks[1], stages=2)))
    alone: list[TrainEvent] = []
    together: list[TrainEvent] = []
    train(mixed.tasks[0], "alone", on_event=note(alone))
    start(mixed, "together", on_event=note(together))
    assert together[0].loss == alone[0].loss
    assert together[1].loss != alone[1].loss


def test_the_loss_of_a_task_counts_by_its_weight(mixed: PretrainConfig, start: Pretrain) -> None:
    """The table tells losses as they are; SGD's steps go with the weight."""
    sgd = tuple(
        with_train(task, optimizer="sgd", steps=1, validations=1, warmup=0.0, weight_decay=0.0) for task in mixed.tasks
    )
    plain = start(replace(mixed, tasks=sgd), "plain")
    heavy = start(replace(mixed, tasks=sgd, loss_weights={sgd[0].name: 2.0}), "heavy")
    assert read_metrics(plain.run)[-1]["loss"] == read_metrics(heavy.run)[-1]["loss"]
    torch.manual_seed(0)
    begun = create_networks([with_model(task, init="random") for task in sgd]).state_dict()
    key = "0.head.1.weight"
    one, two = (weights(result.run)[key] - begun[key] for result in (plain, heavy))
    assert one.abs().max() > 0
    torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=1e-7)


# --- the run


def test_both_kinds_are_trained_and_told_by_task(mixed: PretrainConfig, start: Pretrain) -> None:
    result = start(mixed, "run")
    names = [task.name for task in mixed.tasks]
    row = read_metrics(result.run)[-1]
    assert list(result.scores) == names
    scores = [float(row[f"score/{name}"]) for name in names]
    assert scores == list(result.scores.values())
    assert float(row["score"]) == result.last_score == sum(scores) / 2
    assert all(float(row[f"loss/{name}"]) > 0 for name in names)
    state = weights(result.run)
    # three batches each: the norms of both tasks have counted their own
    counted = {key: int(value) for key, value in state.items() if key.endswith("conv_stem_bn.num_batches_tracked")}
    counted |= {key: int(value) for key, value in state.items() if key.endswith("body.bn1.num_batches_tracked")}
    assert set(counted.values()) == {3}
    assert len(counted) == 2
    shared = "encoder.body.body.conv_stem.weight"
    assert torch.equal(state[f"0.{shared}"], state[f"1.{shared}"])


@pytest.mark.parametrize("step", [3, 5])
def test_a_killed_pretraining_ends_as_one_that_was_not(step: int, mixed: PretrainConfig, start: Pretrain) -> None:
    """It is saved after steps 3 and 6, in the middle of a round of tasks."""
    options = {"ema_decay": 0.9, "accumulate": 3, "norm_statistics": "reestimate"} if step == 3 else {}
    tasks = tuple(with_train(with_model(task, dropout=0.3), **options) for task in mixed.tasks)
    config = replace(mixed, tasks=tasks, sampling={tasks[0].name: 3.0, tasks[1].name: 1.0})
    whole = start(config, "whole")
    with pytest.raises(Killed):
        start(config, "resumed", on_event=kill_after(step))
    torch.rand(5)
    resumed = start(PretrainingFolder(whole.run.parent / "resumed").load_pretraining(), "resumed", resume=True)
    for name in ("last", "best"):
        states = [load_checkpoint(result.run / "checkpoints" / f"{name}.pt") for result in (whole, resumed)]
        states = [{key: value for key, value in state.items() if key != "cpu_seconds"} for state in states]
        assert not differences(*states, name)
    columns = [name for name in read_metrics(whole.run)[0] if name.partition("/")[0] in ("step", "loss", "score")]
    assert len(columns) == 7
    tables = [[[row[name] for name in columns] for row in read_metrics(one.run)] for one in (whole, resumed)]
    assert tables[0] == tables[1]
    noted = json.loads((resumed.run / "tasks" / tasks[1].name / "environment.json").read_text())["resumptions"]
    assert [entry["step"] for entry in noted] == [3]


# --- what is held out


def test_held_out_cases_are_those_of_each_tasks_own_runs(
    mixed: PretrainConfig, start: Pretrain, train: Callable[..., TrainResult], tiny: Path
) -> None:
    splits = PretrainingFolder(start(mixed, "run", fold=1).run).load_splits()
    for task in mixed.tasks:
        cases = PreparedStore(tiny / "prepared" / task.name).cases()
        expected = split_cases(cases, folds=task.train.folds, fold=1, seed=task.train.seed)
        assert splits[task.name] == expected
        assert set(expected.train).isdisjoint(expected.validation)


def test_who_is_held_out_in_one_task_is_trained_on_in_none(
    segmentation_task: TaskConfig, start: Pretrain, tiny: Path
) -> None:
    """The same patients in two tasks with other folds: 2 of 6 held out in one, 3 of 6 in the other."""
    other = with_train(replace(segmentation_task, name="other"), folds=2)
    config = PretrainConfig((segmentation_task, other))
    stores = {name: tiny / "prepared" / segmentation_task.name for name in (segmentation_task.name, "other")}
    splits = PretrainingFolder(start(config, "run", prepared=stores).run).load_splits()
    held_out = {case for split in splits.values() for case in split.validation}
    assert [len(splits[name].validation) for name in stores] == [2, 3]
    for name, folds in ((segmentation_task.name, 3), ("other", 2)):
        own = split_cases(PreparedStore(stores[name]).cases(), folds=folds, fold=0, seed=0)
        assert splits[name].validation == own.validation
        assert set(splits[name].train) == set(own.train) - held_out
    assert any(len(splits[name].train) < 6 - len(splits[name].validation) for name in stores)


def test_a_task_without_anyone_left_is_refused(segmentation_task: TaskConfig, start: Pretrain, tiny: Path) -> None:
    """The one case that a task is trained on is held out by the other."""
    first = with_train(replace(segmentation_task, name="a"), folds=2)
    second = with_train(replace(segmentation_task, name="b"), folds=6, cases=1)
    stores = dict.fromkeys("ab", tiny / "prepared" / segmentation_task.name)
    cases = PreparedStore(stores["a"]).cases()
    held_out = split_cases(cases, folds=2, fold=0, seed=0).validation
    assert set(split_cases(cases, folds=6, fold=0, seed=0, train_cases=1).train) <= set(held_out), "take another seed"
    with pytest.raises(InputError, match="every patient of its training cases is held out in another task"):
        start(PretrainConfig((first, second)), "run", prepared=stores)


# --- the encoder


def test_the_encoder_is_the_runs_and_an_init_for_its_tasks(
    mixed: PretrainConfig, tiny: Path, tmp_path: Path, train: Callable[..., TrainResult]
) -> None:
    prepared = {task.name: tiny / "prepared" / task.name for task in mixed.tasks}
    written: dict[int, Path] = {}
    run = tmp_path / "run"
    pretrain_encoder(
        mixed,
        prepared=prepared,
        run=run,
        device="cpu",
        licence="CC0-1.0",
        on_encoder=lambda channels, folder: written.update({channels: folder}),
    )
    assert written == {1: run / "encoder"}
    networks = create_networks(mixed.tasks)
    networks.load_state_dict(weights(run))
    encoder = create_encoder(str(written[1]))
    x = torch.randn(4, 1, 8, 8, 8)
    for network in networks:  # normalised by the batch, each task's encoder answers as it does
        for mine, own in zip(encoder.train()(x), network.encoder.train()(x), strict=False):
            assert torch.equal(mine, own)
    merged = merge_encoders(mixed.tasks, weights(run), (1.0, 1.0), channels=1)
    exported = create_encoder(str(written[1]))
    assert all(torch.equal(merged.state_dict()[name], value) for name, value in exported.state_dict().items())

    card = read_card(written[1])
    assert card["licence"] == "CC0-1.0"
    assert list(card["training_data"]) == [task.name for task in mixed.tasks]
    cases = len(PretrainingFolder(run).load_splits()[mixed.tasks[0].name].train)
    assert f"segmentation of {cases} cases" in card["training_data"][mixed.tasks[0].name]
    assert "50% of the batches" in card["training_data"][mixed.tasks[0].name]
    assert (card["input"]["spacing_mm"], card["input"]["normalize"]) == ([2.0, 2.0, 2.0], ["mr"])
    assert "case_" not in (written[1] / "card.json").read_text()

    for task in mixed.tasks:  # of two stages, and of three
        start = with_train(with_model(task, init=f"{written[1]}/"), steps=1, learning_rate=1e-12, validations=1)
        begun = weights(train(start, f"tuned-{task.kind}").run)
        same = {name: value for name, value in begun.items() if name.startswith("encoder.") and "num_" not in name}
        for name, value in exported.state_dict().items():
            if "running" not in name and f"encoder.{name}" in same:
                torch.testing.assert_close(same[f"encoder.{name}"], value, rtol=0, atol=1e-9)
    again = export_run_encoder(run, tmp_path / "again", checkpoint="last")
    assert (again / "encoder.safetensors").read_bytes() == (written[1] / "encoder.safetensors").read_bytes()


def test_fewer_stages_than_the_encoder_has_are_taken_and_more_are_not(tmp_path: Path) -> None:
    from medi3d.errors import WeightsError
    from medi3d.export import export_encoder

    deep = create_encoder("tf_efficientnet_lite0", init="random", stages=3)
    folder = export_encoder(deep, tmp_path / "deep", init="random")
    shallow = create_encoder("tf_efficientnet_lite0", init=f"{folder}/", stages=2)
    assert all(torch.equal(value, deep.state_dict()[name]) for name, value in shallow.state_dict().items())
    assert shallow.report is not None
    assert "of a stage after the last one that is used" in str(shallow.report)
    with pytest.raises(WeightsError, match="the file has no such tensor"):
        create_encoder("tf_efficientnet_lite0", init=f"{folder}/", stages=4)


# --- refusals


def test_what_cannot_be_trained_together_is_refused(
    mixed: PretrainConfig, start: Pretrain, tiny: Path, tmp_path: Path
) -> None:
    first, second = mixed.tasks
    with pytest.raises(ConfigError, match="tiny_segmentation is named twice"):
        PretrainConfig((first, first))
    with pytest.raises(ConfigError, match="name one at least"):
        PretrainConfig(())
    with pytest.raises(ConfigError, match="sampling: expected balanced, proportional, or a number above 0 for each"):
        PretrainConfig(mixed.tasks, sampling="balancd")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sampling: no weight for tiny_classification"):
        PretrainConfig(mixed.tasks, sampling={first.name: 1.0})
    with pytest.raises(ConfigError, match=r"loss_weights: unknown task 'other'.*tiny_segmentation"):
        PretrainConfig(mixed.tasks, loss_weights={"other": 1.0})
    with pytest.raises(ConfigError, match=r"need one train.optimizer: adamw in tiny_segm.*sgd in tiny_class.*--set"):
        start(replace(mixed, tasks=(first, with_train(second, optimizer="sgd"))), "run")
    with pytest.raises(InputError, match="no finished prepared data here"):
        start(mixed, "run", prepared={second.name: tmp_path / "absent"})
    labels = replace(first, data=replace(first.data, labels={1: "bright", 2: "grey"}))
    with pytest.raises(InputError, match=r"prepared with data.labels .*dark.*the task has .*grey"):
        start(replace(mixed, tasks=(labels, second)), "run")
    with pytest.raises(InputError, match="tiny_classification: 6 patients cannot be split into 9 folds"):
        start(replace(mixed, tasks=(first, with_train(second, folds=9))), "run")
    assert not (tmp_path / "run").exists()


def test_a_pretraining_goes_on_with_its_own_tasks(mixed: PretrainConfig, start: Pretrain) -> None:
    short = replace(mixed, tasks=tuple(with_train(task, steps=2, validations=1) for task in mixed.tasks))
    run = start(short, "run").run
    with pytest.raises(InputError, match="already holds a run"):
        start(short, "run")
    with pytest.raises(ConfigError, match="a pretraining with tasks tiny_segmentation, tiny_classification, and"):
        start(replace(short, tasks=short.tasks[:1]), "run", resume=True)
    with pytest.raises(ConfigError, match="a pretraining with sampling balanced, and proportional is asked for"):
        start(replace(short, sampling="proportional"), "run", resume=True)
    with pytest.raises(InputError, match="no pretraining here"):
        start(short, "absent", resume=True)
    with pytest.raises(ConfigError, match=r"no task has volumes of 2 channels; choose of \[1\]"):
        export_pretrained(run, run / "other", channels=2)


def test_a_smaller_plan_is_told_for_the_task_that_needs_it() -> None:
    """What the tasks share goes for all of them."""
    smaller = {"train.patch_size": (16, 24, 16), "train.checkpoint_activations": True}
    flags = "--set liver.train.patch_size=[16,24,16] --set train.checkpoint_activations=true"
    assert as_flags(smaller, task="liver") == flags
    assert load_task("hippocampus", overrides={"train.patch_size": "[16,24,16]"}).patch_size == (16, 24, 16)


def test_far_apart_voxels_are_warned_of(mixed: PretrainConfig, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = mixed.tasks
    far = replace(second, preprocess=replace(second.preprocess, spacing_mm=(5.0, 2.0, 2.0)))
    prepared = {task.name: tiny / "prepared" / task.name for task in mixed.tasks}
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match=r"prepared with preprocess\.spacing_mm"):
        plan_pretraining(replace(mixed, tasks=(first, far)), prepared=prepared, device="cpu")
    assert "the same structure is of another size" in caplog.text
    caplog.clear()
    plans, parts = plan_pretraining(replace(mixed, sampling="proportional"), prepared=prepared, device="cpu")
    assert not caplog.text
    assert [part.share for part in parts] == [len(part.train) for part in parts]
    assert len(plans) == 2


def test_an_encoder_that_has_seen_what_a_run_holds_out_is_warned_of(
    mixed: PretrainConfig,
    start: Pretrain,
    train: Callable[..., TrainResult],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    short = replace(mixed, tasks=tuple(with_train(task, steps=2, validations=1) for task in mixed.tasks))
    folder = export_pretrained(start(short, "run").run, tmp_path / "encoder")
    tuned = with_model(short.tasks[0], init=f"{folder}/")
    for fold, name, seen in ((0, "same", False), (1, "other", True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            train(tuned, name, fold=fold)
        assert ("it has seen cases that this run validates on, and" in caplog.text) is seen
    caplog.clear()
    train(replace(with_train(tuned, seed=1)), "another seed")
    assert "trained on this task with fold 0, seed 0, folds 3 held out" in caplog.text


def pretrain_and_note(number: int, tasks: list[Path], overrides: dict[str, object], prepared: Path, run: Path) -> None:
    """Pretrain as one of the processes; the losses of all steps go to a file beside the run."""
    losses: list[float] = []
    config = PretrainConfig(tuple(load_task(path, overrides=overrides) for path in tasks))
    stores = {task.name: prepared / task.name for task in config.tasks}
    pretrain(config, prepared=stores, run=run, device="cpu", on_event=lambda event: losses.append(event.loss))
    if number == 0:
        run.with_suffix(".losses").write_text("\n".join(map(repr, losses)))


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_whole_batches(tiny: Path, tmp_path: Path) -> None:
    tasks = [tiny / f"tiny_{kind}.yaml" for kind in ("segmentation", "classification")]
    base = {"train.steps": 8, "train.learning_rate": 3e-3, "train.validations": 1, "train.threads": 1}
    prepared = tiny / "prepared"
    pretrain_and_note(0, tasks, base | {"train.batch_size": 4}, prepared, tmp_path / "one")
    arguments = (tasks, base | {"train.batch_size": 2}, prepared, tmp_path / "two")
    assert start_processes(2, pretrain_and_note, *arguments) == [0, 0]
    one, two = read_losses(tmp_path / "one"), read_losses(tmp_path / "two")
    assert len(one) == 8
    assert two == pytest.approx(one, rel=1e-4)
    assert abs(one[-1] - one[0]) > 1e-3


def test_a_budget_that_goes_to_the_validation_is_warned_of(
    mixed: PretrainConfig, start: Pretrain, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases of 2 s each: of every task one is timed, and all of both are held back."""
    tasks = tuple(with_train(task, budget="20s", validations=1) for task in mixed.tasks)
    clock = {"now": 0.0}
    predict = trainer.validate

    def slowly(*arguments: object, **options: object) -> object:
        clock["now"] += 2
        return predict(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(trainer, "validate", slowly)

    def tick(event: TrainEvent) -> None:
        clock["now"] += 5

    with caplog.at_level(logging.WARNING):
        splits = PretrainingFolder(start(replace(mixed, tasks=tasks), "short", on_event=tick).run).load_splits()
    held_out = sum(len(split.validation) for split in splits.values())
    assert f"takes about {2 * held_out} of the 20 s of train.budget" in caplog.text
