"""Plans for made-up data sets: each choice follows from the numbers that its reason names."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medi3d.config import PLANNED_KEYS, TaskConfig, load_task
from medi3d.errors import ConfigError, InputError
from medi3d.models.backbone import SliceRule
from medi3d.planning import Plan, choices, estimate_training_bytes, plan_task
from medi3d.planning import machine as machine_module
from medi3d.planning.machine import find_machine
from medi3d.planning.rules import RULES
from medi3d.planning.trial import TrialNetwork

OPEN: dict[str, object] = {"model.init": "random", **dict.fromkeys(PLANNED_KEYS)}


def make_store(shape: tuple[int, int, int], *, cases: int = 50, spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Any:
    record = SimpleNamespace(prepared=SimpleNamespace(spacing_mm=spacing_mm))
    return SimpleNamespace(
        folder=Path("store"),
        fingerprint_hash="abc",
        fingerprint={"prepared_shape": {"median": [float(n) for n in shape]}},
        cases=lambda: [SimpleNamespace(shape=shape, record=record)] * cases,
    )


def make_task(name: str = "hippocampus", **overrides: object) -> TaskConfig:
    return load_task(name, overrides=OPEN | {key.replace("__", "."): value for key, value in overrides.items()})


def plan(store: Any, task: TaskConfig | None = None, *, gigabytes: float = 8, device: str = "cpu") -> Plan:
    return plan_task(task or make_task(), store, device=device, memory_bytes=int(gigabytes * 1e9))


@pytest.fixture(autouse=True)
def _make_each_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(task: TaskConfig) -> TrialNetwork:
        key = repr((task.model, task.kind, task.data.labels, task.train.patch_size, task.train.precision))
        if key not in _NETWORKS:
            _NETWORKS[key] = TrialNetwork(task)
        return _NETWORKS[key]

    monkeypatch.setattr(choices, "TrialNetwork", make)


@pytest.fixture(autouse=True)
def _bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hardware for bfloat16, whatever this machine has."""
    monkeypatch.setattr(machine_module, "find_bf16", lambda device: "")


_NETWORKS: dict[str, TrialNetwork] = {}


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


def test_a_small_volume_is_the_patch() -> None:
    made = plan(make_store((36, 50, 35), cases=200))
    assert made.values == {
        "train.patch_size": (40, 56, 40),
        "train.batch_size": 2,
        "train.steps": 160 * 25 // 2,
        "train.learning_rate": RULES.learning_rate["adamw"],
        "model.stages": 3,
        "model.depth_plan": "symmetric",
        "train.precision": "no",
    }
    assert made.chosen == made.values
    assert made.task.patch_size == (40, 56, 40)
    assert "36 × 50 × 35" in made.reasons["train.patch_size"]
    assert "7 × 5 voxels" in made.reasons["model.stages"]
    assert "160 training cases" in made.reasons["train.steps"]
    assert made.made_for == {"task": "hippocampus", "data_fingerprint": "abc", "device": "cpu", "memory_gb": 8.0}
    assert all(reason and "\n" not in reason for reason in made.reasons.values())


def test_memory_limits_the_patch() -> None:
    gigabytes = 0.3
    made = plan(make_store((150, 170, 140)), make_task(model__stages=2), gigabytes=gigabytes)
    needed = estimate_training_bytes(made.task)
    assert 0.5 * gigabytes * 1e9 < needed <= gigabytes * 1e9
    assert f"{gigabytes:.2g} GB of memory" in made.reasons["train.patch_size"]
    scales = [edge / whole for edge, whole in zip(made.task.patch_size, (150, 170, 140), strict=True)]
    assert max(scales) - min(scales) < 0.1


def test_time_limits_the_patch_on_a_cpu() -> None:
    made = plan(make_store((300, 512, 512)), make_task(model__stages=2), gigabytes=100)
    assert 0.7 * RULES.cpu_step_voxels < 2 * math.prod(made.task.patch_size) <= RULES.cpu_step_voxels
    assert "a few seconds a step on a CPU" in made.reasons["train.patch_size"]


@pytest.mark.usefixtures("_gpu")
def test_a_gpu_takes_more_until_the_data_set_limits_the_batch() -> None:
    store = make_store((36, 50, 35), cases=200)
    made = plan(store, device="auto", gigabytes=24)
    share = made.task.batch_size * math.prod(made.task.patch_size) / (200 * 36 * 50 * 35)
    assert share <= 0.05 < share * (made.task.batch_size + 1) / made.task.batch_size
    assert "5% of the 12.6 million voxels" in made.reasons["train.batch_size"]
    assert made.task.learning_rate == pytest.approx(3e-3 * math.sqrt(made.task.batch_size / 2), rel=0.01)
    few = plan(store, device="auto", gigabytes=0.4)
    assert 2 <= few.task.batch_size < made.task.batch_size
    assert "would not fit in 0.4 GB" in few.reasons["train.batch_size"]
    assert estimate_training_bytes(few.task) <= 0.4e9


def test_thick_slices_keep_their_depth() -> None:
    settled: dict[str, object] = {"train.patch_size": 16, "train.batch_size": 2, "model.stages": 2}
    task = make_task(**settled)
    made = plan(make_store((24, 160, 160), spacing_mm=(3.0, 1.0, 1.0)), task)
    assert made.task.model.depth_plan == "anisotropic"
    assert "3 times as far apart" in made.reasons["model.depth_plan"]
    assert plan(make_store((24, 80, 80), spacing_mm=(1.4, 1.0, 1.0)), task).task.model.depth_plan == "symmetric"
    native = make_task(preprocess__spacing_mm="native", **settled)
    assert plan(make_store((24, 80, 80), spacing_mm=(3.0, 1.0, 1.0)), native).task.model.depth_plan == "symmetric"


