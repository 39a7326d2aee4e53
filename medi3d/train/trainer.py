"""The training loop: steps, validations, checkpoints, on one process or many, to the end or to a stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from medi3d.config import TaskConfig, parse_duration
from medi3d.data.augment import Augmenter
from medi3d.data.loader import PatchLoader
from medi3d.data.patches import PatchDataset
from medi3d.errors import ConfigError
from medi3d.infer.allocator import give_back_freed_memory, keep_freed_memory
from medi3d.io.prepared import PreparedCase
from medi3d.models.activations import checkpoint_activations
from medi3d.models.build import create_model
from medi3d.runs.checkpoint import save_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.train.average import WeightAverage
from medi3d.train.batch_norm import BatchNormCalls, synchronize
from medi3d.train.events import TrainEvent, TrainResult
from medi3d.train.finetune import FineTuning
from medi3d.train.health import LossHistory, check_loss
from medi3d.train.losses import create_loss
from medi3d.train.optimizer import create_optimizer
from medi3d.train.processes import (
    agree_on,
    average_gradients,
    check_alike,
    collect_random_states,
    count_local_processes,
    gather_names,
    restore_random_state,
    seed_process,
)
from medi3d.train.schedule import Pace, rate_factor
from medi3d.train.stop import StopRequest
from medi3d.train.threads import Threads, count_cores, restored_threads
from medi3d.train.validate import PICTURES, validate
from medi3d.train.watch import Meter, Watch

logger = logging.getLogger(__name__)

LOG_EVERY = 10
"""Steps between two rows of ``metrics.csv``."""

State = dict[str, Any]


class Trainer:
    """State of a run: network, optimiser, and how far it is.

    Args:
        task: every planned key set.
        folder: of the run; the first process writes into it.
        accelerator: of this process.
        stop: whether a signal asks to end.
        on_event: called after every step, in the first process.
        state: of the checkpoint to go on from.
    """

    def __init__(
        self,
        task: TaskConfig,
        folder: RunFolder,
        accelerator: Accelerator,
        stop: StopRequest,
        *,
        on_event: Callable[[TrainEvent], None] | None = None,
        state: State | None = None,
    ) -> None:
        config = task.train
        self.task, self.folder, self.accelerator, self.stop, self.on_event = task, folder, accelerator, stop, on_event
        self._around: Callable[[], AbstractContextManager[Any]] = (
            partial(BatchNormCalls, synchronize) if accelerator.num_processes > 1 else nullcontext
        )
        self.model = self._create_model(pretrained=state is None)
        self.optimizer = accelerator.prepare(create_optimizer(self.model, task))
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.finetuning = FineTuning(self.model, task)
        if config.compile and accelerator.num_processes > 1 and self.finetuning.find_updated_norms():
            raise ConfigError(
                "train.compile: batch norms over several processes cannot be compiled; leave it out, or set "
                "train.norm_statistics to frozen or reestimate, which helps where the encoder alone has such norms"
            )
        self.loss = create_loss(task)
        self.history = LossHistory()
        self.pace = Pace(task.steps, parse_duration(config.budget) if config.budget else None)
        self.step, self.validated = 0, 0
        self.last_loss, self.score, self.best = math.nan, math.nan, -math.inf
        self._seconds_before, self._begun, self._saved_at = 0.0, time.monotonic(), 0.0
        self._ahead: dict[str, Any] | None = None
        if state is not None:
            self._restore(state)
        self._set_rates()
        self.watch = Watch(accelerator, folder, task)
        self.logged, self.shown = Meter(accelerator.device), Meter(accelerator.device)
        found = None if state is None else state.get("threads")
        most = count_cores(processes=count_local_processes(accelerator)) if accelerator.device.type == "cpu" else 1
        self.threads = Threads(config.threads, most=most, found=found)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training so far, those before a resumption included."""
        return self._seconds_before + time.monotonic() - self._begun

    def fit(self, train: Sequence[PreparedCase], validation: Sequence[PreparedCase]) -> TrainResult:
        """Train to the end of the schedule, or until a signal asks to stop."""
        self.watch.start(self.step)
        if self.accelerator.device.type == "cpu":
            settle = give_back_freed_memory if self.task.train.checkpoint_activations else keep_freed_memory
            settle()
        try:
            with restored_threads():
                self._begin(train, validation)
                with closing(self._read(train, self.step)) as batches:
                    stopped = self._run_steps(batches, validation)
                if not stopped and self.validated < self.task.train.validations:
                    self._validate(validation)
        finally:
            self.watch.close()
        code = self.stop.exit_code if stopped else 0
        return TrainResult(self.folder.path, self.step, self.seconds, self.score, self.best, stopped, code)

    def _create_model(self, *, pretrained: bool) -> nn.Module:
        """Create the network, alike in all processes; a run that goes on needs no pretrained weights."""
        task, config = self.task, self.task.train
        torch.manual_seed(config.seed)
        source = task if pretrained else replace(task, model=replace(task.model, init="random", weights=None))
        model = create_model(source).to(self.accelerator.device)
        seed_process(config.seed, self.accelerator.process_index)
        if config.checkpoint_activations:
            blocks = checkpoint_activations(model, around=self._around)
            logger.info("feature maps of %d blocks are computed again in the backward pass", len(blocks))
        if config.compile:
            model.compile()
        return model

    def _begin(self, train: Sequence[PreparedCase], validation: Sequence[PreparedCase]) -> None:
        config = self.task.train
        self.finetuning.update(self.pace.progress)
        if config.norm_statistics == "reestimate" and not self.step:
            with closing(self._read(train, 0)) as batches, self._around(), self.accelerator.autocast():
                self.finetuning.reestimate(
                    batches, batch_size=self.task.batch_size, processes=self.accelerator.num_processes
                )
        if self.pace.budget_s is not None and not self.step:
            self.pace.validation_s = self._estimate_validation(validation)
        self.finetuning.set_modes()
        check_alike(self.model, self.accelerator)

    def _run_steps(self, batches: Iterator[dict[str, Any]], validation: Sequence[PreparedCase]) -> bool:
        """Train to the end of the schedule; return whether a signal asked to stop before that."""
        while self.pace.progress < 1:
            self.finetuning.update(self.pace.progress)
            with self.threads.step():
                self._train_step(batches)
            seconds = agree_on(self.accelerator, self.seconds)
            progress = self.pace.update(self.step, seconds)
            if progress * self.task.train.validations >= self.validated + 1:
                self._validate(validation)
            elif self.step % LOG_EVERY == 0:
                self._log()
            self._tell()
            stopped = self.stop.agreed(self.accelerator)
            if stopped or seconds - self._saved_at >= parse_duration(self.task.train.save_every):
                self._save()
            if stopped:
                return True
        return False

    # --- one step

    def _train_step(self, batches: Iterator[dict[str, Any]]) -> None:
        config = self.task.train
        self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        losses, case_ids = [], []
        for _ in range(config.accumulate):
            batch = self._ahead or next(batches)
            self._ahead = None
            with self._around(), self.accelerator.autocast():
                outputs = self.model(batch["image"])
            loss = self.loss(outputs, batch, progress=self.pace.progress)
            self.accelerator.backward(loss / config.accumulate)
            losses.append(loss.detach())
            case_ids += batch["case_id"]
        average_gradients(self.model.parameters(), self.accelerator)
        self.accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        # Before the loss is asked for, which waits for the device: it augments while it ends the step.
        self._ahead = next(batches)
        self.last_loss = float(torch.stack(losses).mean())
        if not math.isfinite(self.last_loss):
            case_ids = gather_names(self.accelerator, case_ids)
        check_loss(self.last_loss, self.step, case_ids, self.folder, self.history)
        patches = len(case_ids) * self.accelerator.num_processes
        self.logged.add(patches)
        self.shown.add(patches)

    def _set_rates(self) -> None:
        config, progress = self.task.train, self.pace.progress
        self.rate = self.task.learning_rate * rate_factor(config.schedule, progress, warmup=config.warmup)
        of_encoder = self.rate * self.finetuning.rate_factor(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * (of_encoder if group["encoder"] else self.rate)

    def _read(self, cases: Sequence[PreparedCase], step: int) -> PatchLoader:
        config, processes = self.task.train, self.accelerator.num_processes
        self.loader = PatchLoader(
            PatchDataset.of_task(self.task, cases),
            Augmenter(config.augment, patch_size=self.task.patch_size, seed=config.seed),
            batch_size=self.task.batch_size,
            first=step * config.accumulate * processes * self.task.batch_size,
            process=self.accelerator.process_index,
            processes=processes,
            workers=config.workers,
            device=self.accelerator.device,
        )
        return self.loader

    # --- validation

    def _estimate_validation(self, cases: Sequence[PreparedCase]) -> float:
        """Time one case, so that the first validation too is held back from the budget."""
        begun = time.monotonic()
        validate(self.model, cases[:1], self.task)
        own = math.ceil(len(cases) / self.accelerator.num_processes)
        return agree_on(self.accelerator, (time.monotonic() - begun) * own)

    def _validate(self, cases: Sequence[PreparedCase]) -> None:
        begun = time.monotonic()
        self.validated = int(self.pace.progress * self.task.train.validations + 1e-9)
        drawn = PICTURES if self.accelerator.is_main_process and "tensorboard" in self.task.train.trackers else 0
        with nullcontext() if self.average is None else self.average.applied():
            result = validate(self.model, cases, self.task, accelerator=self.accelerator, pictures=drawn)
        self.finetuning.set_modes()
        self.score = result.score
        improved = not (self.score <= self.best or (math.isnan(self.score) and math.isfinite(self.best)))
        self.best = self.score if improved else self.best
        took = agree_on(self.accelerator, time.monotonic() - begun)
        self.pace.validation_s = max(self.pace.validation_s, took)
        self.logged.skip(took)
        self.shown.skip(took)
        self._log(score=self.score)
        self.watch.show(self.step, result.pictures)
        self._save(improved=improved)

    # --- what is kept

    def _save(self, *, improved: bool = False) -> None:
        """Write the run's state; where it is the best so far, its weights too."""
        random = collect_random_states(self.accelerator)
        self._saved_at = agree_on(self.accelerator, self.seconds)
        if self.accelerator.is_main_process:
            state = self._state() | {"rng": random}
            if improved:  # first: a kill in between lets the validation be done again
                save_checkpoint({"model": state["model"], "step": self.step, "score": self.score}, self.folder.best)
            save_checkpoint(state, self.folder.last)
        self.accelerator.wait_for_everyone()

    def _state(self) -> State:
        weights = {"model": self.model.state_dict()}
        if self.average is not None:
            weights["trained"] = weights["model"]
            with self.average.applied():
                weights["model"] = self.model.state_dict()
        scaler = self.accelerator.scaler
        return {
            **weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "seconds": self.seconds,
            "progress": self.pace.progress,
            "validation_s": self.pace.validation_s,
            "threads": self.threads.chosen,
            "processes": self.accelerator.num_processes,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def _restore(self, state: State) -> None:
        """Take the run up where a checkpoint left it."""
        processes = self.accelerator.num_processes
        if state.get("processes", processes) != processes:
            logger.warning(
                "%s: goes on with %d processes, %d before: with batches of another size, so to other weights",
                *(self.folder.path, processes, state["processes"]),
            )
        self.model.load_state_dict(state["trained"] if "trained" in state else state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name in _COUNTERS:
            setattr(self, name, state[name])
        self._seconds_before = self._saved_at = state["seconds"]
        self.pace.progress, self.pace.validation_s = state["progress"], state["validation_s"]
        restore_random_state(self.accelerator, state["rng"])

    # --- what is told

    def _log(self, **values: float) -> None:
        rates = self.logged.read(self.loader.waited_s)
        values |= {"learning_rate": self.rate, "loss": self.last_loss, "seconds": round(self.seconds, 1), **rates}
        self.watch.log(self.step, values)

    def _tell(self) -> None:
        if self.on_event is None or not self.accelerator.is_main_process:
            return
        progress, seconds, budget_s = self.pace.progress, self.seconds, self.pace.budget_s
        score, best = (value if math.isfinite(value) else None for value in (self.score, self.best))
        rates = self.shown.read(self.loader.waited_s)
        event = TrainEvent(
            step=self.step,
            progress=progress,
            seconds=seconds,
            loss=self.last_loss,
            score=score,
            best=best,
            patches_per_second=rates["patches_per_second"],
            waiting=rates["waiting"],
            memory_gb=rates["memory_gb"],
            steps=None if budget_s is not None else self.pace.steps,
            budget_s=budget_s,
            eta_s=seconds * (1 - progress) / progress if progress else None,
            learning_rate=self.rate,
        )
        self.on_event(event)


_COUNTERS = ("step", "validated", "last_loss", "score", "best")
"""Attributes of :class:`Trainer` that a checkpoint keeps by their names."""
