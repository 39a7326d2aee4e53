"""The training loop: steps, validations, checkpoints, on one process or many, to the end or to a stop."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medi3d.config import parse_duration
from medi3d.data.augment import Augmenter
from medi3d.data.loader import PatchLoader, default_workers
from medi3d.data.mixture import MixedLoader, count_batches
from medi3d.data.patches import PatchDataset
from medi3d.errors import ConfigError
from medi3d.infer.allocator import give_back_freed_memory, keep_freed_memory
from medi3d.models.activations import checkpoint_activations
from medi3d.models.build import create_model
from medi3d.models.multitask import create_networks, find_networks
from medi3d.runs.checkpoint import save_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.train.average import WeightAverage
from medi3d.train.batch_norm import BatchNormCalls, synchronize
from medi3d.train.events import TrainEvent, TrainResult
from medi3d.train.finetune import FineTuning, reestimate
from medi3d.train.health import LossHistory, check_loss
from medi3d.train.losses import create_loss
from medi3d.train.optimizer import create_optimizer
from medi3d.train.part import TaskPart
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
from medi3d.types import Array

logger = logging.getLogger(__name__)

LOG_EVERY = 10
"""Steps between two rows of ``metrics.csv``."""

State = dict[str, Any]


class Trainer:
    """State of a run: network, optimiser, and how far it is.

    Args:
        parts: the tasks of the run; their networks have one encoder.
        folder: of the run; the first process writes into it.
        accelerator: of this process.
        stop: whether a signal asks to end.
        on_event: called after every step, in the first process.
        state: of the checkpoint to go on from.
    """

    def __init__(
        self,
        parts: Sequence[TaskPart],
        folder: RunFolder,
        accelerator: Accelerator,
        stop: StopRequest,
        *,
        on_event: Callable[[TrainEvent], None] | None = None,
        state: State | None = None,
    ) -> None:
        self.parts, self.shares = parts, {part.name: part.share for part in parts}
        self.task = task = parts[0].task  # for what is the same in all of them
        config = task.train
        self.folder, self.accelerator, self.stop, self.on_event = folder, accelerator, stop, on_event
        self._around: Callable[[], AbstractContextManager[Any]] = (
            partial(BatchNormCalls, synchronize) if accelerator.num_processes > 1 else nullcontext
        )
        self.model = self._create_model(pretrained=state is None)
        self.networks = {part.name: network for part, network in zip(parts, find_networks(self.model), strict=True)}
        self.optimizer = accelerator.prepare(create_optimizer(self.model, task))
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.finetuning = FineTuning(self.model, task)
        if config.compile and accelerator.num_processes > 1 and self.finetuning.find_updated_norms():
            raise ConfigError(
                "train.compile: batch norms over several processes cannot be compiled; leave it out, or set "
                "train.norm_statistics to frozen or reestimate, which helps where the encoder alone has such norms"
            )
        self.losses = {part.name: create_loss(part.task) for part in parts}
        self.histories = {part.name: LossHistory() for part in parts}
        self.pace = Pace(task.steps, parse_duration(config.budget) if config.budget else None)
        self.step, self.validated = 0, 0
        self.last_loss, self.score, self.best = math.nan, math.nan, -math.inf
        self.task_losses, self.task_scores = ({part.name: math.nan for part in parts} for _ in range(2))
        self._seconds_before, self._begun, self._saved_at = 0.0, time.monotonic(), 0.0
        self._cpu_before = -time.process_time()
        self._ahead: dict[str, Any] | None = None
        if state is not None:
            self._restore(state)
        self._set_rates()
        self.watch = Watch(accelerator, folder, *(part.task for part in parts))
        self.logged, self.shown = Meter(accelerator.device), Meter(accelerator.device)
        found = None if state is None else state.get("threads")
        most = count_cores(processes=count_local_processes(accelerator)) if accelerator.device.type == "cpu" else 1
        self.threads = Threads(config.threads, most=most, found=found)

    @property
    def shares_encoder(self) -> bool:
        """Whether the run is of several tasks."""
        return len(self.parts) > 1

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training so far, those before a resumption included."""
        return self._seconds_before + time.monotonic() - self._begun

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of this process so far, all threads together, those before a resumption included."""
        return self._cpu_before + time.process_time()

    def fit(self) -> TrainResult:
        """Train to the end of the schedule, or until a signal asks to stop."""
        self.watch.start(self.step)
        if self.accelerator.device.type == "cpu":
            settle = give_back_freed_memory if self.task.train.checkpoint_activations else keep_freed_memory
            settle()
        try:
            with restored_threads():
                self._begin()
                with closing(self._read()) as batches:
                    stopped = self._run_steps(batches)
                if not stopped and self.validated < self.task.train.validations:
                    self._validate()
        finally:
            self.watch.close()
        code = self.stop.exit_code if stopped else 0
        result = TrainResult(self.folder.path, self.step, self.seconds, self.score, self.best, stopped, code)
        return replace(result, scores=dict(self.task_scores))

    def _create_model(self, *, pretrained: bool) -> nn.Module:
        """Create the networks, alike in all processes; a run that goes on needs no pretrained weights."""
        tasks, config = [part.task for part in self.parts], self.task.train
        torch.manual_seed(config.seed)
        if not pretrained:
            tasks = [replace(task, model=replace(task.model, init="random", weights=None)) for task in tasks]
        model = create_networks(tasks) if self.shares_encoder else create_model(tasks[0])
        model = model.to(self.accelerator.device)
        seed_process(config.seed, self.accelerator.process_index)
        for network in find_networks(model):
            if config.checkpoint_activations:
                blocks = checkpoint_activations(network, around=self._around)
                logger.info("feature maps of %d blocks are computed again in the backward pass", len(blocks))
            if config.compile:
                network.compile()
        return model

    def _begin(self) -> None:
        config, processes = self.task.train, self.accelerator.num_processes
        self.finetuning.update(self.pace.progress)
        if config.norm_statistics == "reestimate" and not self.step:
            for part in self.parts:
                with closing(self._read_part(part)) as batches, self._around(), self.accelerator.autocast():
                    reestimate(self.networks[part.name], batches, batch_size=part.task.batch_size, processes=processes)
        if self.pace.budget_s is not None and not self.step:
            self.pace.validation_s = self._estimate_validation()
            if self.pace.validation_s > self.pace.budget_s / 2:
                logger.warning(
                    "predicting the held-out cases at the end takes about %.0f of the %.0f s of train.budget, and "
                    "training gets what is left; give a longer budget, --steps in its place, or larger train.folds, "
                    "which hold fewer cases out",
                    *(self.pace.validation_s, self.pace.budget_s),
                )
        self.finetuning.set_modes()
        check_alike(self.model, self.accelerator)

    def _run_steps(self, batches: Iterator[dict[str, Any]]) -> bool:
        """Train to the end of the schedule; return whether a signal asked to stop before that."""
        while self.pace.progress < 1:
            self.finetuning.update(self.pace.progress)
            with self.threads.step():
                self._train_step(batches)
            seconds = agree_on(self.accelerator, self.seconds)
            progress = self.pace.update(self.step, seconds)
            if progress * self.task.train.validations >= self.validated + 1:
                self._validate()
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
        losses: dict[str, list[Tensor]] = defaultdict(list)
        case_ids: dict[str, list[str]] = defaultdict(list)
        weights = {part.name: part.weight for part in self.parts}
        for _ in range(config.accumulate):
            batch = self._ahead or next(batches)
            self._ahead = None
            name = batch["task"]
            with self._around(), self.accelerator.autocast():
                outputs = self.networks[name](batch["image"])
            loss = self.losses[name](outputs, batch, progress=self.pace.progress)
            self.accelerator.backward(weights[name] * loss / config.accumulate)
            losses[name].append(loss.detach())
            case_ids[name] += batch["case_id"]
        average_gradients(self.model.parameters(), self.accelerator)
        self.accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        # Before the loss is asked for, which waits for the device: it augments while it ends the step.
        self._ahead = next(batches)
        self._take_losses(losses, case_ids)

    def _take_losses(self, losses: Mapping[str, list[Tensor]], case_ids: Mapping[str, list[str]]) -> None:
        """Note the losses of a step, by task, and end the run where one is no number or has diverged."""
        self.last_loss = float(torch.stack([loss for own in losses.values() for loss in own]).mean())
        for name, own in losses.items():
            self.task_losses[name] = loss = float(torch.stack(own).mean())
            ids = case_ids[name] if math.isfinite(loss) else gather_names(self.accelerator, case_ids[name])
            check_loss(loss, self.step, ids, self.folder, self.histories[name])
        patches = sum(map(len, case_ids.values())) * self.accelerator.num_processes
        self.logged.add(patches)
        self.shown.add(patches)

    def _set_rates(self) -> None:
        config, progress = self.task.train, self.pace.progress
        self.rate = self.task.learning_rate * rate_factor(config.schedule, progress, warmup=config.warmup)
        of_encoder = self.rate * self.finetuning.rate_factor(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * (of_encoder if group["encoder"] else self.rate)

    def _read(self) -> MixedLoader:
        """Read on where the run stands."""
        first = self.step * self.task.train.accumulate
        read = count_batches(self.shares, first)
        loaders = {part.name: self._read_part(part, read[part.name]) for part in self.parts}
        self.loader = MixedLoader(loaders, self.shares, first=first)
        return self.loader

    def _read_part(self, part: TaskPart, batches: int = 0) -> PatchLoader:
        """Read the batches of one task, after a number of them that each process has taken."""
        task, processes, device = part.task, self.accelerator.num_processes, self.accelerator.device
        config, workers = task.train, task.train.workers
        if workers is None and (most := default_workers(device, processes=processes)):
            workers = max(most // len(self.parts), 1)
        return PatchLoader(
            PatchDataset.of_task(task, part.train),
            Augmenter(config.augment, patch_size=task.patch_size, seed=config.seed),
            batch_size=task.batch_size,
            first=batches * processes * task.batch_size,
            process=self.accelerator.process_index,
            processes=processes,
            workers=workers,
            device=device,
        )

    # --- validation

    def _estimate_validation(self) -> float:
        """Time one case of each task, so that the first validation too is held back from the budget."""
        total = 0.0
        for part in self.parts:
            took = math.inf
            for _ in range(2):  # the first is slower by far: 137 s were held back for 253 cases that took 52 s
                begun = time.monotonic()
                validate(self.networks[part.name], part.validation[:1], part.task)
                took = min(took, time.monotonic() - begun)
            total += took * math.ceil(len(part.validation) / self.accelerator.num_processes)
        return agree_on(self.accelerator, total)

    def _validate(self) -> None:
        begun = time.monotonic()
        self.validated = int(self.pace.progress * self.task.train.validations + 1e-9)
        drawn = PICTURES if self.accelerator.is_main_process and "tensorboard" in self.task.train.trackers else 0
        pictures: dict[str, Array] = {}
        with nullcontext() if self.average is None else self.average.applied():
            for part in self.parts:
                network = self.networks[part.name]
                result = validate(network, part.validation, part.task, accelerator=self.accelerator, pictures=drawn)
                self.task_scores[part.name] = result.score
                prefix = f"{part.name}/" if self.shares_encoder else ""
                pictures |= {f"{prefix}{case_id}": picture for case_id, picture in result.pictures.items()}
        self.finetuning.set_modes()
        known = [score for score in self.task_scores.values() if math.isfinite(score)]
        self.score = sum(known) / len(known) if known else math.nan
        improved = not (self.score <= self.best or (math.isnan(self.score) and math.isfinite(self.best)))
        self.best = self.score if improved else self.best
        took = agree_on(self.accelerator, time.monotonic() - begun)
        self.pace.validation_s = max(self.pace.validation_s, took)
        self.logged.skip(took)
        self.shown.skip(took)
        self._log(score=self.score, **self._of_tasks("score", self.task_scores))
        self.watch.show(self.step, pictures)
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
            "cpu_seconds": self.cpu_seconds,
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
            setattr(self, name, state.get(name, getattr(self, name)))  # older runs have no values by task
        self._seconds_before = self._saved_at = state["seconds"]
        self._cpu_before += state.get("cpu_seconds", math.nan)  # runs of older versions do not tell
        self.pace.progress, self.pace.validation_s = state["progress"], state["validation_s"]
        restore_random_state(self.accelerator, state["rng"])

    # --- what is told

    def _log(self, **values: float) -> None:
        rates = self.logged.read(self.loader.waited_s)
        values |= {"learning_rate": self.rate, "loss": self.last_loss, "seconds": round(self.seconds, 1), **rates}
        values |= {"cpu_seconds": round(self.cpu_seconds, 1)}
        self.watch.log(self.step, values | self._of_tasks("loss", self.task_losses))

    def _of_tasks(self, what: str, values: Mapping[str, float]) -> dict[str, float]:
        """Return columns of each task, in a run of several."""
        known = {f"{what}/{name}": value for name, value in values.items() if math.isfinite(value)}
        return known if self.shares_encoder else {}

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


_COUNTERS = ("step", "validated", "last_loss", "score", "best", "task_losses", "task_scores")
"""Attributes of :class:`Trainer` that a checkpoint keeps by their names."""
