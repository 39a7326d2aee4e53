from __future__ import annotations

import csv
import mmap
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medi3d.config import TaskConfig
from medi3d.errors import MissingDependencyError
from medi3d.runs.folder import RunFolder
from medi3d.train import watch
from medi3d.train.watch import Meter, Watch, check_trackers, used_bytes


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def tracked(task: TaskConfig, *names: str) -> TaskConfig:
    return replace(task, train=replace(task.train, trackers=names))


def open_watch(folder: RunFolder, task: TaskConfig, step: int = 0) -> Watch:
    opened = Watch(Accelerator(cpu=True), folder, task)
    opened.start(step)
    return opened


def read_rows(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics_file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def read_board(folder: RunFolder) -> EventAccumulator:
    board = EventAccumulator(str(folder.path / "tensorboard"))
    board.Reload()
    return board


VALUES = {"loss": 0.5, "learning_rate": 0.01, "patches_per_second": 3.0, "waiting": 0.25, "memory_gb": 1.5}


def test_numbers_reach_the_table_and_tensorboard(folder: RunFolder, segmentation_task: TaskConfig) -> None:
    opened = open_watch(folder, segmentation_task)
    opened.log(10, {**VALUES, "seconds": 2.5})
    opened.log(20, {**VALUES, "score": 0.75, "seconds": 5.0})
    opened.close()
    first, second = read_rows(folder)
    assert (first["step"], first["loss"], first["score"], first["waiting"]) == ("10", "0.5", "", "0.25")
    assert (second["step"], second["score"], second["memory_gb"]) == ("20", "0.75", "1.5")
    board = read_board(folder)
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(10, 0.5), (20, 0.5)]
    assert [(event.step, event.value) for event in board.Scalars("score")] == [(20, 0.75)]
    for name in VALUES:
        assert board.Scalars(name)[0].value == pytest.approx(VALUES[name])


def test_pictures_reach_tensorboard(folder: RunFolder, segmentation_task: TaskConfig) -> None:
    from io import BytesIO

    from PIL import Image

    picture = np.zeros((6, 9, 3), np.uint8)
    picture[1, 2] = (255, 176, 0)
    opened = open_watch(folder, segmentation_task)
    opened.show(30, {"case_1": picture})
    opened.close()
    (event,) = read_board(folder).Images("predictions/case_1")
    assert (event.step, event.height, event.width) == (30, 6, 9)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(event.encoded_image_string))), picture)


def test_a_resumed_run_hides_what_came_after_its_checkpoint(folder: RunFolder, segmentation_task: TaskConfig) -> None:
    first = open_watch(folder, segmentation_task)
    for step in (10, 20, 30):
        first.log(step, {"loss": float(step)})
    first.close()
    second = open_watch(folder, segmentation_task, step=20)
    second.log(30, {"loss": 0.125})
    second.close()
    assert [(event.step, event.value) for event in read_board(folder).Scalars("loss")] == [
        (10, 10.0),
        (20, 20.0),
        (30, 0.125),
    ]


