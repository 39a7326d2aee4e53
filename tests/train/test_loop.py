"""Training end to end on two tiny prepared stores."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError, InputError, Medi3dError, WeightsError
from medi3d.io.prepared import PreparedStore
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.train import loop, train_task
from medi3d.train.loop import TrainEvent, TrainResult

KINDS = ("segmentation", "classification")


@pytest.fixture
def tasks(segmentation_task: TaskConfig, classification_task: TaskConfig) -> dict[str, TaskConfig]:
    return {"segmentation": segmentation_task, "classification": classification_task}


def with_train(task: TaskConfig, **options: object) -> TaskConfig:
    return replace(task, train=replace(task.train, **options))  # type: ignore[arg-type]


def with_model(task: TaskConfig, **options: object) -> TaskConfig:
    return replace(task, model=replace(task.model, **options))  # type: ignore[arg-type]


@pytest.fixture
def train(tiny: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    def start(task: TaskConfig, run: str, **options: Any) -> TrainResult:
        prepared = options.pop("prepared", tiny / "prepared" / task.name)
        return train_task(task, prepared=prepared, run=tmp_path / run, device="cpu", **options)

    return start


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    state = load_checkpoint(run / "checkpoints" / f"{name}.pt")["model"]
    assert state
    return dict(state)


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


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


class Killed(Exception):
    """What a killed process would feel."""


def kill_after(step: int) -> Callable[[TrainEvent], None]:
    def on_event(event: TrainEvent) -> None:
        if event.step == step:
            raise Killed

    return on_event


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_resumed_run_ends_as_one_that_was_not(
    kind: str, step: int, tasks: dict[str, TaskConfig], train: Callable[..., TrainResult]
) -> None:
    """It is validated after steps 2 and 4; a kill after step 3 loses that step, which is done again."""
    task = with_model(tasks[kind], dropout=0.3)
    whole = train(task, "whole")
    with pytest.raises(Killed):
        train(task, "resumed", on_event=kill_after(step))
    resumed = train(task, "resumed", resume=True)
    assert resumed.steps == whole.steps == 4
    assert_equal(weights(resumed.run), weights(whole.run))
    assert_equal(weights(resumed.run, "best"), weights(whole.run, "best"))
    assert (resumed.last_score, resumed.best_score) == (whole.last_score, whole.best_score)
    columns = ("step", "learning_rate", "loss", "score")
    kept, expected = ([[row[name] for name in columns] for row in read_metrics(run.run)] for run in (resumed, whole))
    assert kept == expected


def test_resuming_a_finished_run_changes_nothing(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    first = train(segmentation_task, "run")
    before = weights(first.run)
    again = train(segmentation_task, "run", resume=True)
    assert (again.steps, again.last_score, again.best_score) == (first.steps, first.last_score, first.best_score)
    assert_equal(weights(again.run), before)


def test_a_run_without_a_checkpoint_cannot_be_resumed(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    with pytest.raises(Killed):
        train(segmentation_task, "run", on_event=kill_after(1))
    with pytest.raises(WeightsError, match=r"last\.pt: no such checkpoint"):
        train(segmentation_task, "run", resume=True)


def test_what_a_run_leaves(segmentation_task: TaskConfig, tiny: Path, train: Callable[..., TrainResult]) -> None:
    events: list[TrainEvent] = []
    result = train(segmentation_task, "run", fold=1, on_event=events.append)
    folder = RunFolder(result.run)
    assert folder.load_config() == segmentation_task
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
    assert all(float(row["loss"]) > 0 and 0 <= float(row["score"]) <= 1 for row in rows)
    assert float(rows[-1]["score"]) == result.last_score
    assert result.best_score == max(float(row["score"]) for row in rows)
    best = load_checkpoint(folder.best)
    assert best["score"] == result.best_score

    assert [event.step for event in events] == [1, 2, 3, 4]
    assert [event.progress for event in events] == [0.25, 0.5, 0.75, 1.0]
    assert events[0].score is None
    assert events[-1].score == result.last_score


def test_the_learning_rate_follows_the_schedule(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)
    task = with_train(segmentation_task, schedule="cosine", warmup=0.0, learning_rate=0.5, optimizer="sgd")
    result = train(with_train(task, learning_rate=1e-3), "run")
    rates = [float(row["learning_rate"]) for row in read_metrics(result.run)]
    assert rates == pytest.approx([1e-3 * 0.5 * (1 + np.cos(np.pi * k / 4)) for k in range(4)])


def test_norms_and_biases_do_not_decay(segmentation_task: TaskConfig) -> None:
    model = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.InstanceNorm3d(2, affine=True))
    decayed, kept = loop._create_optimizer(model, with_train(segmentation_task, weight_decay=0.3)).param_groups
    assert [p.ndim for p in decayed["params"]] == [5]
    assert decayed["weight_decay"] == 0.3
    assert len(kept["params"]) == 3
    assert kept["weight_decay"] == 0


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
    task = with_train(segmentation_task, budget="4s", steps=1, validations=2)
    result = train(task, "run")
    assert result.steps > 1
    assert 2 < result.seconds < 30
    assert len([row for row in read_metrics(result.run) if row["score"]]) == 2


def test_workers_change_nothing(segmentation_task: TaskConfig, train: Callable[..., TrainResult]) -> None:
    task = with_train(segmentation_task, steps=2, validations=1)
    one, two = train(task, "one"), train(with_train(task, workers=1), "two")
    assert_equal(weights(one.run), weights(two.run))


# --- what is refused


def test_a_loss_that_is_no_number_names_step_and_cases(
    segmentation_task: TaskConfig, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop, "create_loss", lambda task: lambda outputs, batch, progress: outputs.sum() * torch.nan
    )
    with pytest.raises(Medi3dError, match=r"loss nan at step 1, cases case_\d, case_\d; lower train\.learning_rate"):
        train(segmentation_task, "run")


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
    with pytest.raises(ConfigError, match="'soon' is no duration"):
        train(with_train(segmentation_task, budget="soon"), "run")
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


def test_an_unknown_device_is_refused(segmentation_task: TaskConfig, tiny: Path, tmp_path: Path) -> None:
    store = tiny / "prepared" / segmentation_task.name
    with pytest.raises(ConfigError, match=r"unknown device 'gpu'.* Known: auto, cpu"):
        train_task(segmentation_task, prepared=store, run=tmp_path / "run", device="gpu")


def test_classification_needs_two_cases_a_batch(
    classification_task: TaskConfig, train: Callable[..., TrainResult]
) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: .* at least 2"):
        train(with_train(classification_task, batch_size=1), "run")


# --- validation


def test_validation_scores_are_those_of_an_independent_count(
    segmentation_task: TaskConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medi3d.train import validate

    cases = PreparedStore(tiny / "prepared" / segmentation_task.name).cases()[:3]
    generator = torch.Generator().manual_seed(0)
    answers = [torch.randn(3, *case.shape, generator=generator) for case in cases]
    monkeypatch.setattr(validate, "predict_logits", lambda model, image, task: answers.pop(0))
    expected: dict[int, list[float]] = {1: [], 2: []}
    for case, logits in zip(cases, list(answers), strict=True):
        stored = case.label()
        assert stored is not None
        truth, found = np.asarray(stored[:])[0], logits.argmax(0).numpy()
        for label, scores in expected.items():
            scores.append(
                2 * ((truth == label) & (found == label)).sum() / ((truth == label).sum() + (found == label).sum())
            )
    score = validate.validate(torch.nn.Linear(1, 1), cases, segmentation_task)
    assert score == pytest.approx(np.mean([np.mean(scores) for scores in expected.values()]), rel=1e-6)


def test_validation_leaves_the_mode_of_the_model(
    segmentation_task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medi3d.train import validate

    seen = []
    model = torch.nn.Linear(1, 1)
    monkeypatch.setattr(validate, "_mean_dice", lambda model, cases, task: seen.append(model.training) or 0.5)
    for mode in (True, False):
        model.train(mode)
        assert validate.validate(model, [], segmentation_task) == 0.5
        assert model.training is mode
    assert seen == [False, False]


def test_area_under_the_curve_of_two_and_of_three_classes(
    classification_task: TaskConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medi3d.train import validate

    cases = PreparedStore(tiny / "prepared" / classification_task.name).cases()[:4]
    assert [case.target for case in cases] == [0, 1, 0, 1]
    answers = [torch.tensor(values) for values in ([2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0])]
    monkeypatch.setattr(validate, "predict_logits", lambda model, image, task: answers.pop(0))
    # of the four pairs of a dark and a bright case, the second of two bright ones wins both of its own
    assert validate.validate(torch.nn.Linear(1, 1), cases, classification_task) == pytest.approx(0.5)

    three = replace(classification_task, data=replace(classification_task.data, classes=("a", "b", "c")))
    relabelled = [replace(case, target=n % 3) for n, case in enumerate(cases)]
    answers += [torch.eye(3)[n % 3] for n in range(4)]
    assert validate.validate(torch.nn.Linear(1, 1), relabelled, three) == 1.0


def test_one_class_has_no_area_under_the_curve(
    classification_task: TaskConfig, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    from medi3d.train import validate

    cases = PreparedStore(tiny / "prepared" / classification_task.name).cases()[:1]
    monkeypatch.setattr(validate, "predict_logits", lambda model, image, task: torch.zeros(2))
    assert np.isnan(validate.validate(torch.nn.Linear(1, 1), cases, classification_task))
