"""The training loop, on accelerate: one process or many, CPU or GPU, full or mixed precision."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import nn

from medi3d.config import TaskConfig, dump_task, parse_duration
from medi3d.data.augment import Augmenter
from medi3d.data.loader import PatchLoader
from medi3d.data.patches import PatchDataset
from medi3d.data.splits import split_cases
from medi3d.errors import ConfigError, InputError, Medi3dError
from medi3d.io.prepared import PreparedCase, PreparedStore
from medi3d.models.build import create_model
from medi3d.planning import Plan, plan_task, write_plan
from medi3d.registry import unknown_name_message
from medi3d.runs.checkpoint import load_checkpoint, save_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.train.losses import create_loss
from medi3d.train.schedule import Pace, rate_factor
from medi3d.train.validate import validate

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu")

_LOG_EVERY = 10


@dataclass(frozen=True)
class TrainEvent:
    """What the loop tells a progress bar after each step."""

    step: int
    progress: float
    seconds: float
    loss: float
    score: float | None
    best: float | None
    patches_per_second: float = 0.0
    waiting: float = 0.0
    """Share of the time in which no patch was ready."""
    memory_gb: float = 0.0


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: Path
    steps: int
    seconds: float
    last_score: float
    best_score: float
    stopped: bool = False
    """Whether a signal ended it before its schedule did; ``medi3d train --resume`` goes on."""


def train_task(
    task: TaskConfig,
    *,
    prepared: Path,
    run: Path,
    fold: int = 0,
    device: str = "auto",
    resume: bool = False,
    on_event: Callable[[TrainEvent], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> TrainResult:
    """Train one fold of a task.

    Args:
        task: the resolved configuration.
        prepared: folder that ``medi3d preprocess`` wrote.
        run: folder of the run; it must not hold one unless ``resume``.
        fold: which fold to validate on.
        device: ``auto`` takes a GPU where there is one; ``cpu`` stays on the processor.
        resume: go on from the run's last checkpoint.
        on_event: called after every step, in the main process.
        on_plan: called once with what was planned, where the task leaves something open; it is written to the run's
            ``plan.yaml`` too.

    Raises:
        InputError: no prepared cases, cases that do not fit the task, or a run folder that is taken.
        WeightsError: pretrained weights or a checkpoint that cannot be had.
        Medi3dError: the loss stopped being a number.
    """
    store = PreparedStore(prepared)
    _check_settings(store, task)
    cases = {case.case_id: case for case in store.cases()}
    folder = RunFolder(run)
    if resume:
        split = folder.load_split()
        missing = [name for name in (*split.train, *split.validation) if name not in cases]
        if missing:
            raise InputError(
                f"{prepared}: {len(missing)} cases of the run are gone, {missing[0]} first; prepare them again"
            )
    else:
        folder.check_free()
        split = split_cases(
            list(cases.values()), folds=task.train.folds, fold=fold, seed=task.train.seed, train_cases=task.train.cases
        )
    plan = plan_task(task, store, device=device)
    task = plan.task
    trainer = Trainer(task, folder, device=device, on_event=on_event)
    if resume:
        trainer.restore(load_checkpoint(folder.last))
    elif trainer.accelerator.is_main_process:
        # Nothing is written before all that was asked for is known to be there.
        folder.create(task, split, prepared=prepared, fold=fold)
        if plan.chosen:
            write_plan(plan, folder.path / "plan.yaml")
            if on_plan is not None:
                on_plan(plan)
    return trainer.fit([cases[name] for name in split.train], [cases[name] for name in split.validation])


class Trainer:
    """State of a run: network, optimiser, and how far it is."""

    def __init__(
        self, task: TaskConfig, folder: RunFolder, *, device: str, on_event: Callable[[TrainEvent], None] | None
    ) -> None:
        _check_options(task, device)
        self.task, self.folder, self.on_event = task, folder, on_event
        if not torch.distributed.is_initialized():
            # accelerate keeps one state a process; this run may want another device or precision than the last one
            AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision=task.train.precision, log_with="tensorboard", project_dir=folder.path
        )
        torch.manual_seed(task.train.seed)
        self.pace = Pace(task.steps, parse_duration(task.train.budget) if task.train.budget else None)
        model = create_model(task)
        optimizer = _create_optimizer(model, task)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.loss = create_loss(task)
        self.step, self.elapsed_before = 0, 0.0
        self.validated, self.score, self.best = 0, math.nan, -math.inf
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training so far, those before a resumption included."""
        return self.elapsed_before + time.monotonic() - self.started

    def fit(self, train: list[PreparedCase], validation: list[PreparedCase]) -> TrainResult:
        """Train to the end of the schedule."""
        self.accelerator.init_trackers("tensorboard")
        self.model.train()
        if self.pace.budget_s is not None and not self.step:
            self.pace.validation_s = self._estimate_validation(validation)
        batches = self._batches(train)
        while self.pace.progress < 1:
            loss = self._train_step(next(batches))
            progress = self.pace.update(self.step, self.seconds)
            if progress * self.task.train.validations >= self.validated + 1:
                self._validate(validation, loss)
            elif self.step % _LOG_EVERY == 0:
                self._log(loss, None)
            self._tell(loss)
        if self.validated < self.task.train.validations:
            self._validate(validation, loss)
        self.accelerator.end_training()
        return TrainResult(self.folder.path, self.step, self.seconds, self.score, self.best)

    def restore(self, state: dict[str, Any]) -> None:
        """Take the run up where a checkpoint left it."""
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        for name in ("step", "validated", "score", "best"):
            setattr(self, name, state[name])
        self.elapsed_before = state["seconds"]
        self.pace.progress, self.pace.validation_s = state["progress"], state["validation_s"]
        self.folder.trim_metrics(self.step)

    def _batches(self, cases: list[PreparedCase]) -> Iterator[dict[str, Any]]:
        config = self.task.train
        return PatchLoader(
            PatchDataset.of_task(self.task, cases),
            Augmenter(config.augment, patch_size=self.task.patch_size, seed=config.seed),
            batch_size=self.task.batch_size,
            first=self.step * self.task.batch_size * self.accelerator.num_processes,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            workers=config.workers,
            device=self.accelerator.device,
        )

    def _train_step(self, batch: dict[str, Any]) -> float:
        config = self.task.train
        rate = self.task.learning_rate * rate_factor(config.schedule, self.pace.progress, warmup=config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.accelerator.autocast():
            outputs = self.model(batch["image"])
        loss = self.loss(outputs, batch, progress=self.pace.progress)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Medi3dError(
                f"{self.folder.path}: loss {value} at step {self.step + 1}, cases {', '.join(batch['case_id'])}; "
                f"lower train.learning_rate or check these cases; last checkpoint: {self.folder.last}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.step += 1
        return value

    def _estimate_validation(self, cases: list[PreparedCase]) -> float:
        """Time one case, so that the first validation too is held back from the budget."""
        begun = time.monotonic()
        validate(self.accelerator.unwrap_model(self.model), cases[:1], self.task)
        return (time.monotonic() - begun) * len(cases)

    def _validate(self, cases: list[PreparedCase], loss: float) -> None:
        begun = time.monotonic()
        self.validated = int(self.pace.progress * self.task.train.validations + 1e-9)
        model = self.accelerator.unwrap_model(self.model)
        score = validate(model, cases, self.task) if self.accelerator.is_main_process else math.nan
        self.score = broadcast_object_list([score])[0]
        self.pace.validation_s = max(self.pace.validation_s, time.monotonic() - begun)
        improved = not self.score <= self.best
        self.best = self.score if improved else self.best
        if self.accelerator.is_main_process:
            self._log(loss, self.score)
            state = self._state(model)
            save_checkpoint(state, self.folder.last)
            if improved:
                save_checkpoint({"model": state["model"], "step": self.step, "score": self.score}, self.folder.best)
        self.accelerator.wait_for_everyone()

    def _state(self, model: nn.Module) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "seconds": self.seconds,
            "progress": self.pace.progress,
            "validation_s": self.pace.validation_s,
            **{name: getattr(self, name) for name in ("step", "validated", "score", "best")},
        }

    def _log(self, loss: float, score: float | None) -> None:
        if not self.accelerator.is_main_process:
            return
        values: dict[str, Any] = {"learning_rate": self.optimizer.param_groups[0]["lr"], "loss": loss}
        values |= {} if score is None else {"score": score}
        self.accelerator.log(values, step=self.step)
        self.folder.append_metrics({"step": self.step, "seconds": round(self.seconds, 1), **values})

    def _tell(self, loss: float) -> None:
        if self.on_event is not None and self.accelerator.is_main_process:
            score, best = (value if math.isfinite(value) else None for value in (self.score, self.best))
            self.on_event(TrainEvent(self.step, self.pace.progress, self.seconds, loss, score, best))


def _create_optimizer(model: nn.Module, task: TaskConfig) -> torch.optim.Optimizer:
    """Decay the weights of convolutions and linear layers, and neither norms nor biases."""
    config = task.train
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=task.learning_rate, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(groups, lr=task.learning_rate)


def _check_options(task: TaskConfig, device: str) -> None:
    """Refuse what training cannot do, before anything is written."""
    if device not in DEVICES:
        raise ConfigError(unknown_name_message("device", device, DEVICES))
    if task.kind == "classification" and task.batch_size < 2:
        raise ConfigError("train.batch_size: the classifier's head normalises over the batch; give at least 2")


def _check_settings(store: PreparedStore, task: TaskConfig) -> None:
    """Refuse a store that was prepared for another task or with other settings: prediction would prepare by the task's.

    Raises:
        InputError: a setting that preprocessing followed differs.
    """
    prepared, wanted = store.task_values, json.loads(json.dumps(dump_task(task)))
    pairs = {"kind": (prepared["kind"], wanted["kind"])}
    pairs |= {f"data.{key}": (prepared["data"][key], wanted["data"][key]) for key in ("channels", "labels", "classes")}
    pairs |= {
        f"preprocess.{key}": (prepared["preprocess"].get(key), wanted["preprocess"][key])
        for key in wanted["preprocess"]
    }
    for key, (was, now) in pairs.items():
        if was != now:
            raise InputError(
                f"{store.folder}: prepared with {key} {was}, the task has {now}; run `medi3d preprocess --task "
                f"{task.name}` again with the task's settings, or give --set {key}=... to train as well"
            )
