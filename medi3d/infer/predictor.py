"""One or several trained runs as a function from a native volume to its prediction."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError, InputError, WeightsError
from medi3d.infer.restore import restore_labels
from medi3d.infer.windows import predict_logits, predict_with_classes
from medi3d.models.build import create_model
from medi3d.models.weights import read_weights_file
from medi3d.preprocess.pipeline import prepare_image
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.types import Array, FloatTriple
from medi3d.volume import LabelMap, Volume


@dataclass(frozen=True)
class Member:
    """One run: its network, its configuration, and the cases that it validated on."""

    model: nn.Module
    task: TaskConfig
    held_out: frozenset[str]


class Probabilities(NamedTuple):
    """What runs say about a prepared image.

    Attributes:
        labels: ``(num_classes, D, H, W)`` of a segmentation task.
        classes: ``(classes,)`` of a task with classes.
    """

    labels: Tensor | None
    classes: Tensor | None


class Prediction(NamedTuple):
    """What is predicted for a case.

    Attributes:
        label: label map of a segmentation task.
        classes: one probability a class of a task with classes, ``(classes,)``.
        probabilities: of the labels that were asked for, one a channel, on the native grid.
        warnings: what sets the case apart from those that the runs were trained on.
        seconds: what each part took: ``prepare``, ``network``, ``restore``.
    """

    label: LabelMap | None
    classes: Array | None
    probabilities: Volume | None = None
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = MappingProxyType({})


class Predictor:
    """The networks of one or several runs of the same task; their probabilities are averaged.

    Args:
        runs: run folders.
        device: ``auto`` takes a GPU where there is one, or torch's name of a device.
        checkpoint: ``best`` by the validation score, or the ``last``.

    Raises:
        InputError: a folder holds no run.
        ConfigError: the runs differ in task, classes or preprocessing, or there is no such device.
        WeightsError: a checkpoint is missing or damaged.
    """

    def __init__(self, runs: Sequence[Path], *, device: str = "auto", checkpoint: str = "best") -> None:
        folders = [RunFolder(run) for run in runs]
        configs = [folder.load_config() for folder in folders]
        self.task = configs[0]
        for run, other in zip(runs, configs, strict=True):
            if (other.kind, other.data, other.preprocess) != (self.task.kind, self.task.data, self.task.preprocess):
                raise ConfigError(f"{run}: another task or preprocessing than {runs[0]}; average runs of one task only")
        self.device = _find_device(device)
        self._members = [
            Member(
                load_model(config, folder.checkpoint(checkpoint)).to(self.device),
                config,
                frozenset(folder.load_split().validation),
            )
            for folder, config in zip(folders, configs, strict=True)
        ]

    def holding_out(self, case_id: str) -> Predictor | None:
        """Return a predictor of the runs that did not train on a case but held it out; ``None`` where there is none."""
        chosen = copy.copy(self)
        chosen._members = [member for member in self._members if case_id in member.held_out]
        return chosen if chosen._members else None

    def predict(self, volume: Volume, *, center_mm: FloatTriple | None = None) -> Prediction:
        """Predict a native volume.

        Args:
            volume: ``(C, D, H, W)``.
            center_mm: where the task's cube lies, RAS millimetres; needed where the task cuts one.

        Returns:
            A label map on the same grid, or class probabilities, or both, as the task asks for.
        """
        if volume.num_channels != self.task.in_channels:
            raise InputError(
                f"the input has {volume.num_channels} channels; task {self.task.name} expects {self.task.in_channels} "
                f"({', '.join(self.task.data.channels)})"
            )
        prepared, record = prepare_image(volume, self.task, center_mm=center_mm)
        image = torch.from_numpy(np.ascontiguousarray(prepared.array))  # reorienting leaves flipped views
        labels, classes = self.predict_prepared(image)
        return Prediction(
            None if labels is None else restore_labels(labels, record), None if classes is None else classes.numpy()
        )

    def predict_labels(self, volume: Volume, *, center_mm: FloatTriple | None = None) -> LabelMap:
        """Segment a native volume, see :meth:`predict`.

        Raises:
            ConfigError: it is no segmentation task.
        """
        label = self.predict(volume, center_mm=center_mm).label
        if label is None:
            raise ConfigError(f"task {self.task.name} is a classification; it has classes to predict, and no labels")
        return label

    def predict_classes(self, volume: Volume, *, center_mm: FloatTriple | None = None) -> Array:
        """Return one probability a class for a native volume, see :meth:`predict`.

        Raises:
            ConfigError: the task has no classes.
        """
        classes = self.predict(volume, center_mm=center_mm).classes
        if classes is None:
            raise ConfigError(f"task {self.task.name} has no data.classes to predict")
        return classes

    def predict_prepared(self, image: Tensor) -> Probabilities:
        """Return the mean of the runs' probabilities for an image that is prepared already.

        Args:
            image: ``(C, D, H, W)`` float32.
        """
        total = _probabilities(self._members[0], image)
        for member in self._members[1:]:
            total = Probabilities(*map(_add, total, _probabilities(member, image)))
        return Probabilities(*(None if part is None else part / len(self._members) for part in total))


def _probabilities(member: Member, image: Tensor) -> Probabilities:
    model, task = member.model, member.task
    if task.kind == "classification":
        return Probabilities(None, torch.softmax(predict_logits(model, image, task), 0))
    if not task.data.classes:
        return Probabilities(torch.softmax(predict_logits(model, image, task), 0), None)
    labels, classes = predict_with_classes(model, image, task)
    return Probabilities(torch.softmax(labels, 0), torch.softmax(classes, 0))


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else first + second


def load_model(task: TaskConfig, checkpoint: Path) -> nn.Module:
    """Build a run's network and load its weights; no pretrained weights are looked for.

    Raises:
        WeightsError: the checkpoint is missing, damaged or of another architecture.
    """
    exported = checkpoint.suffix == ".safetensors"
    state = read_weights_file(checkpoint) if exported else load_checkpoint(checkpoint)["model"]
    model = create_model(replace(task, model=replace(task.model, init="random", weights=None)))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{checkpoint}: of another architecture than the run's: {' '.join(str(error).split())[:300]}"
        ) from None
    return model.eval()


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: not to be had here ({reason}); give auto or cpu") from None