def test_without_trackers_the_table_is_written_alone(folder: RunFolder, segmentation_task: TaskConfig) -> None:
    opened = open_watch(folder, tracked(segmentation_task))
    opened.log(1, {"loss": 1.0})
    opened.show(1, {"case": np.zeros((4, 4, 3), np.uint8)})
    opened.close()
    assert [path.name for path in folder.path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(
    name: str, folder: RunFolder, segmentation_task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "find_spec", lambda package: None)
    with pytest.raises(MissingDependencyError, match=rf"{name} needs .* pip install 'medi3d\[{name}\]'"):
        check_trackers(tracked(segmentation_task, "tensorboard", name))
    with pytest.raises(MissingDependencyError, match=name):
        Watch(Accelerator(cpu=True), folder, tracked(segmentation_task, name))
    check_trackers(segmentation_task)
    assert not list(folder.path.iterdir())


class Recorder:
    """Stands for W&B and MLflow: notes what they are told."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.configs: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.settings: dict[str, Any] = {}
        self.ended = 0

    def end(self, *args: object) -> None:
        self.ended += 1

    def wandb(self) -> ModuleType:
        module = ModuleType("wandb")

        def init(**given: Any) -> SimpleNamespace:
            self.inits.append(given)
            number = given["id"] or f"id{len(self.inits)}"
            (Path(given["dir"]) / "wandb" / f"offline-run-2026010{len(self.inits)}_000000-{number}").mkdir(parents=True)
            log = lambda values, step: self.rows.append((step, values))  # noqa: E731
            return SimpleNamespace(log=log, finish=self.end)

        def settings(**given: Any) -> dict[str, Any]:
            self.settings = given
            return given

        module.init, module.Settings = init, settings  # type: ignore[attr-defined]
        module.config = SimpleNamespace(update=lambda values, **_: self.configs.append(values))  # type: ignore[attr-defined]
        return module

    def mlflow(self) -> ModuleType:
        module = ModuleType("mlflow")

        def start_run(**given: Any) -> SimpleNamespace:
            self.inits.append(given)
            return SimpleNamespace(info=SimpleNamespace(run_id=given["run_id"] or f"id{len(self.inits)}"))

        limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
        known: dict[str, Any] = {
            "search_experiments": lambda **_: [],
            "create_experiment": lambda **given: given["name"],
            "start_run": start_run,
            "log_params": self.configs.append,
            "log_metrics": lambda values, step: self.rows.append((step, values)),
            "end_run": self.end,
            "utils": SimpleNamespace(validation=limits),
        }
        module.__dict__.update(known)
        return module


@pytest.fixture(params=["wandb", "mlflow"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Recorder]:
    found = Recorder()
    monkeypatch.setitem(sys.modules, request.param, getattr(found, request.param)())
    monkeypatch.setattr(watch, "find_spec", lambda package: object())
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return request.param, found


def test_others_are_told_numbers_and_settings_and_no_picture_or_path(
    recorder: tuple[str, Recorder], folder: RunFolder, segmentation_task: TaskConfig
) -> None:
    name, told = recorder
    model = replace(segmentation_task.model, weights="/home/doe/weights.pth", init="/home/doe/earlier.pt")
    opened = open_watch(folder, tracked(replace(segmentation_task, model=model), name))
    opened.log(10, {"loss": 0.5, "score": 0.25})
    opened.show(10, {"case": np.zeros((4, 4, 3), np.uint8)})
    opened.close()
    assert told.rows == [(10, {"loss": 0.5, "score": 0.25})]
    settings = {key: value for config in told.configs for key, value in config.items()}
    assert settings["train.batch_size"] == 2
    assert settings["preprocess.spacing_mm"] == "[2.0, 2.0, 2.0]"
    assert settings["train.augment.mirror_axes"] == "['W']"
    assert settings["model.init"] == "earlier.pt"
    assert "doe" not in str(settings)
    assert told.ended == 1


def test_others_go_on_with_the_same_run(
    recorder: tuple[str, Recorder], folder: RunFolder, segmentation_task: TaskConfig
) -> None:
    name, told = recorder
    key = {"wandb": "id", "mlflow": "run_id"}[name]
    for step in (0, 20, 40):
        open_watch(folder, tracked(segmentation_task, name), step).close()
    assert [given[key] for given in told.inits] == [None, "id1", "id1"]


def test_rates_are_those_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    meter = Meter(torch.device("cpu"))
    meter.add(6)
    meter.add(6)
    now = 104.0
    first = meter.read(waited_s=1.0)
    assert (first["patches_per_second"], first["waiting"]) == (3.0, 0.25)
    meter.add(4)
    now = 114.0
    meter.skip(8.0)  # a validation
    second = meter.read(waited_s=1.5)
    assert (second["patches_per_second"], second["waiting"]) == (2.0, 0.25)
    assert first["memory_gb"] == pytest.approx(used_bytes(torch.device("cpu")) / 1e9, rel=0.2)


def test_memory_is_that_of_the_process() -> None:
    before = used_bytes(torch.device("cpu"))
    block = mmap.mmap(-1, 320_000_000)  # new pages: memory that was freed and kept would not count
    np.frombuffer(block, np.uint8)[:] = 1
    assert used_bytes(torch.device("cpu")) - before == pytest.approx(len(block), rel=0.1)
