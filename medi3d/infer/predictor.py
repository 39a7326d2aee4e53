"""One or several trained runs as a function from a native volume to its prediction."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from medi3d.config import TaskConfig, dump_task, load_task
from medi3d.errors import ConfigError, InputError, WeightsError
from medi3d.infer.planes import Storage
from medi3d.infer.postprocess import postprocess
from medi3d.infer.restore import Restorer
from medi3d.infer.unfamiliar import describe_shape, describe_unfamiliar
from medi3d.infer.windows import LogitStream, join_blocks, predict_logits, stream_probabilities
from medi3d.io.record import Record
from medi3d.models.build import create_model
from medi3d.models.weights import read_weights_file
from medi3d.preprocess.pipeline import prepare_image
from medi3d.runs.checkpoint import load_checkpoint
from medi3d.runs.folder import RunFolder
from medi3d.seal import hash_file
from medi3d.types import Array, FloatTriple
from medi3d.volume import LabelMap, Volume


@dataclass(frozen=True)
class ModelOrigin:
    """Which files a network was made of.

    Args:
        run: the run's folder.
        checkpoint_sha256: of the file with the weights.
        plan_sha256: of the resolved configuration.
    """

    run: Path
    checkpoint_sha256: str
    plan_sha256: str


@dataclass(frozen=True)
class Member:
    """One run.

    Args:
        model: its network.
        task: its configuration.
        held_out: the cases that it validated on.
        origin: what its files are.
        fingerprint: statistics of the data set that it was trained on, where it tells.
    """

    model: nn.Module
    task: TaskConfig
    held_out: frozenset[str]
    origin: ModelOrigin
    fingerprint: Mapping[str, Any] | None = None


class Probabilities(NamedTuple):
    """What runs say about a prepared image.

    Attributes:
        labels: ``(num_classes, D, H, W)`` of a segmentation task.
        classes: ``(classes,)`` of a task with classes.
    """

    labels: Tensor | None
    classes: Tensor | None


class PreparedInput(NamedTuple):
    """A volume as the networks take it.

    Attributes:
        image: ``(C, D, H, W)`` float32.
        record: the way back to the native grid.
        warnings: see :class:`Prediction`.
        seconds: that preparing it took.
    """

    image: Tensor
    record: Record
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


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
        overrides: keys of ``infer`` that shall differ from the runs', such as ``{"infer.mirror": True}``.
        memory_bytes: host memory that the planes under way may take; ``None`` takes 80 % of what is free.
        scratch: folder for planes that do not fit there; ``None`` is the system's for temporary files.

    Raises:
        InputError: a folder holds no run.
        ConfigError: the runs differ in task, classes or preprocessing, or there is no such device.
        WeightsError: a checkpoint is missing or damaged.
    """

    def __init__(
        self,
        runs: Sequence[Path],
        *,
        device: str = "auto",
        checkpoint: str = "best",
        overrides: Mapping[str, object] | None = None,
        memory_bytes: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        folders = [RunFolder(run) for run in runs]
        configs = [_override(folder.load_config(), overrides or {}, folder) for folder in folders]
        self._memory_bytes, self._scratch = memory_bytes, scratch
        self.task = configs[0]
        for run, other in zip(runs, configs, strict=True):
            if (other.kind, other.data, other.preprocess) != (self.task.kind, self.task.data, self.task.preprocess):
                raise ConfigError(f"{run}: another task or preprocessing than {runs[0]}; average runs of one task only")
            if other.infer.postprocess != self.task.infer.postprocess:
                raise ConfigError(
                    f"{run}: other post-processing than {runs[0]}; `medi3d postprocess` with all of them chooses one"
                )
        self.device = _find_device(device)
        self._members = [
            Member(
                load_model(config, folder.checkpoint(checkpoint)).to(self.device),
                config,
                frozenset(folder.load_split().validation),
                _find_origin(folder, checkpoint),
                folder.load_fingerprint(),
            )
            for folder, config in zip(folders, configs, strict=True)
        ]

    @property
    def members(self) -> tuple[Member, ...]:
        """The runs whose probabilities are averaged."""
        return tuple(self._members)

    @property
    def models(self) -> tuple[ModelOrigin, ...]:
        """The files of each network that is averaged."""
        return tuple(member.origin for member in self._members)

    def holding_out(self, case_id: str) -> Predictor | None:
        """Return a predictor of the runs that did not train on a case but held it out; ``None`` where there is none."""
        chosen = copy.copy(self)
        chosen._members = [member for member in self._members if case_id in member.held_out]
        return chosen if chosen._members else None

    def predict(
        self, volume: Volume, *, center_mm: FloatTriple | None = None, probabilities: Sequence[int] = ()
    ) -> Prediction:
        """Predict a native volume.

        Args:
            volume: ``(C, D, H, W)``.
            center_mm: where the task's cube lies, RAS millimetres; needed where the task cuts one.
            probabilities: labels whose probabilities are wanted as volumes.

        Returns:
            A label map on the same grid, or class probabilities, or both, as the task asks for.
        """
        return self.predict_input(self.prepare(volume, center_mm=center_mm), probabilities=probabilities)

    def prepare(self, volume: Volume, *, center_mm: FloatTriple | None = None) -> PreparedInput:
        """Bring a native volume to where :meth:`predict_input` takes it; another thread may, while this one predicts.

        Raises:
            InputError: another number of channels than the task's, or an image that cannot be prepared.
        """
        start = time.perf_counter()
        if volume.num_channels != self.task.in_channels:
            raise InputError(
                f"the input has {volume.num_channels} channels; task {self.task.name} expects {self.task.in_channels} "
                f"({', '.join(self.task.data.channels)})"
            )
        prepared, record = prepare_image(volume, self.task, center_mm=center_mm)
        image = torch.from_numpy(np.ascontiguousarray(prepared.array))  # reorienting leaves flipped views
        warnings = (
            *describe_shape(volume.grid, record.prepared.shape, self.task, self._fingerprint),
            *describe_unfamiliar(volume, self.task, self._fingerprint),
        )
        return PreparedInput(image, record, warnings, seconds=time.perf_counter() - start)

    def predict_input(self, prepared: PreparedInput, *, probabilities: Sequence[int] = ()) -> Prediction:
        """Predict a volume that :meth:`prepare` has prepared, see :meth:`predict`.

        Raises:
            ConfigError: probabilities of labels that the task has not.
        """
        if self.task.kind == "classification":
            start = time.perf_counter()
            answer = self.predict_prepared(prepared.image).classes
            assert answer is not None
            seconds = {"prepare": prepared.seconds, "network": time.perf_counter() - start, "restore": 0.0}
            return Prediction(None, answer.numpy(), warnings=prepared.warnings, seconds=seconds)
        return self._segment(prepared, self._check_labels(probabilities))

    def _segment(self, prepared: PreparedInput, keep: Sequence[int]) -> Prediction:
        """Put planes back onto the native grid as the networks finish them."""
        start, restoring = time.perf_counter(), 0.0
        storage = self._storage()
        streams = self._open_streams(prepared.image, storage)
        thickness = streams[0].thickness
        restorer = Restorer(prepared.record, self.task.num_classes, keep=keep, thickness=thickness, storage=storage)
        for block in stream_probabilities(streams, thickness):
            between = time.perf_counter()
            restorer.add(block)
            restoring += time.perf_counter() - between
        label, kept = restorer.finish()
        network = time.perf_counter() - start - restoring
        label = postprocess(label, self.task.infer.postprocess)
        classes = _mean_classes(streams) if self.task.data.classes else None
        return Prediction(
            label,
            None if classes is None else classes.numpy(),
            kept,
            prepared.warnings,
            {"prepare": prepared.seconds, "network": network, "restore": time.perf_counter() - start - network},
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
        if self.task.kind == "classification":
            answers = [torch.softmax(predict_logits(one.model, image, one.task), 0) for one in self._members]
            return Probabilities(None, torch.stack(answers).mean(0))
        streams = self._open_streams(image, self._storage())
        labels = join_blocks(stream_probabilities(streams, streams[0].thickness), streams[0].shape[0])
        return Probabilities(labels, _mean_classes(streams) if self.task.data.classes else None)

    @property
    def _fingerprint(self) -> Mapping[str, Any] | None:
        return next((member.fingerprint for member in self._members if member.fingerprint is not None), None)

    def _open_streams(self, image: Tensor, storage: Storage) -> list[LogitStream]:
        classify = bool(self.task.data.classes)
        return [LogitStream(one.model, image, one.task, storage, classify=classify) for one in self._members]

    def _storage(self) -> Storage:
        return Storage(memory_bytes=self._memory_bytes, scratch=self._scratch)

    def _check_labels(self, labels: Sequence[int]) -> Sequence[int]:
        unknown = [label for label in labels if not 0 <= label < self.task.num_classes]
        if unknown:
            raise ConfigError(
                f"task {self.task.name} has no label {unknown[0]} to give probabilities of; its labels are "
                f"{', '.join(f'{value} ({name})' for value, name in self.task.data.labels.items())}, and 0"
            )
        return labels


def _mean_classes(streams: Sequence[LogitStream]) -> Tensor:
    return torch.stack([torch.softmax(stream.classes, 0) for stream in streams]).mean(0)


def _override(task: TaskConfig, overrides: Mapping[str, object], folder: RunFolder) -> TaskConfig:
    """Change how a run predicts; what it has learned stays.

    Raises:
        ConfigError: another key than those of ``infer``, or a value that is none.
    """
    other = [key for key in overrides if not key.startswith("infer.")]
    if other:
        raise ConfigError(f"{other[0]}: a trained run keeps it; only keys of infer can be set for prediction")
    return load_task(folder.config_file, values=dump_task(task), overrides=dict(overrides)) if overrides else task


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


def _find_origin(folder: RunFolder, checkpoint: str) -> ModelOrigin:
    files = folder.checkpoint(checkpoint), folder.config_file
    return ModelOrigin(folder.path, *(hash_file(file) for file in files))


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: not to be had here ({reason}); give auto or cpu") from None