def test_a_classifier_takes_the_cube() -> None:
    made = plan(make_store((30, 30, 30), cases=100), make_task("lung_nodule"))
    assert made.task.patch_size == (30, 30, 30)
    assert made.task.model.stages == 5
    assert made.task.batch_size == 5  # 5 % of 100 cases


def test_what_the_task_sets_stays() -> None:
    task = make_task(train__patch_size=[16, 24, 32], train__batch_size=3, model__stages=2)
    made = plan(make_store((64, 64, 64)), task)
    assert set(made.chosen) == {"train.steps", "train.learning_rate", "model.depth_plan", "train.precision"}
    assert made.values["train.patch_size"] == (16, 24, 32)
    assert made.reasons["model.stages"] == "set by the task or a flag"
    assert made.task.learning_rate == pytest.approx(3e-3 * math.sqrt(1.5), rel=0.01)


def test_nothing_is_tried_where_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "TrialNetwork", None)
    monkeypatch.setattr("medi3d.planning.plan.measure_shapes", None)
    values: dict[str, object] = {"train.steps": 5, "train.learning_rate": 0.1, "model.depth_plan": "symmetric"}
    values["train.precision"] = "no"
    task = load_task(
        "hippocampus", overrides={"train.batch_size": 1, "model.stages": 2, "train.patch_size": 16} | values
    )
    assert plan(make_store((64, 64, 64)), task).task == task


def test_bfloat16_is_chosen_where_the_hardware_has_it_and_leaves_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    store, task = make_store((150, 170, 140)), make_task(model__stages=2, train__batch_size=2)
    plain = plan(store, task, gigabytes=0.3)
    assert plain.reasons["train.precision"].startswith("float32: this CPU has no hardware for bfloat16")
    monkeypatch.setattr(machine_module, "find_bf16", lambda device: "AVX512_BF16")
    half = plan(store, task, gigabytes=0.3)
    assert half.task.precision == "bf16"
    assert "(AVX512_BF16)" in half.reasons["train.precision"]
    assert math.prod(half.task.patch_size) > 1.2 * math.prod(plain.task.patch_size)
    told = plan(store, make_task(model__stages=2, train__precision="no"), gigabytes=0.3)
    assert (told.task.precision, told.reasons["train.precision"]) == ("no", "set by the task or a flag")


def test_steps_follow_the_cases_the_accumulation_and_the_budget() -> None:
    task = make_task(train__patch_size=[32, 32, 32], train__batch_size=2, model__stages=2)
    store = make_store((32, 64, 64), cases=100)  # 4 patches a case, 80 training cases
    assert plan(store, task).task.steps == 25 * 80 * 4 // 2
    more = make_task(train__patch_size=[32, 32, 32], train__batch_size=2, train__accumulate=2, model__stages=2)
    assert plan(store, more).task.steps == 25 * 80 * 4 // 4
    few = make_task(train__patch_size=[32, 32, 32], train__batch_size=2, train__cases=8, model__stages=2)
    assert plan(store, few).task.steps == max(25 * 8 * 4 // 2, RULES.fewest_steps["cpu"])
    timed = make_task(train__budget="10m", train__patch_size=[32, 32, 32], train__batch_size=2, model__stages=2)
    assert plan(store, timed).reasons["train.steps"].startswith("not used: train.budget 10m ends the run")


def test_a_backbone_of_one_slice_size_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneSize(TrialNetwork):
        def __init__(self, task: TaskConfig) -> None:
            super().__init__(task)
            self.slices = SliceRule((64, 96), None)

    monkeypatch.setattr(choices, "TrialNetwork", OneSize)
    made = plan(make_store((36, 50, 35)), make_task(model__stages=2))
    assert made.task.patch_size == (40, 64, 96)
    assert "64 × 96 only" in made.reasons["train.patch_size"]


def test_too_little_memory_is_refused_with_what_would_help() -> None:
    with pytest.raises(ConfigError, match=r"hippocampus: a step of 2 patches of 16 × 16 × 16 voxels needs about .* GB"):
        plan(make_store((64, 64, 64)), make_task(model__stages=2), gigabytes=0.001)
    with pytest.raises(ConfigError, match=r"set model\.backbone to a smaller network"):
        plan(make_store((64, 64, 64)), make_task(train__patch_size=[64, 64, 64], model__stages=2), gigabytes=0.05)
    with pytest.raises(ConfigError, match="patches of 30 × 30 × 30 voxels"):
        plan(make_store((30, 30, 30)), make_task("lung_nodule", model__stages=2), gigabytes=0.01)


def test_a_store_without_cases_is_refused() -> None:
    with pytest.raises(InputError, match="holds no cases to plan for"):
        plan(make_store((30, 30, 30), cases=0))


def test_the_memory_at_hand_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "available_bytes", lambda: 10**10)
    found = find_machine("cpu")
    assert (found.device, found.memory_bytes, found.source) == ("cpu", 8 * 10**9, "80% of the 10.0 GB that are free")
    assert find_machine("cpu", 5).memory_bytes == 5
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2 * 10**10, 3 * 10**10))
    assert (find_machine().device, find_machine().memory_bytes) == ("cuda", 16 * 10**9)
    assert find_machine("cpu").device == "cpu"
    with pytest.raises(ConfigError, match=r"unknown device 'gpu'.*auto, cpu"):
        find_machine("gpu")
